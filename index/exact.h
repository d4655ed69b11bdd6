/* SPDX-License-Identifier: Apache-2.0 */
/* exact.h — top-k by looking at every key: always right, and the oracle of every other index.
 *
 * Takes the same arguments as attention (attend.h), so that search sees exactly the tokens that
 * attend would.
 * Cost     O(n H T D) for scores + O(n H T log k) worst case for the heaps
 * Memory   hits belong to the caller; scratch from the arena
 * Errors   as attend
 * Tests    tests/unit/test_exact.c
 */
#ifndef MEMD_INDEX_EXACT_H
#define MEMD_INDEX_EXACT_H

#include "attention/attend.h"
#include "index/index.h"

/* What attend (`parts` 2: K and V) or exact_search (1: K) reads for these arguments: every row that
 * some query sees, once, of all KV heads. */
struct exact_cost {
    uint64_t rows, bytes;
};
struct exact_cost exact_cost(const struct attend_args *args, unsigned parts);

/* That every query reads all that it sees, where it stands. A method that answers from everything
 * in some form says so too: what form, its quality says. */
struct plan;
void exact_plan(const struct attend_args *args, struct plan *plan);

int exact_search(const struct attend_args *args, struct arena *arena,
                 const struct index_hits *ret_hits, struct error *err);

#endif
