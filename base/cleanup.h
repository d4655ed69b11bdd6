/* SPDX-License-Identifier: Apache-2.0 */
/* cleanup.h — locals that own something outside the arena free themselves.
 *
 *     CLEANUP(config_freep) struct config *config = NULL;
 *     …
 *     *ret_config = TAKE(config);          (hands over; the local becomes NULL)
 *
 * Destructors take a pointer to the variable, accept NULL and half-built objects.
 */
#ifndef MEMD_BASE_CLEANUP_H
#define MEMD_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(function) __attribute__((cleanup(function)))

#define TAKE(variable)                        \
    __extension__({                           \
        __typeof__(variable) *take_at = &(variable); \
        __typeof__(variable) take_value = *take_at;  \
        *take_at = NULL;                      \
        take_value;                           \
    })

/* For `CLEANUP(free_ptr) char *text`. */
static inline void free_ptr(void *pointer_to_variable)
{
    free(*(void **)pointer_to_variable);
}

/* For `CLEANUP(close_fd) int fd = -1`. */
static inline void close_fd(int *fd)
{
    if (*fd >= 0) close(*fd);
}

#endif
