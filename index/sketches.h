/* SPDX-License-Identifier: Apache-2.0 */
/* sketches.h — a few numbers of a long vector from which its product with another can be guessed: a
 * first look at a large set, behind which the best are looked at exactly.
 *
 * A vector less the mean μ of the first SKETCHES_SAMPLE vectors is projected on S directions: half
 * of them those in which the sample differs most, half at random in the rest (subspace.h, P),
 * mixed by a rotation, so that all S numbers are about as large. They are kept as 7-bit codes with
 * one scale, beside the vector's product with the mean:
 *
 *     q·c = q·μ + μ·(c - μ) + (q - μ)·(c - μ)
 *         ≈ q·μ + μ·(c - μ) + Σ_S (P (q - μ))_i (P (c - μ))_i
 *
 * Candidates of rank r ≪ n are among the best few r guesses where vectors are of low rank or
 * clustered, as states of a model are; docs/decisions/0048 has what was measured and what else was
 * tried. Nothing is trained but mean and directions, once, from the first vectors of a layer: a
 * vector's sketch never changes, is the same however appends were cut, and can be read as of any
 * earlier token.
 *
 * Rejected: random directions alone (half as many of the nearest are missed by principal ones with
 * random ones beside them, at the same S), principal ones alone (blind to what the sample did not
 * show), another basis for each stretch of a ring (better by as little as a few more S, and queries
 * would be projected for each), inverted lists (seconds of k-means in front of a query, lists that
 * go stale as a ring turns over), FAISS (nothing in it is exact as of an earlier token).
 *
 * Shapes   vectors are states of one head (vectors.h): W = 2 * rows.head_dim ≤ 2048, S a multiple
 *          of 8 up to 256, at most W / 2
 * Cost     coding: (S + 1) W multiplications, 3 us at W 1,024; the basis once, 0.1 s; scores: S
 *          bytes of each vector
 * Memory   S + 8 bytes of each vector, 4 (S + 2) W bytes of a layer
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
    SKETCHES_SAMPLE = 2048,
    SKETCHES_TILE = PLANE_TILES, /* vectors that are scored together */
    SKETCHES_QUERIES = 16,
    SKETCHES_DIMS_MAX = 256,
    SKETCHES_WIDTH_MAX = 2048,
};

struct sketches {
    size_t width, dims;  /* W, S; S 0 = there are none */
    uint64_t count;      /* vectors 0 … count-1 are coded; none before SKETCHES_SAMPLE are there */
    float *mean;         /* (W) */
    float *basis;        /* (S + 1, W): P, and the mean once more */
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

/* q (queries, W) fp32; queries ≤ SKETCHES_QUERIES; there are sketches. room (queries, W + S + 1) */
void sketches_ask(const struct sketches *sketches, const float *q, size_t queries, float *room,
                  struct sketches_queries *ret_queries);

/* Guesses of q·c, less what sketches_biases says, for the vectors tile * SKETCHES_TILE and the ones
 * behind it, as far as they are coded. ret_products (queries, SKETCHES_TILE) 64-byte aligned */
void sketches_products(const struct sketches *sketches, const struct sketches_queries *queries,
                       uint64_t tile, float *ret_products);

/* μ·(c - μ) of the vectors from `position` on, to the end of their tile. */
const float *sketches_biases(const struct sketches *sketches, uint64_t position);

#endif
