/* SPDX-License-Identifier: Apache-2.0 */
/* partial.h — the inner loop of memd: attention of a group of queries over a run of rows, each row
 * read once.
 *
 * All queries that share a KV head (its H/G query heads times the n queries of the batch) go over
 * the rows together, so that memory traffic does not depend on their number. The running state is
 * *un-normalised*:
 *
 *     max[m]   largest score so far, -inf before the first row
 *     sum[m]   sum of exp(score - max)
 *     acc[m]   sum of exp(score - max) * v
 *
 * and is carried from call to call (segments, tail chunks); partial_finish (softmax.h) turns it
 * into (o, lse).
 *
 * Shapes   q (M, D) fp32, already multiplied by the attention scale and rotated
 *          k, v: `tokens` rows of D elements, row t at k + t * k_stride_bytes, fp32 | fp16 | bf16
 *          each (keys that were rotated while reading are fp32 beside 16-bit values); no alignment
 *          is needed
 *          visible (M): query m sees rows t < visible[m] (≤ tokens; may be 0)
 *          max, sum (M); acc (M, D)
 * Cost     O(M * tokens * D); every row is read once per call
 * Errors   none: the caller has checked. K, V and q are finite and |q·k| stays below FLT_MAX; a
 *          score of -inf counts as "not visible", one of +inf gives NaN
 * Tests    tests/kernels/test_partial.c: every level against kernels/partial.c, all dtypes, odd
 *          sizes
 */
#ifndef MEMD_ATTENTION_KERNELS_PARTIAL_H
#define MEMD_ATTENTION_KERNELS_PARTIAL_H

#include <stddef.h>
#include <stdint.h>

struct partial_args {
    const float *q;          /* (M, D) */
    const uint32_t *visible; /* (M) */
    size_t queries;          /* M */
    size_t head_dim;         /* D, a multiple of 8 */
    const void *k, *v;       /* (tokens, D) with strides */
    size_t k_stride_bytes, v_stride_bytes;
    size_t tokens;
    uint32_t k_dtype, v_dtype; /* enum dtype */
    float *max;     /* (M) in, out */
    float *sum;     /* (M) in, out */
    float *acc;     /* (M, D) in, out */
};

typedef void partial_fn(const struct partial_args *args);

partial_fn partial_ref, partial_avx2, partial_avx512, partial_neon;

#endif
