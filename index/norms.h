/* SPDX-License-Identifier: Apache-2.0 */
/* norms.h — the lengths of keys, kept as a fold: what a cosine needs besides the scores that a scan
 * gives anyway, and the order by which the L2-norm compression keeps tokens.
 *
 *     cos(q, k_t) = (q · k_t) / (|q| |k_t|)
 *
 * so a search by cosine is the score kernel over the stored keys and one division per score; a copy
 * of all keys at length 1 would cost as much memory as the keys. A rotation does not change a
 * length, so they are those of the stored keys wherever a key is placed (YaRN's magnitude, a factor
 * common to all of them, is not in them). A key without length has cosine 0 to everything.
 *
 * Shapes   (G, tokens) fp32, in runs (grown.h)
 * Cost     D multiplications per token and head, once; 4 bytes per token and head
 * Exact    each is the square root of a double sum of squares, rounded once: a function of that
 *          key alone
 * Threads  as fold.h
 * Errors   MEMD_ENOMEM · what `stop` says
 * Tests    tests/unit/test_norms.c
 */
#ifndef MEMD_INDEX_NORMS_H
#define MEMD_INDEX_NORMS_H

#include "index/fold.h"
#include "index/grown.h"

struct norms {
    struct fold base;
    struct grown grown; /* (G, tokens) fp32 */
};

/* Reaches every token; has no options. */
extern const struct fold_type norms_fold;

/* The fold of a layer whose method has norms_fold. */
const struct norms *norms_of(const struct fold *fold);

/* Lengths of the keys of a head from `position` on, which is below fold->tokens; at most `most`. */
const float *norms_run(const struct norms *norms, size_t head, uint64_t position, size_t most,
                       size_t *ret_count);

/* Scores of consecutive keys with a query of length `length` become cosines. scores (count) */
void norms_cosines(const struct norms *norms, size_t head, uint64_t position, size_t count,
                   double length, float *scores);

/* |x| of x (n) fp32, n a multiple of 8. */
double norms_length(const float *x, size_t n);

/* Lengths of stored keys begin … begin+count-1 of a head, of no fold. ret_lengths (count) */
void norms_measure(const struct rows *rows, size_t head, uint64_t begin, size_t count,
                   float *ret_lengths);

#endif
