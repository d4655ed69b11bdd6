/* SPDX-License-Identifier: Apache-2.0 */
/* sketches.h — a few numbers of a long vector from which its product with another can be guessed: a
 * first look at a large set, behind which the best are looked at exactly.
 *
 * A vector less the mean μ of the first SKETCHES_MEAN vectors is rotated (rotation.h, which spreads
 * it evenly) and the last S of its W coordinates are kept, as 7-bit codes with one scale, beside
 * its product with the mean:
 *
 *     q·c = q·μ + μ·(c - μ) + (q - μ)·(c - μ)
 *         ≈ q·μ + μ·(c - μ) + W/S Σ_S (R(q - μ))_i (R(c - μ))_i
 *
 * The error of a product is about |q - μ| |c - μ| / √S, so that candidates of rank r ≪ n are found
 * among the best few hundred guesses where vectors are clustered as states of a model are (figures
 * in docs/METHODS.md). Nothing is trained but the mean, so a vector's sketch never changes.
 *
 * Rejected: inverted lists (seconds of k-means in front of a query, lists that go stale as a ring
 * turns over), FAISS (nothing in it is exact as of an earlier token), 4-bit codes of all W
 * coordinates (at W 1,024 a scan reads three times as much, for an accuracy that the exact look
 * behind it makes up for anyway).
 *
 * Shapes   vectors are states of one head (vectors.h): W = 2 * rows.head_dim ≤ 1024, S a multiple
 *          of 8 up to 256, less than W
 * Cost     coding: a rotation, 5 us at W 1,024; scores: S bytes of each vector
 * Memory   S + 8 bytes of each vector
 * Threads  advance alone, everything else beside each other
 * Errors   MEMD_ENOMEM
 * Tests    tests/unit/test_vectors.c
 */
#ifndef MEMD_INDEX_SKETCHES_H
#define MEMD_INDEX_SKETCHES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/grown.h"
#include "index/kernels/plane.h"
#include "index/rows.h"

struct error;

enum {
    SKETCHES_MEAN = 1024,
    SKETCHES_TILE = PLANE_TILES, /* vectors that are scored together */
    SKETCHES_QUERIES = 16,
    SKETCHES_DIMS_MAX = 256,
    SKETCHES_WIDTH_MAX = 1024,
};

struct sketches {
    size_t width, dims;  /* W, S; S 0 = there are none */
    uint64_t count;      /* vectors 0 … count-1 are coded; none before SKETCHES_MEAN are there */
    float *mean;         /* (W) */
    struct grown codes;  /* (1, count) of S bytes, in tiles as plane_centroid wants them */
    struct grown scales; /* (1, count) fp32 */
    struct grown biases; /* (1, count) fp32, μ·(c - μ) */
};

void sketches_init(struct sketches *sketches, size_t width, size_t dims);
void sketches_fini(struct sketches *sketches);
size_t sketches_bytes(const struct sketches *sketches);

/* Code the vectors count … end-1 of `rows`. */
int sketches_advance(struct sketches *sketches, const struct rows *rows, uint64_t end,
                     struct error *err);

/* Some queries, coded. */
struct sketches_queries {
    int8_t codes[SKETCHES_QUERIES * SKETCHES_DIMS_MAX];
    float scale[SKETCHES_QUERIES], offset[SKETCHES_QUERIES];
    int32_t sum[SKETCHES_QUERIES];
    size_t count;
};

/* q (queries, W) fp32; queries ≤ SKETCHES_QUERIES; there are sketches. */
void sketches_ask(const struct sketches *sketches, const float *q, size_t queries,
                  struct sketches_queries *ret_queries);

/* Guesses of q·c, less what sketches_biases says, for the vectors tile * SKETCHES_TILE and the ones
 * behind it, as far as they are coded. ret_products (queries, SKETCHES_TILE) 64-byte aligned */
void sketches_products(const struct sketches *sketches, const struct sketches_queries *queries,
                       uint64_t tile, float *ret_products);

/* μ·(c - μ) of the vectors from `position` on, to the end of their tile. */
const float *sketches_biases(const struct sketches *sketches, uint64_t position);

#endif
