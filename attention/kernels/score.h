/* SPDX-License-Identifier: Apache-2.0 */
/* score.h — the scores of a group of queries against a run of keys, for search.
 *
 * Shapes   q (M, D) fp32, scaled and rotated; k: `tokens` rows of D elements; scores (M, tokens)
 *          fp32
 * Cost     O(M * tokens * D); every key is read once
 * Tests    tests/kernels/test_score.c against kernels/score.c
 */
#ifndef MEMD_ATTENTION_KERNELS_SCORE_H
#define MEMD_ATTENTION_KERNELS_SCORE_H

#include <stddef.h>
#include <stdint.h>

struct score_args {
    const float *q;  /* (M, D) */
    size_t queries;  /* M */
    size_t head_dim; /* D, a multiple of 8 */
    const void *k;   /* (tokens, D) */
    size_t k_stride_bytes;
    size_t tokens;
    uint32_t dtype; /* enum dtype */
    float *scores;  /* (M, tokens) out */
};

typedef void score_fn(const struct score_args *args);

score_fn score_ref, score_avx2, score_avx512, score_neon;

#endif
