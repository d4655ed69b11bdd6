/* SPDX-License-Identifier: Apache-2.0 */
/* plane_soften_tile.h — plane_soften, written once over the vocabulary of vec_<isa>.h. Sums are
 * taken per tile: the caller predicts errors cluster by cluster.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_SOFTEN_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_SOFTEN_TILE_H

#include "attention/kernels/exp.h"
#include "index/kernels/plane.h"

static void soften_tiles(const struct plane_soften_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        vec shift = vec_set(-args->shift[m]);
        for (size_t at = 0; at < args->count; at++) {
            float *scores = args->scores + m * args->stride + at * PLANE_TILE;
            vec sum = vec_set(0.0F), square = vec_set(0.0F);
            for (size_t i = 0; i < PLANE_TILE; i += VEC_FLOATS) {
                vec weight = vec_exp(vec_add(vec_load(scores + i), shift));
                vec_store(scores + i, weight);
                sum = vec_add(sum, weight);
                square = vec_fma(weight, weight, square);
            }
            args->tile_sum[m * args->count + at] = vec_sum(sum);
            args->tile_square[m * args->count + at] = vec_sum(square);
        }
    }
}

#endif
