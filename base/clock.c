/* SPDX-License-Identifier: Apache-2.0 */
/* clock.c — clock_gettime and nothing between: both clocks exist on every Linux, so there is no
 * error. */
#include "base/clock.h"

#include <assert.h>
#include <time.h>

#define SECOND_NS UINT64_C(1000000000)

static uint64_t read_ns(clockid_t id)
{
    struct timespec now = { 0 };
    clock_gettime(id, &now); /* cannot fail for these two clocks */
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

uint64_t clock_monotonic_ns(void)
{
    return read_ns(CLOCK_MONOTONIC);
}

uint64_t clock_real_ns(void)
{
    return read_ns(CLOCK_REALTIME);
}

void clock_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    int failed = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    if (failed == 0) failed = pthread_cond_init(cond, &monotonic);
    assert(failed == 0);
    pthread_condattr_destroy(&monotonic);
}

void clock_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t due_ns)
{
    struct timespec due = { (time_t)(due_ns / SECOND_NS), (long)(due_ns % SECOND_NS) };
    pthread_cond_timedwait(cond, lock, &due);
}
