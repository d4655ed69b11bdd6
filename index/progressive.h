/* SPDX-License-Identifier: Apache-2.0 */
/* progressive.h — attention that reads as little as the asked error allows.
 *
 * Rows that have planes are answered from clusters first; then whatever lowers the predicted error
 * most per byte is read more finely, cluster → hi → lo → exact, until the prediction meets
 * target_error or max_bytes is spent. Rows without planes (open tail, a segment just sealed, one
 * that a query sees only in part) are read exactly. All query heads of a KV head share what is
 * read, and so do the queries of a block.
 *
 * The target is what about 95 of 100 query heads stay below, not their mean (0032): more is read
 * until the prediction is at 0.6 of it.
 *
 * target_error = 0 is attend itself, bit for bit. Where reading everything is cheaper (few rows, or
 * keys that have no clusters), it is done: by a measured rule, docs/decisions/0034. max_bytes is
 * shared evenly by the blocks; exact rows without planes, all centroids and a sample
 * of 8 clusters are read in any case.
 *
 * Shapes   as attend; planes: (G, view_count), planes[g * view_count + i] belongs to the same view;
 *          NULL where there are none
 * Cost     O(T/16 D + opened D) per query block; see docs/RETRIEVAL.md
 * Memory   scratch from `arena`
 * Threads  any, concurrently
 * Errors   as attend
 * Tests    tests/unit/test_progressive.c, test_progressive_trouble.c, tests/recall
 */
#ifndef MEMD_INDEX_PROGRESSIVE_H
#define MEMD_INDEX_PROGRESSIVE_H

#include <stdbool.h>

#include "index/index.h"
#include "index/planes.h"

struct arena;
struct error;

struct progressive_args {
    struct index_args base;
    const struct planes *const *planes; /* (G, view_count), may hold NULL */
    uint64_t exact_below; /* tokens with planes below which everything is read exactly; UINT64_MAX
                           * = the measured rule, 0 = never */
    /* May `lo` of this place in the planes of this view be read? Asked like `admit` of attend_args,
     * with the same argument; where not, the exact row is read instead. NULL: always. */
    bool (*admit_lo)(void *arg, const struct view *view, size_t place);
};

int progressive_attend(const struct progressive_args *args, struct arena *arena,
                       const struct index_answer *ret_answer, struct error *err);

/* Is the call better answered, or wanted, by attend() over all views? Then it is. */
bool progressive_reads_all(const struct progressive_args *args);

/* Top-k through the same levels, scored exactly in the end: recall ≥ 0.99 at the defaults. */
int progressive_search(const struct progressive_args *args, struct arena *arena,
                       const struct index_hits *ret_hits, struct index_quality *ret_quality,
                       struct error *err);

#endif
