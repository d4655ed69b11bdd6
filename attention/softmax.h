/* SPDX-License-Identifier: Apache-2.0 */
/* softmax.h — partial attention and its algebra, the one rule by which everything in memd is
 * joined.
 *
 * A *partial* (o, lse) is attention over a set of tokens:
 *
 *     lse = log sum_i exp(s_i)        o = sum_i exp(s_i - lse) v_i        s_i = scale * q · k_i
 *
 * in fp32 with the NATURAL logarithm; over the empty set it is (0, -inf). Partials over disjoint
 * sets merge exactly, in any order:
 *
 *     L = log(exp(lse_a) + exp(lse_b))        o = exp(lse_a - L) o_a + exp(lse_b - L) o_b
 *
 * Sinks, tail, sealed segments, retrieved rows, estimates, shards of other hosts and the engine's
 * own window are all partials. Two empty ones merge to the empty one: the code guards -inf - -inf,
 * which would be NaN.
 *
 * Shapes   o (n, H, D) fp32, lse (n, H) fp32
 * Source   FlashAttention-2 (arXiv 2307.08691) §3.1; online softmax (arXiv 1805.02867) algorithm 3
 * Threads  pure
 * Tests    tests/unit/test_softmax.c
 */
#ifndef MEMD_ATTENTION_SOFTMAX_H
#define MEMD_ATTENTION_SOFTMAX_H

#include <stddef.h>

struct partial {
    float *o;   /* (rows, D) */
    float *lse; /* (rows) */
    size_t rows; /* n * H of a whole answer */
    size_t head_dim;
};

/* (0, -inf) for every row. */
void partial_clear(const struct partial *partial);

/* into ⊕= part, row by row; both have the same rows and head_dim. */
void partial_merge(const struct partial *into, const struct partial *part);

/* Turn the running state of kernels/partial.h, whose acc lies in partial->o, into (o, lse) in
 * place. max, sum (rows): a row with max -inf has seen nothing and becomes (0, -inf). */
void partial_finish(const float *max, const float *sum, const struct partial *partial);

#endif
