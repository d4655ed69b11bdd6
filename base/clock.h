/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h — the two clocks: monotonic for durations and deadlines, real for what people read. And
 * to wait by the first, which a condition of POSIX does only when it was told at its start. */
#ifndef MEMD_BASE_CLOCK_H
#define MEMD_BASE_CLOCK_H

#include <pthread.h>
#include <stdint.h>

uint64_t clock_monotonic_ns(void);

/* Nanoseconds since 1970, UTC. */
uint64_t clock_real_ns(void);

/* A condition for clock_cond_wait; pthread_cond_destroy ends it. No C library of Linux takes memory
 * for one, so there is no error. */
void clock_cond_init(pthread_cond_t *cond);
/* pthread_cond_wait, until clock_monotonic_ns() is `due_ns` at the latest. */
void clock_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t due_ns);

#endif
