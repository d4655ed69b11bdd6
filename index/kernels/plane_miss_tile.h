/* SPDX-License-Identifier: Apache-2.0 */
/* plane_miss_tile.h — plane_miss, written once over the vocabulary of vec_<isa>.h. The sum stays in
 * L1: what is read is a few kilobytes, and the squares of one cluster are done with it. */
#ifndef MEMD_INDEX_KERNELS_PLANE_MISS_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_MISS_TILE_H

#include "index/kernels/plane.h"

static void miss_clusters(const struct plane_miss_args *args)
{
    const size_t head_dim = args->head_dim;
    const vec minus = vec_set(-1.0F);
    for (size_t d = 0; d < head_dim; d += VEC_FLOATS) vec_store(args->sum + d, vec_set(0.0F));
    for (size_t i = 0; i < args->count; i++) {
        const float *values = args->values + i * args->stride, *mean = args->means + i * head_dim;
        const vec more = vec_set(args->more[i]), weight = vec_set(args->weight[i]);
        vec squares = vec_set(0.0F);
        for (size_t d = 0; d < head_dim; d += VEC_FLOATS) {
            vec apart = vec_fma(minus, vec_load(args->output + d), vec_load(mean + d));
            vec e = vec_fma(more, apart, vec_load(values + d));
            vec_store(args->sum + d, vec_fma(weight, e, vec_load(args->sum + d)));
            squares = vec_fma(e, e, squares);
        }
        args->square[i] = vec_sum(squares);
    }
}

#endif
