/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans.h — spherical k-means of fp32 rows, as RetroInfer trains its clusters.
 *
 * A row belongs to the centroid with the largest inner product (ties: the lower number), a centroid
 * becomes the mean of its rows divided by its length. The first assignment is to centroids as they
 * are given (not normalised); a centroid that loses all its rows stays where it was. Both as in the
 * published code.
 *
 * Shapes   rows (count, D), centroids (C, D) fp32, contiguous, D a multiple of 8
 * Cost     count * C * D multiplications per pass, with the score kernel of the backend: blocks of
 *          rows that stay in an L1 cache go over all centroids
 * Memory   kmeans_train: sums of C * D floats on the heap
 * Threads  pure
 * Errors   MEMD_ENOMEM · what `stop` returns
 * Tests    tests/unit/test_zones.c, against NumPy
 */
#ifndef MEMD_INDEX_KMEANS_H
#define MEMD_INDEX_KMEANS_H

#include <stddef.h>
#include <stdint.h>

struct error;

struct kmeans {
    const float *rows; /* (count, D) */
    size_t count, head_dim;
    float *centroids;  /* (C, D) in, out */
    size_t clusters;   /* C ≥ 1 */
    uint32_t *labels;  /* (count) out: the centroid of each row */
    int (*stop)(void *arg); /* may be NULL */
    void *stop_arg;
};

/* labels of rows for the centroids as they are. */
void kmeans_assign(const struct kmeans *kmeans);

/* `passes` times: assign, then new centroids. */
int kmeans_train(const struct kmeans *kmeans, size_t passes, struct error *err);

#endif
