/* SPDX-License-Identifier: Apache-2.0 */
/* cut.h — where to cut an array of scores so that the k largest are above: for choices of a large
 * share of all tokens, which are wanted in the order of the past.
 *
 * A heap (topk.h) costs memory and a logarithm for every token that gets in; when a quarter of a
 * past is kept, most do. The cut is found by counting instead, and one pass over the scores then
 * takes what is above it, ascending, without an array of ids:
 *
 *     struct cut cut = cut_largest(scores, n, k);
 *     for (size_t i = 0; i < n; i++)
 *         if (cut_takes(&cut, scores[i])) …
 *
 * Equal scores: the lower index is taken. The k smallest are the k largest of negated scores.
 *
 * Shapes   scores (n), no NaN; infinities are fine, and -0 equals 0
 * Cost     three passes over the scores, 16 KiB of stack
 * Threads  pure
 * Tests    tests/unit/test_cut.c
 */
#ifndef MEMD_INDEX_CUT_H
#define MEMD_INDEX_CUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct cut {
    uint32_t least; /* taken: what orders above it */
    size_t equals;  /* and so many of those that are equal to it, the first ones */
};

/* The k largest of n scores; all of them where k ≥ n. */
struct cut cut_largest(const float *scores, size_t n, size_t k);

/* A number that is ordered as the scores are. */
static inline uint32_t cut_order(float score)
{
    float plain = score + 0.0F; /* -0 becomes 0 */
    uint32_t bits = 0;
    memcpy(&bits, &plain, sizeof bits);
    return (bits & UINT32_C(0x80000000)) != 0 ? ~bits : bits | UINT32_C(0x80000000);
}

/* To be asked once for each score, in their order. */
static inline bool cut_takes(struct cut *cut, float score)
{
    uint32_t order = cut_order(score);
    if (order > cut->least) return true;
    if (order < cut->least || cut->equals == 0) return false;
    cut->equals--;
    return true;
}

#endif
