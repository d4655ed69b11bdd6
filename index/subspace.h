/* SPDX-License-Identifier: Apache-2.0 */
/* subspace.h — a few directions for many dimensions: those in which a sample of vectors differs
 * most, and some at random that speak for all the others.
 *
 * A product of two vectors is the sum of the products of their parts in any orthonormal basis. The
 * first L rows of one are the leading principal components of the sample, where most of a product
 * is when vectors are of low rank, as states of models are. The last R are random in what is left,
 * times sqrt((W - L) / R), so that
 *
 *     Σ over L + R rows of (row · x)(row · y)
 *
 * is right on average over the choice of the random rows *for any x and y*: vectors that differ in
 * other directions than the sample did are guessed as well as by random directions alone, and not
 * thought equal. That is why a sample of the first vectors suffices for all later ones; principal
 * components alone went from 0.98 to 0.93 of the nearest found when a text changed its subject
 * (docs/decisions/0048).
 *
 * Principal components come from subspace iteration: SUBSPACE_PASSES times the rows are multiplied
 * by the sample's second moments and made orthonormal again. Rows that have not quite settled are
 * as good: nothing but their being orthonormal is relied on. Rejected: all eigenvectors (pca.h; two
 * seconds with W 1,024, of which an eighth is wanted).
 *
 * Shapes   x (n, W) fp32, what is thought to be their centre taken off; W a multiple of 8
 * Cost     SUBSPACE_PASSES * 2 n W L multiplications: 0.1 s for 2,048 of 1,024 numbers and L 64
 * Threads  pure; the same rows for the same sample at one level of kernels
 * Source   Halko, Martinsson, Tropp, arXiv 0909.4061, §4.5 (subspace iteration); Johnson and
 *          Lindenstrauss (1984) for the random rows
 * Errors   MEMD_ENOMEM
 * Tests    tests/unit/test_subspace.c
 */
#ifndef MEMD_INDEX_SUBSPACE_H
#define MEMD_INDEX_SUBSPACE_H

#include <stddef.h>

struct error;

enum { SUBSPACE_PASSES = 4 };

struct subspace_sample {
    const float *x; /* (n, W) */
    size_t n, width;
};

/* ret_rows (leading + random, W); together they are at most W. */
int subspace_find(const struct subspace_sample *sample, size_t leading, size_t random,
                  float *ret_rows, struct error *err);

#endif
