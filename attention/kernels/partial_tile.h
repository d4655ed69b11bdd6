/* SPDX-License-Identifier: Apache-2.0 */
/* partial_tile.h — partial over tiles of rows, written once over the vocabulary of vec_<isa>.h.
 *
 * Per tile (about 16 KiB of K): scores, the tile's maximum, exp, weighted sum of V. The accumulators are
 * rescaled only when the maximum grows, which after a few tiles hardly ever happens. While a tile's keys are
 * read its values are prefetched, while its values are read the next tile's keys: the two streams that
 * memory sees never wait for arithmetic, and that decides the speed of a decode step.
 *
 * Up to four queries read 16-bit rows directly. More queries than that go over a tile again and again, so
 * the tile is first widened to fp32 (64 KiB with both K and V, an L2 cache).
 *
 * The weighted sum goes down the rows with a few columns of all queries in registers, instead of along each
 * row with accumulators in memory: that would load and store them once per row.
 */
#ifndef MEMD_ATTENTION_KERNELS_PARTIAL_TILE_H
#define MEMD_ATTENTION_KERNELS_PARTIAL_TILE_H

#include <assert.h>
#include <math.h>

#include "attention/kernels/exp.h"
#include "attention/kernels/partial.h"
#include "attention/kernels/tile.h"
#include "proto/limits.h"

/* acc columns d … d + columns * VEC_FLOATS - 1 of `queries` queries += weights · V.  acc (queries, D) */
INLINE void weigh_block(const struct tile *tile, float *acc, size_t d, size_t columns,
                        size_t queries, uint32_t dtype)
{
    vec sums[TILE_QUERIES][4];
    for (size_t m = 0; m < queries; m++)
        for (size_t c = 0; c < columns; c++)
            sums[m][c] = vec_load(acc + m * tile->head_dim + d + c * VEC_FLOATS);
    const unsigned char *v = tile->v.at;
    const unsigned char *soon = tile->soon.at + d * dtype_bytes(tile->soon.dtype);
    for (size_t row = 0; row < tile->count; row++, v += tile->v.stride_bytes) {
        if (row < tile->soon_count)
            prefetch(soon + row * tile->soon.stride_bytes,
                     columns * VEC_FLOATS * dtype_bytes(dtype));
        vec value[4];
        for (size_t c = 0; c < columns; c++)
            value[c] = vec_load_row(v, d + c * VEC_FLOATS, dtype);
        for (size_t m = 0; m < queries; m++) {
            vec weight = vec_set(tile->scores[m * TILE_STRIDE + row]);
            for (size_t c = 0; c < columns; c++)
                sums[m][c] = vec_fma(weight, value[c], sums[m][c]);
        }
    }
    for (size_t m = 0; m < queries; m++)
        for (size_t c = 0; c < columns; c++)
            vec_store(acc + m * tile->head_dim + d + c * VEC_FLOATS, sums[m][c]);
}

INLINE void weigh_rows(const struct tile *tile, float *acc, size_t queries, uint32_t dtype)
{
    const size_t columns = queries == TILE_QUERIES ? VEC_COLUMNS_4 : 4;
    size_t d = 0;
    for (; d + columns * VEC_FLOATS <= tile->head_dim; d += columns * VEC_FLOATS)
        weigh_block(tile, acc, d, columns, queries, dtype);
    for (; d < tile->head_dim; d += VEC_FLOATS) weigh_block(tile, acc, d, 1, queries, dtype);
}

INLINE void weigh_queries(const struct tile *tile, float *acc, uint32_t dtype)
{
    switch (tile->queries) {
    case 1: weigh_rows(tile, acc, 1, dtype); break;
    case 2: weigh_rows(tile, acc, 2, dtype); break;
    case 3: weigh_rows(tile, acc, 3, dtype); break;
    default: weigh_rows(tile, acc, 4, dtype); break;
    }
}

static void weigh(const struct tile *tile, float *acc)
{
    switch (tile->v.dtype) {
    case DTYPE_FP32: weigh_queries(tile, acc, DTYPE_FP32); break;
    case DTYPE_FP16: weigh_queries(tile, acc, DTYPE_FP16); break;
    default: weigh_queries(tile, acc, DTYPE_BF16); break;
    }
}

static void rescale(float *acc, size_t head_dim, float factor)
{
    for (size_t d = 0; d < head_dim; d += VEC_FLOATS)
        vec_store(acc + d, vec_mul(vec_load(acc + d), vec_set(factor)));
}

/* Turn scores (`count` rows, of which `visible` count) into weights exp(score - max) and carry max, sum and
 * acc of query `m` along. */
