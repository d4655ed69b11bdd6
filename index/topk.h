/* SPDX-License-Identifier: Apache-2.0 */
/* topk.h — the k best of a stream of (score, id), kept in arrays of the caller.
 *
 * A heap with the worst at its root. It starts full of (INDEX_NONE, -inf), which is worse than
 * every token, so that no count has to be kept and rows with fewer than k offers come out filled as
 * index.h promises. Equal scores: the lower id is better.
 *
 * Shapes   ids, scores (k), k ≥ 1
 * Cost     topk_offer O(1) for a loser, O(log k) for one that gets in
 * Threads  pure
 * Tests    tests/unit/test_topk.c, tests/unit/test_exact.c
 */
#ifndef MEMD_INDEX_TOPK_H
#define MEMD_INDEX_TOPK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct topk {
    uint64_t *ids; /* (k) */
    float *scores; /* (k) */
    size_t k;
};

void topk_clear(const struct topk *top);

/* Put (score, id) in the place of the worst. */
void topk_replace(const struct topk *top, float score, uint64_t id);

/* Best first; after that it is no heap any more. */
void topk_sort(const struct topk *top);

/* Of k entries in any order, bring the best `count` to the front, in any order. O(k). */
void topk_select(const struct topk *all, size_t count);

/* Is (score, id) a worse hit than (other, other_id)? */
static inline bool topk_worse(float score, uint64_t id, float other, uint64_t other_id)
{
    return score < other || (score == other && id > other_id);
}

static inline void topk_offer(const struct topk *top, float score, uint64_t id)
{
    if (topk_worse(top->scores[0], top->ids[0], score, id)) topk_replace(top, score, id);
}

#endif
