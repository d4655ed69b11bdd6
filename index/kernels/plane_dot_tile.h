/* SPDX-License-Identifier: Apache-2.0 */
/* plane_dot_tile.h — plane_dot, written once over the vocabulary of vec_<isa>.h: four query rows at
 * a time, whose sums across lanes are made together. Products of codes are whole numbers and their
 * sums are below 2^24: floats hold them exactly.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_DOT_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_DOT_TILE_H

#include "index/kernels/plane.h"

enum { DOT_ROWS = 4 };

/* Centroid c for the query rows from `first` on, DOT_ROWS of them or those that are left: then the
 * last one is counted again. */
static inline void dot_rows(const struct plane_dot_args *args, size_t c, size_t first)
{
    const struct plane_queries *queries = args->queries;
    const size_t head_dim = queries->head_dim, left = queries->count - first;
    const int8_t *codes = (const int8_t *)args->codes + c * head_dim; /* 0 … 127 */
    const int8_t *q8[DOT_ROWS];
    float dots[DOT_ROWS];
    vec sums[DOT_ROWS];
    for (size_t j = 0; j < DOT_ROWS; j++) {
        q8[j] = queries->q8 + (first + (j < left ? j : left - 1)) * head_dim;
        sums[j] = vec_set(0.0F);
    }
    for (size_t d = 0; d < head_dim; d += VEC_FLOATS) {
        vec code = vec_load_s8(codes + d);
        for (size_t j = 0; j < DOT_ROWS; j++)
            sums[j] = vec_fma(code, vec_load_s8(q8[j] + d), sums[j]);
    }
    vec_store_sums(dots, sums);
    for (size_t j = 0; j < DOT_ROWS && j < left; j++) {
        size_t m = first + j;
        args->scores[m * PLANE_TILES + c] = queries->scale[m] * args->scale[c] *
                                                (dots[j] - 63.5F * (float)queries->sum[m]) +
                                            queries->offset[m];
    }
}

static void dot_centroids(const struct plane_dot_args *args)
{
    for (uint64_t left = args->clusters; left != 0; left &= left - 1)
        for (size_t first = 0; first < args->queries->count; first += DOT_ROWS)
            dot_rows(args, (size_t)__builtin_ctzll(left), first);
}

#endif
