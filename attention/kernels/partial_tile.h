/* SPDX-License-Identifier: Apache-2.0 */
/* partial_tile.h — partial over tiles of rows, written once over the vocabulary of vec_<isa>.h.
 *
 * Per tile (about 24 KiB of K): scores, the tile's maximum, exp, weighted sum of V. The
 * accumulators are rescaled only when the maximum grows, which after a few tiles hardly ever
 * happens. Both passes read their rows in order, a few rows at once, and prefetch one steady
 * stream: keys, then values, then the next keys. That stream never waits for arithmetic, and it
 * decides the speed of a decode step.
 *
 * The weighted sum goes along the rows with the weights in registers and the accumulators in L1.
 * Down the rows with accumulators in registers saves loads and stores, but reads memory in columns:
 * half the speed.
 *
 * Queries go over a tile four at a time, and widen its 16-bit rows anew each time. A copy of the
 * tile in fp32 does not pay: it falls out of the first-level cache, and conversions run beside the
 * multiply-adds (8 to 64 queries: a tenth to a third less time without, decisions/0043).
 */
#ifndef MEMD_ATTENTION_KERNELS_PARTIAL_TILE_H
#define MEMD_ATTENTION_KERNELS_PARTIAL_TILE_H

#include <assert.h>
#include <math.h>

#include "attention/kernels/exp.h"
#include "attention/kernels/partial.h"
#include "attention/kernels/tile.h"
#include "proto/limits.h"

/* acc += weights · V over the rows row … row + count - 1, count ≤ 4.  acc (queries, D) */
INLINE void weigh_block(const struct tile *tile, float *acc, size_t row, size_t count,
                        size_t queries, uint32_t dtype)
{
    const size_t head_dim = tile->head_dim, stride = tile->v.stride_bytes;
    const unsigned char *v = tile->v.at + row * stride;
    const unsigned char *soon = upcoming(tile, &tile->v, row);
    touch_pages(soon + TILE_TOUCH_BYTES, count * stride);
    vec weight[TILE_QUERIES][4];
    for (size_t m = 0; m < queries; m++)
        for (size_t i = 0; i < count; i++)
            weight[m][i] = vec_set(tile->scores[m * TILE_STRIDE + row + i]);
    for (size_t d = 0; d < head_dim; d += VEC_FLOATS) {
        prefetch(soon, d, count, dtype);
        vec value[4];
        for (size_t i = 0; i < count; i++) value[i] = vec_load_row(v + i * stride, d, dtype);
        for (size_t m = 0; m < queries; m++) {
            vec sum = vec_load(acc + m * head_dim + d);
            for (size_t i = 0; i < count; i++) sum = vec_fma(weight[m][i], value[i], sum);
            vec_store(acc + m * head_dim + d, sum);
        }
    }
}

INLINE void weigh_rows(const struct tile *tile, float *acc, size_t queries, uint32_t dtype)
{
    size_t row = 0;
    for (; row + block_rows(queries) <= tile->count; row += block_rows(queries))
        weigh_block(tile, acc, row, block_rows(queries), queries, dtype);
    for (; row < tile->count; row++) weigh_block(tile, acc, row, 1, queries, dtype);
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

/* Turn scores (`count` rows, of which `visible` count) into weights exp(score - max) and carry max,
 * sum and acc of query `m` along. */
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

/* What a block prefetches: `after_k` while it reads keys, `after_v` while it reads values. */
struct upcoming_rows {
    struct rows after_k, after_v;
    size_t ahead;
};

/* Run the tile, whose first row is `begin`, for its queries first … first + queries - 1. */
static void run_block(const struct partial_args *args, struct tile *tile, size_t begin,
                      size_t first, const struct upcoming_rows *soon)
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
    part.ahead = soon->ahead < count ? soon->ahead : count;
    part.soon = soon->after_k;
    tile_scores(&part);
    for (size_t m = 0; m < tile->queries; m++)
        soften(args, first + m, part.scores + m * TILE_STRIDE, visible[m], count);
    part.soon = soon->after_v;
    weigh(&part, args->acc + first * args->head_dim);
}

/* A tile for all queries, TILE_QUERIES at a time. The first block of them prefetches; to the others
 * the tile is near already. */
static void run_tile(const struct partial_args *args, struct tile *tile, size_t begin)
{
    struct upcoming_rows soon = { .after_k = tile->v, .after_v = rows_from(&tile->k, tile->count) };
    soon.ahead = TILE_AHEAD_BYTES / (args->head_dim * dtype_bytes(args->k_dtype));
    for (size_t first = 0; first < args->queries; first += TILE_QUERIES) {
        size_t left = args->queries - first;
        tile->queries = left < TILE_QUERIES ? left : TILE_QUERIES;
        run_block(args, tile, begin, first, &soon);
        soon.ahead = 0;
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
        struct tile tile = { .head_dim = args->head_dim, .scores = scores,
                             .k = rows_from(&k, begin), .v = rows_from(&v, begin) };
        tile.count = needed - begin < step ? needed - begin : step;
        run_tile(args, &tile, begin);
    }
}

#endif
