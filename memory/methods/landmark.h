/* SPDX-License-Identifier: Apache-2.0 */
/* landmark.h — which blocks a query of the method `landmark` may choose among, and which it
 * chooses; for landmark.c, which reads them (and has the source of everything here).
 *
 * Threads  pure, but for landmark_choose_together, which uses the pool
 * Tests    tests/unit/test_landmark.c
 */
#ifndef MEMD_MEMORY_LANDMARK_H
#define MEMD_MEMORY_LANDMARK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/landmarks.h"

struct arena;
struct error;
struct reading;
struct rope;

enum landmark_share { LANDMARK_APART, LANDMARK_OVER_HEADS, LANDMARK_OVER_TOKENS };

struct landmark_asking {
    const struct reading *reading;
    const struct landmarks *landmarks;
    const struct rope *rope; /* NULL: keys and queries are as they come */
    bool stingy;
    enum landmark_share share;
    size_t group, k;
    uint64_t most;          /* blocks that can be chosen */
    const float *gate;      /* (G, D) or NULL */
    const uint64_t *shared; /* (n, k) over heads, (H, k) over tokens, or NULL: numbers of blocks */
    const size_t *counts;   /* (n) or (H) how many of each */
};

/* Blocks first … first+count-1, k of them; rows begin … end-1 are the query's own. */
struct landmark_extent {
    size_t first, count, k;
    uint64_t position, begin, end, length; /* length: of a block, where they are of one */
};

/* Of a query. MEMD_EUNSUPPORTED blocks of several lengths under stingy positions · MEMD_EINVAL a
 * position among blocks that are complete */
int landmark_extent(const struct landmark_asking *asking, size_t query,
                    struct landmark_extent *ret_extent, struct error *err);

/* q (D) turned by a distance, as if query and key had been turned apart. ret_q (D) */
void landmark_turn(const struct rope *rope, const float *q, uint64_t distance, float *ret_q);

/* From the landmarks that are older than the last k to the query, under stingy positions. */
uint64_t landmark_old_distance(const struct landmark_extent *extent);

/* Scores of the landmarks that query head `head` chooses among. q (D) scaled, not rotated where
 * memd rotates; turned (D) scratch; ret_scores (count) */
void landmark_score(const struct landmark_asking *asking, const struct landmark_extent *extent,
                    size_t head, const float *q, float *turned, float *ret_scores);

/* The best k, ascending, as numbers of blocks. best (k) scratch; ret_ids (k) */
void landmark_choose(const struct landmark_extent *extent, const float *scores, float *best,
                     uint64_t *ret_ids);

/* Fill in asking->shared and ->counts, in the arena: a softmax over landmarks for each head of each
 * token, and the best by the highest share that any of them gives. MEMD_EINVAL tokens that choose
 * together see different blocks · MEMD_ENOMEM */
int landmark_choose_together(struct landmark_asking *asking, struct arena *arena,
                             struct error *err);

#endif
