/* SPDX-License-Identifier: Apache-2.0 */
/* score_tile.h — score over tiles of rows, written once over the vocabulary of vec_<isa>.h. Scores
 * of a block go through a small tile, since a block may write past its rows and the caller's rows
 * are dense. */
#ifndef MEMD_ATTENTION_KERNELS_SCORE_TILE_H
#define MEMD_ATTENTION_KERNELS_SCORE_TILE_H

#include <assert.h>
#include <string.h>

#include "attention/kernels/score.h"
#include "attention/kernels/tile.h"
#include "proto/limits.h"

static void score_block(const struct score_args *args, struct tile *tile, size_t begin,
                        size_t first)
{
    size_t left = args->queries - first;
    tile->queries = left < TILE_QUERIES ? left : TILE_QUERIES;
    tile->q = args->q + first * args->head_dim;
    tile_scores(tile);
    for (size_t m = 0; m < tile->queries; m++)
        memcpy(args->scores + (first + m) * args->tokens + begin, tile->scores + m * TILE_STRIDE,
               tile->count * sizeof *args->scores);
}

static void score_tiles(const struct score_args *args)
{
    assert(args->head_dim % 8 == 0 && args->head_dim <= LIMIT_HEAD_DIM);
    assert(dtype_is_float(args->dtype));
    _Alignas(64) float scores[TILE_QUERIES * TILE_STRIDE];
    struct rows k = { args->k, args->k_stride_bytes, args->dtype };
    size_t step = tile_rows(args->head_dim);
    for (size_t begin = 0; begin < args->tokens; begin += step) {
        struct tile tile = { .head_dim = args->head_dim, .scores = scores,
                             .k = rows_from(&k, begin) };
        size_t left = args->tokens - begin;
        tile.count = left < step ? left : step;
        tile.soon = rows_from(&tile.k, tile.count);
        tile.ahead = TILE_AHEAD_BYTES / (args->head_dim * dtype_bytes(args->dtype));
        if (tile.ahead > tile.count) tile.ahead = tile.count;
        for (size_t first = 0; first < args->queries; first += TILE_QUERIES) {
            score_block(args, &tile, begin, first);
            tile.ahead = 0; /* near already */
        }
    }
}

#endif
