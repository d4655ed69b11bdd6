/* SPDX-License-Identifier: Apache-2.0 */
/* yield_timer.h — a thread that works in the background offers its processor every so often.
 *
 * Priorities say who gets how much of a processor, not how soon. A thread that wakes beside a busy
 * one waits for the next tick of the scheduler when it has had more than its share of late (EEVDF
 * runs only who is owed something), and a tick is 4 ms where the kernel has 250 of them a second:
 * twenty times what an attend takes, whatever the niceness of the busy thread. sched_yield() makes
 * the choice at once, and gives up what the caller is owed. Measured in decisions/0070.
 *
 * The call comes from a timer's signal and not from the loops that work, because those are in a
 * dozen files, in FAISS and in LMDB. Go preempts its goroutines in this way, with this signal:
 * SIGURG is ignored by default, no library wants it, and debuggers pass it on.
 *
 * Rejected: SCHED_IDLE and nice 19 (starve the thread while it holds a lock that a request wants),
 * SCHED_BATCH and slices of 100 µs for others (no effect, since the tick stays what is waited
 * for), a clock read in every inner loop (kernels would have to know who calls them).
 *
 * It yields after half an interval of its own time at the least. A yield gives up what is left of
 * the thread's slice, milliseconds; without that condition a thread on busy processors yielded as
 * soon as it got one, and had a fortieth of its share.
 *
 * Cost     an interrupt, a signal and a system call per interval while it runs: 20 µs on a virtual
 *          machine, 4 % of the thread at 500 µs, 2 % at 1 ms and 11 % at 200 µs; half of its share
 *          where it competes for every processor
 * Threads  each is of the thread that opened it, and so are all calls
 * Errors   none: where the system has no timer left, or the program has a handler for SIGURG of its
 *          own, the thread is simply not interrupted
 * Tests    tests/unit/test_yield_timer.c, tests/bench/bench_neighbours.py
 */
#ifndef MEMD_BASE_YIELD_TIMER_H
#define MEMD_BASE_YIELD_TIMER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct yield_timer {
    timer_t id;
    uint64_t interval_ns;
    uint64_t yielded_at_ns; /* by the thread's own clock */
    bool exists;
    atomic_ulong yields; /* so far; any thread may read it */
};

/* For the calling thread, which may have blocked all signals. It does not run yet. System calls
 * that may be restarted are; the others (poll, nanosleep) may end with EINTR while it runs. */
void yield_timer_open(struct yield_timer *timer, uint64_t interval_ns);

void yield_timer_start(struct yield_timer *timer);
void yield_timer_stop(struct yield_timer *timer);

/* After that nothing refers to `timer`. */
void yield_timer_close(struct yield_timer *timer);

#endif
