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

int exact_search(const struct attend_args *args, struct arena *arena,
                 const struct index_hits *ret_hits, struct error *err);

#endif
