/* SPDX-License-Identifier: Apache-2.0 */
/* sketches.h — a few numbers of a long vector from which its product with another can be guessed,
 * in cells of vectors that lie in about the same direction: a first look at a large set, behind
 * which the best are looked at exactly.
 *
 * A vector less the mean μ of the first SKETCHES_SAMPLE vectors is projected on S directions: half
 * of them those in which the sample differs most, half at random in the rest (subspace.h, P),
 * mixed by a rotation, so that all S numbers are about as large. They are kept as 7-bit codes with
 * one scale, beside the vector's product with the mean:
 *
 *     q·c = q·μ + μ·(c - μ) + (q - μ)·(c - μ)
 *         ≈ q·μ + μ·(c - μ) + Σ_S (P (q - μ))_i (P (c - μ))_i
 *
 * The numbers also say which of SKETCHES_CELLS cells the vector goes to, directions that were found
 * in the sample (kmeans.h), and a query looks only into the cells that are best for it. A cell is a
 * list of tiles to which vectors are only ever added, so it is ordered by position: what a query
 * sees of it, between the oldest state of a ring and its own limit, is found by bisection.
 *
 * Candidates of rank r ≪ n are among the best few r guesses where vectors are of low rank or
 * clustered, as states of a model are; docs/decisions/0048 has what was measured and what else was
 * tried. Nothing is trained but mean, directions and cells, once, from the first vectors of a
 * layer: a vector's sketch never changes, is the same however appends were cut, and can be read as
 * of any earlier token.
 *
 * Rejected: random directions alone (twice as many of the nearest are missed at the same S),
 * principal ones alone (blind to what the sample did not show), another basis for each stretch of a
 * ring (no better, unless it is learned from the stretch itself and all codes are made again),
 * FAISS (nothing in it is exact as of an earlier token, and its inverted lists hold whole vectors).
 *
 * Shapes   vectors are states of one head (vectors.h): W = 2 * rows.head_dim ≤ 2048, S a multiple
 *          of 8 up to 256, at most W / 2
 * Cost     coding: (S + 1) W multiplications, 3 us at W 1,024; what is learned, once: 0.2 s;
 *          scores: S bytes of each vector of the cells that are looked into
 * Memory   S + 20 bytes of each vector, half a tile for each cell; 4 (S + 2) W bytes of a layer
 * Threads  advance alone, everything else beside each other
 * Errors   MEMD_ENOMEM; then nothing has changed
 * Tests    tests/unit/test_vectors.c, tests/fault/test_states.c
 */
#ifndef MEMD_INDEX_SKETCHES_H
#define MEMD_INDEX_SKETCHES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/kernels/plane.h"
#include "index/rows.h"

struct error;
struct grown;

enum {
    SKETCHES_SAMPLE = 4096,
    SKETCHES_CELLS = 256,
    SKETCHES_TILE = PLANE_TILES, /* vectors that are scored together */
    SKETCHES_QUERIES = 16,
    SKETCHES_DIMS_MAX = 256,
    SKETCHES_WIDTH_MAX = 2048,
};

struct sketches_tile {
    float scales[SKETCHES_TILE];
    float biases[SKETCHES_TILE];  /* μ·(c - μ) */
    float squares[SKETCHES_TILE]; /* |c|² */
    uint64_t positions[SKETCHES_TILE];
    uint8_t codes[]; /* (SKETCHES_TILE, S) as plane_centroid wants them */
};

struct sketches_cell {
    struct sketches_tile **tiles;
    size_t capacity;
    uint64_t count; /* vectors; they fill tiles one after the other, by position */
};

struct sketches {
    size_t width, dims;          /* W, S; S 0 = there are none */
    uint64_t count;              /* vectors 0 … count-1 are coded; none before the whole sample */
    size_t tiles;                /* of all cells */
    float *mean;                 /* (W) */
    float *basis;                /* (S + 1, W): P, and the mean once more */
    float *centroids;            /* (SKETCHES_CELLS, S) of length 1 */
    float pull[SKETCHES_CELLS];  /* P μ · centroid */
    struct sketches_cell *cells; /* (SKETCHES_CELLS) */
};

void sketches_init(struct sketches *sketches, size_t width, size_t dims);
void sketches_fini(struct sketches *sketches);
size_t sketches_bytes(const struct sketches *sketches);

/* Code the vectors count … end-1 of `rows`, or none of them. squares (1, end) fp32 of |c|² */
int sketches_advance(struct sketches *sketches, const struct rows *rows,
                     const struct grown *squares, uint64_t end, struct error *err);

/* Some queries, coded. */
struct sketches_queries {
    int8_t codes[SKETCHES_QUERIES * SKETCHES_DIMS_MAX];
    float scale[SKETCHES_QUERIES], offset[SKETCHES_QUERIES];
    int32_t sum[SKETCHES_QUERIES];
    size_t count;
};

/* q (queries, W) fp32; queries ≤ SKETCHES_QUERIES; there are sketches. room: sketches_room floats,
 * in which (queries, SKETCHES_CELLS) of how near cells are is left for sketches_probe. */
const float *sketches_ask(const struct sketches *sketches, const float *q, size_t queries,
                          float *room, struct sketches_queries *ret_queries);

/* The best `probes` cells of each query; where `dot`, by product and not by distance: then what
 * lies along the mean counts. ret_askers (SKETCHES_CELLS): bit m of a cell is set where query m
 * looks into it. */
void sketches_probe(const struct sketches *sketches, const float *nearness, size_t queries,
                    size_t probes, bool dot, uint16_t *ret_askers);

size_t sketches_room(const struct sketches *sketches, size_t queries);

/* The queries of a set of bits. */
void sketches_choose(const struct sketches *sketches, const struct sketches_queries *queries,
                     unsigned bits, struct sketches_queries *ret_queries);

/* How many vectors of a cell lie before `position`. */
uint64_t sketches_before(const struct sketches *sketches, size_t cell, uint64_t position);

/* Guesses of q·c, less the tile's biases, for the vectors of a tile, as far as it is filled. `soon`
 * is scored next, or NULL. ret_products (queries, SKETCHES_TILE) 64-byte aligned */
void sketches_products(const struct sketches *sketches, const struct sketches_queries *queries,
                       const struct sketches_tile *tile, const struct sketches_tile *soon,
                       float *ret_products);

#endif