static void soften(const struct partial_args *args, size_t m, float *scores, size_t visible,
                   size_t count)
{
    size_t padded = (count + VEC_FLOATS - 1) / VEC_FLOATS * VEC_FLOATS;
    for (size_t row = visible; row < padded; row++) scores[row] = -INFINITY;
    vec tops = vec_set(args->max[m]);
    for (size_t row = 0; row < padded; row += VEC_FLOATS)
        tops = vec_max(vec_load(scores + row), tops);
    float top = vec_largest(tops);
    if (top > args->max[m]) {
        float factor = expf(args->max[m] - top); /* 0 at the first rows */
        args->max[m] = top;
        args->sum[m] *= factor;
        rescale(args->acc + m * args->head_dim, args->head_dim, factor);
    }
    vec shift = vec_set(top == -INFINITY ? 0.0F : -top);
    vec sums = vec_set(0.0F);
    for (size_t row = 0; row < padded; row += VEC_FLOATS) {
        vec weight = vec_exp(vec_add(vec_load(scores + row), shift));
        vec_store(scores + row, weight);
        sums = vec_add(sums, weight);
    }
    args->sum[m] += vec_sum(sums);
}

/* Rows of this tile that query `m` sees. */
static size_t visible_rows(const struct partial_args *args, size_t m, size_t begin, size_t count)
{
    size_t visible = args->visible[m] > begin ? args->visible[m] - begin : 0;
    return visible < count ? visible : count;
}

/* Run the tile, whose first row is `begin`, for its queries first … first + queries - 1. While its values
 * are read, `next_count` rows of `next_k` are prefetched. */
static void run_block(const struct partial_args *args, const struct tile *tile, size_t begin,
                      size_t first, size_t next_count)
{
    size_t visible[TILE_QUERIES], count = 0;
    for (size_t m = 0; m < tile->queries; m++) {
        visible[m] = visible_rows(args, first + m, begin, tile->count);
        if (visible[m] > count) count = visible[m];
    }
    if (count == 0) return;
    struct tile part = *tile;
    part.q = args->q + first * args->head_dim;
    part.count = count;
    part.soon = tile->v;
    part.soon_count = count;
    tile_scores(&part);
    for (size_t m = 0; m < tile->queries; m++)
        soften(args, first + m, part.scores + m * TILE_STRIDE, visible[m], count);
    part.soon = tile->soon;
    part.soon_count = next_count;
    weigh(&part, args->acc + first * args->head_dim);
}

/* A tile for more queries than one block: each of its rows is widened once for all of them. */
static void run_wide(const struct partial_args *args, struct tile *tile, size_t begin)
{
    _Alignas(64) float keys[TILE_FLOATS], values[TILE_FLOATS];
    if (tile->k.dtype != DTYPE_FP32) tile_widen(&tile->k, tile->count, args->head_dim, keys);
    if (tile->v.dtype != DTYPE_FP32) tile_widen(&tile->v, tile->count, args->head_dim, values);
    for (size_t first = 0; first < args->queries; first += TILE_QUERIES) {
        size_t left = args->queries - first;
        tile->queries = left < TILE_QUERIES ? left : TILE_QUERIES;
        run_block(args, tile, begin, first, 0);
    }
}

static void partial_tiles(const struct partial_args *args)
{
    assert(args->head_dim % 8 == 0 && args->head_dim <= LIMIT_HEAD_DIM);
    assert(dtype_is_float(args->k_dtype) && dtype_is_float(args->v_dtype));
    _Alignas(64) float scores[TILE_QUERIES * TILE_STRIDE];
    struct rows k = { args->k, args->k_stride_bytes, args->k_dtype };
    struct rows v = { args->v, args->v_stride_bytes, args->v_dtype };
    size_t needed = 0; /* rows that any query sees */
    for (size_t m = 0; m < args->queries; m++) {
        assert(args->visible[m] <= args->tokens);
        if (args->visible[m] > needed) needed = args->visible[m];
    }
    size_t step = tile_rows(args->head_dim);
    for (size_t begin = 0; begin < needed; begin += step) {
        struct tile tile = { .head_dim = args->head_dim, .queries = args->queries,
                             .scores = scores, .k = rows_from(&k, begin),
                             .v = rows_from(&v, begin), .soon = rows_from(&k, begin + step) };
        tile.count = needed - begin < step ? needed - begin : step;
        size_t after = needed - begin - tile.count;
        if (args->queries > TILE_QUERIES) run_wide(args, &tile, begin);
        else run_block(args, &tile, begin, 0, after < step ? after : step);
    }
}

#endif
