/* SPDX-License-Identifier: Apache-2.0 */
/* plane_weigh_tile.h — the walk of plane_weigh over tiles and query rows, for all instruction sets;
 * each gives its struct weigh_isa, whose functions are inlined.
 *
 * Weights times value steps of the 16 tokens of a tile become integers 0 … 255 against their
 * largest, so that a tile is one sum of products of integers:
 *
 *     n_i = round(w_i step_i / unit),  unit = max(w_i step_i) / 255
 *     Σ_i w_i step_i (h_i - 7.5) ≈ unit (Σ_i n_i h_i - 7.5 Σ_i n_i)
 *
 * The second term is one number per query row and tile, the same for all dimensions, and is taken
 * off at the end. With the rounded n_i in both terms their rounding only weighs h - 7.5, never the
 * whole code: the error of a dimension is at most Σ_i |h_i - 7.5| unit / 2.
 *
 * Rejected: floats of codes (8 conversions and 8 multiply-adds for one vpmaddubsw); one unit for
 * all tiles (rounds away the tiles that a peaked row hardly weighs, which together may count).
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_WEIGH_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_WEIGH_TILE_H

#include <stdbool.h>

#include "index/kernels/plane_ahead.h"

#define INLINE static inline __attribute__((always_inline))

/* Weights times steps of a tile that are all smaller count as none: their inverse would
 * overflow. */
#define WEIGHT_MIN 1e-30F

enum {
    WEIGH_ROWS = 4,   /* query rows of a block */
    WEIGH_CHUNK = 16, /* query rows that go over a batch while it is in L1 */
    WEIGH_BATCH = 8,  /* tiles whose weights are rounded together */
    QUADS = 4,        /* of tokens of a tile */
};

/* The weights of a row and tile. */
struct rounded {
    int32_t quads[QUADS]; /* four bytes each: n of tokens 4 quad … 4 quad + 3 */
    float unit;           /* 0: the tile has no weight for this row */
    int32_t sum;          /* Σ n */
};

/* A tile, and the query rows that weigh it. */
struct weighing {
    const uint8_t *codes, *soon; /* [2][D][4]; the tile to prefetch */
    size_t head_dim;
    struct rounded weights[WEIGH_ROWS];
    float *acc[WEIGH_ROWS]; /* (D) each */
};

struct weigh_isa {
    /* weights, value_scale (16) */
    void (*round)(const float *weights, const uint16_t *value_scale, struct rounded *ret_rounded);
    /* acc += unit * Σ n h over `count` tiles with the same `rows` rows, a constant at each call. */
    void (*all)(const struct weighing *batch, size_t count, size_t rows);
};

/* `all` tile by tile: `groups` takes 16 dimensions from d (two groups, which share the broadcasts
 * of the weights) or 8; `groups` and `rows` are constants. */
INLINE void weigh_each(void (*groups)(const struct weighing *w, size_t d, size_t groups,
                                      size_t rows),
                       const struct weighing *batch, size_t count, size_t rows)
{
    for (size_t i = 0; i < count; i++) {
        size_t d = 0;
        for (; d + 16 <= batch->head_dim; d += 16) groups(&batch[i], d, 2, rows);
        if (d < batch->head_dim) groups(&batch[i], d, 1, rows);
    }
}

/* Round the weights that the rows of `args`, M ≤ WEIGH_ROWS, have in the `at`-th tile of the list;
 * false where none has any. less (M) grows by unit * Σ n. */
INLINE bool weigh_round(const struct weigh_isa *isa, const struct plane_weigh_args *args,
                        size_t at, struct weighing *w, float *less)
{
    const uint16_t *steps = args->value_scale + plane_tile(args->tiles, at) * PLANE_TILE;
    bool active = false;
    for (size_t m = 0; m < args->queries; m++) {
        struct rounded *weights = &w->weights[m];
        isa->round(args->weights + m * args->stride + at * PLANE_TILE, steps, weights);
        w->acc[m] = args->acc + m * args->head_dim;
        less[m] += weights->unit * (float)weights->sum;
        active |= weights->unit > 0.0F;
    }
    return active;
}

/* `count` ≤ WEIGH_BATCH tiles of the list from `begin`. All weights first: rounding those of a tile
 * is a long chain of instructions, which nothing waits for when those of eight overlap. */
INLINE void weigh_batch(const struct weigh_isa *isa, const struct plane_weigh_args *args,
                        size_t begin, size_t count, float *less, const struct ahead *ahead)
{
    const size_t tile_bytes = PLANE_TILE / 2 * args->head_dim;
    struct weighing batch[WEIGH_BATCH];
    size_t active = 0;
    for (size_t at = begin; at < begin + count; at++) {
        struct weighing *w = &batch[active];
        w->codes = args->value_hi + plane_tile(args->tiles, at) * tile_bytes;
        w->soon = ahead_next(ahead, at);
        w->head_dim = args->head_dim;
        active += weigh_round(isa, args, at, w, less);
    }
    if (active == 0) return;
    switch (args->queries) {
    case 1: isa->all(batch, active, 1); break;
    case 2: isa->all(batch, active, 2); break;
    case 3: isa->all(batch, active, 3); break;
    default: isa->all(batch, active, 4); break;
    }
}

/* The same for at most `most` query rows from `first`. */
static struct plane_weigh_args weigh_part(const struct plane_weigh_args *args, size_t first,
                                          size_t most)
{
    struct plane_weigh_args part = *args;
    part.weights += first * args->stride;
    part.acc += first * args->head_dim;
    part.queries -= first;
    if (part.queries > most) part.queries = most;
    return part;
}

/* All tiles for at most WEIGH_CHUNK query rows. */
INLINE void weigh_chunk(const struct weigh_isa *isa, const struct plane_weigh_args *args)
{
    float less[WEIGH_CHUNK] = { 0.0F };
    struct ahead ahead = { .codes = args->value_hi, .soon = args->soon, .tiles = args->tiles,
                           .scale = args->value_scale, .count = args->count,
                           .tile_bytes = PLANE_TILE / 2 * args->head_dim };
    ahead_begin(&ahead, WEIGH_BATCH);
    for (size_t at = 0; at < args->count; at += WEIGH_BATCH) {
        size_t count = args->count - at < WEIGH_BATCH ? args->count - at : WEIGH_BATCH;
        for (size_t first = 0; first < args->queries; first += WEIGH_ROWS) {
            struct plane_weigh_args part = weigh_part(args, first, WEIGH_ROWS);
            weigh_batch(isa, &part, at, count, less + first, &ahead);
        }
    }
    for (size_t m = 0; m < args->queries; m++)
        for (size_t d = 0; d < args->head_dim; d++)
            args->acc[m * args->head_dim + d] -= 7.5F * less[m];
}

INLINE void weigh_tiles(const struct weigh_isa *isa, const struct plane_weigh_args *args)
{
    for (size_t first = 0; first < args->queries; first += WEIGH_CHUNK) {
        struct plane_weigh_args part = weigh_part(args, first, WEIGH_CHUNK);
        weigh_chunk(isa, &part);
    }
}

#endif
