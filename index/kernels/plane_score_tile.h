/* SPDX-License-Identifier: Apache-2.0 */
/* plane_score_tile.h — the walk of plane_score over tiles and blocks of query rows, for all
 * instruction sets; each gives its score_rows, one tile for one block, which is inlined.
 *
 * The list jumps, so the CPU's own prefetcher knows little: for each line that it reads, score_rows
 * asks for one of the tile `soon`, further in the list (plane_ahead.h).
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_SCORE_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_SCORE_TILE_H

#include "index/kernels/plane_ahead.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    SCORE_ROWS = 4,        /* query rows of a block */
    SCORE_STEP_BYTES = 64, /* 16 tokens × 8 dimensions */
};

/* One tile. */
struct scan {
    const struct plane_queries *queries;
    const uint8_t *codes, *soon;
    const uint16_t *key_scale; /* (16) */
    float *scores;             /* (M, stride) at the tile */
    size_t stride;
};

/* Query rows first … first + rows - 1 of a tile; `rows` ≤ SCORE_ROWS is a constant at each call. */
typedef void score_rows_fn(const struct scan *scan, size_t first, size_t rows);

INLINE void score_tile(const struct scan *scan, score_rows_fn *score_rows)
{
    size_t left = scan->queries->count, first = 0;
    for (; left >= SCORE_ROWS; left -= SCORE_ROWS, first += SCORE_ROWS)
        score_rows(scan, first, SCORE_ROWS);
    if (left == 3) score_rows(scan, first, 3);
    if (left == 2) score_rows(scan, first, 2);
    if (left == 1) score_rows(scan, first, 1);
}

INLINE void score_tiles(const struct plane_score_args *args, score_rows_fn *score_rows)
{
    const size_t tile_bytes = PLANE_TILE / 2 * args->queries->head_dim;
    struct ahead ahead = { .codes = args->key_hi, .soon = args->soon, .tiles = args->tiles,
                           .scale = args->key_scale, .count = args->count,
                           .tile_bytes = tile_bytes };
    ahead_begin(&ahead, 1);
    for (size_t at = 0; at < args->count; at++) {
        size_t tile = plane_tile(args->tiles, at);
        score_tile(&(struct scan){ .queries = args->queries,
                                   .codes = args->key_hi + tile * tile_bytes,
                                   .soon = ahead_next(&ahead, at),
                                   .key_scale = args->key_scale + tile * PLANE_TILE,
                                   .scores = args->scores + at * PLANE_TILE,
                                   .stride = args->stride },
                   score_rows);
    }
}

#endif
