/* SPDX-License-Identifier: Apache-2.0 */
/* plane_soften_tile.h — plane_soften, written once over the vocabulary of vec_<isa>.h. Sums are
 * taken per tile: the caller predicts errors cluster by cluster; those of four tiles are added
 * across lanes together.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_SOFTEN_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_SOFTEN_TILE_H

#include <string.h>

#include "attention/kernels/exp.h"
#include "index/kernels/plane.h"

enum { SOFTEN_TILES = 4 };

/* `count` ≤ SOFTEN_TILES tiles of one row; sums, squares (count) */
static inline void soften_four(float *scores, size_t count, vec shift, float *sums,
                               float *squares)
{
    vec sum[SOFTEN_TILES], square[SOFTEN_TILES];
    float four[SOFTEN_TILES];
    for (size_t at = 0; at < SOFTEN_TILES; at++) sum[at] = square[at] = vec_set(0.0F);
    for (size_t at = 0; at < count; at++) {
        for (size_t i = 0; i < PLANE_TILE; i += VEC_FLOATS) {
            float *here = scores + at * PLANE_TILE + i;
            vec weight = vec_exp(vec_add(vec_load(here), shift));
            vec_store(here, weight);
            sum[at] = vec_add(sum[at], weight);
            square[at] = vec_fma(weight, weight, square[at]);
        }
    }
    vec_store_sums(four, sum);
    memcpy(sums, four, count * sizeof *sums);
    vec_store_sums(four, square);
    memcpy(squares, four, count * sizeof *squares);
}

static void soften_tiles(const struct plane_soften_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        vec shift = vec_set(-args->shift[m]);
        for (size_t at = 0; at < args->count; at += SOFTEN_TILES) {
            size_t left = args->count - at, here = m * args->count + at;
            float *scores = args->scores + m * args->stride + at * PLANE_TILE;
            if (left >= SOFTEN_TILES)
                soften_four(scores, SOFTEN_TILES, shift, args->tile_sum + here,
                            args->tile_square + here);
            else
                soften_four(scores, left, shift, args->tile_sum + here, args->tile_square + here);
        }
    }
}

#endif
