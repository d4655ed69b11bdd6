/* SPDX-License-Identifier: Apache-2.0 */
/* plane_means_tile.h — plane_means, written once over the vocabulary of vec_<isa>.h.
 *
 * As weigh of attention/kernels/partial_tile.h: along a few rows at once with their weights in
 * registers, sums in L1.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_MEANS_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_MEANS_TILE_H

#include "index/kernels/plane.h"

#define INLINE static inline __attribute__((always_inline))

enum { MEANS_QUERIES = 4, MEANS_ROWS = VEC_ROWS };

/* Query rows first … first + queries - 1 of the clusters in `list`. */
struct means_block {
    const struct plane_means_args *args;
    size_t first;
    const uint8_t *list;
};

INLINE void means_rows(const struct means_block *block, size_t queries, size_t rows)
{
    const struct plane_means_args *args = block->args;
    const size_t head_dim = args->head_dim;
    float *acc = args->acc + block->first * head_dim;
    const int8_t *row[MEANS_ROWS];
    vec weight[MEANS_QUERIES][MEANS_ROWS];
    for (size_t i = 0; i < rows; i++) {
        size_t c = block->list[i];
        row[i] = args->means + c * head_dim;
        for (size_t m = 0; m < queries; m++)
            weight[m][i] = vec_set(args->mass[(block->first + m) * PLANE_TILES + c] *
                                   args->scale[c]);
    }
    for (size_t d = 0; d < head_dim; d += VEC_FLOATS) {
        vec mean[MEANS_ROWS];
        for (size_t i = 0; i < rows; i++) mean[i] = vec_load_s8(row[i] + d);
        for (size_t m = 0; m < queries; m++) {
            vec sum = vec_load(acc + m * head_dim + d);
            for (size_t i = 0; i < rows; i++) sum = vec_fma(weight[m][i], mean[i], sum);
            vec_store(acc + m * head_dim + d, sum);
        }
    }
}

INLINE void means_list(struct means_block *block, size_t count, size_t queries)
{
    size_t at = 0;
    for (; at + MEANS_ROWS <= count; at += MEANS_ROWS, block->list += MEANS_ROWS)
        means_rows(block, queries, MEANS_ROWS);
    for (; at < count; at++, block->list++) means_rows(block, queries, 1);
}

static void means_tiles(const struct plane_means_args *args)
{
    uint8_t list[PLANE_TILES];
    size_t count = 0;
    for (uint64_t clusters = args->clusters; clusters != 0; clusters &= clusters - 1)
        list[count++] = (uint8_t)__builtin_ctzll(clusters);
    for (size_t first = 0; first < args->queries; first += MEANS_QUERIES) {
        size_t queries = args->queries - first;
        if (queries > MEANS_QUERIES) queries = MEANS_QUERIES;
        struct means_block block = { args, first, list };
        switch (queries) {
        case 1: means_list(&block, count, 1); break;
        case 2: means_list(&block, count, 2); break;
        case 3: means_list(&block, count, 3); break;
        default: means_list(&block, count, 4); break;
        }
    }
}

#endif
