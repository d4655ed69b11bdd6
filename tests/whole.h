/* SPDX-License-Identifier: Apache-2.0 */
/* whole.h — so many bytes of a stream, in as many reads as it takes.
 *
 * recv with MSG_WAITALL is not that: where the process is stopped and continued meanwhile, by a
 * debugger or whoever shares the machine, it comes back with what it has.
 */
#ifndef MEMD_TESTS_WHOLE_H
#define MEMD_TESTS_WHOLE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

/* False at the end of the stream, wherever that is. */
static inline bool read_whole(int fd, void *data, size_t bytes)
{
    unsigned char *at = data;
    while (bytes > 0) {
        ssize_t count = read(fd, at, bytes);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        at += count;
        bytes -= (size_t)count;
    }
    return true;
}

#endif
