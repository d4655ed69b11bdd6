/* SPDX-License-Identifier: Apache-2.0 */
/* fake_memory.h — a catalog and a context without a store, which do what a test tells them.
 *
 * Linked in place of memory/'s, so that a flow can stop time where a real store never would: a
 * commit that does not come, a commit that fails, an attend that is under way, a context that is
 * locked. Tokens are counted, rows are not kept. Context 2 is as context 1, but nothing holds its
 * attends; 3 … FAKE_CONTEXTS are context 1 by other names.
 *
 * The daemon's clock is the fake's too: a deadline that a test gives is far away until the test has
 * seen what should come before it, and then it is over at once (fake_wait). So no test depends on
 * how quickly threads get a core.
 *
 * Threads  the test's thread sets, the daemon's threads look
 */
#ifndef MEMD_TESTS_FAKE_MEMORY_H
#define MEMD_TESTS_FAKE_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    FAKE_LAYER_TOKENS_LARGE = 100000, /* layer 1 always claims to hold that many */
    FAKE_CONTEXTS = 32,
    FAKE_SEGMENTS = 5,                /* that want derived data */
};

struct fake {
    atomic_bool hold_commits;    /* context_reached says: not yet */
    atomic_int commit_failure;   /* context_reached says: this error */
    atomic_bool no_room;         /* appends are MEMD_EBUSY */
    atomic_uint refused;         /* appends that were */
    atomic_bool hold_attends;    /* attends on workers wait (and ask `stop`) */
    atomic_bool slow_append;     /* every other append takes a while */
    atomic_uint appending;       /* appends that have begun */
    atomic_bool locked;          /* an attend that must not wait is MEMD_EBUSY */
    atomic_uint attending;       /* attends that have begun */
    atomic_uint attended_on_loop, attended_on_worker;
    atomic_int pins;             /* held now */
    _Atomic uint64_t tokens;
    atomic_bool estimates;       /* attends answer from levels and say so */
    atomic_uint built_segments;
    _Atomic double target_error; /* what the last attend or recall was asked for */
    _Atomic uint64_t max_bytes;
    _Atomic uint64_t waited_ns;  /* the daemon's clock is ahead by this */
};
extern struct fake fake;

/* What the writer thread does after a commit. */
void fake_progress(void);

/* Let so much time go by for the daemon. */
void fake_wait(uint64_t ms);

#endif
