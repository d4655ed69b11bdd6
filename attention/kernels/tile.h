/* SPDX-License-Identifier: Apache-2.0 */
/* tile.h — scores of a tile of rows: what partial and score share, written once over the vocabulary
 * of vec_<isa>.h.
 *
 * Included by one .c file per operation and instruction set, after its vec_<isa>.h; everything is
 * static and compiled with the flags of that instruction set. Register blocks are inlined functions
 * whose counts and dtype are constants at every call, so that their loops unroll and their arrays
 * become registers.
 */
#ifndef MEMD_ATTENTION_KERNELS_TILE_H
#define MEMD_ATTENTION_KERNELS_TILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/tensor.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    TILE_QUERIES = 4, /* of one register block */
    TILE_ROWS_MAX = 144,
    TILE_ROWS_STEP = 12, /* whole blocks of 3 and of 4 rows */
    TILE_FLOATS = 12288, /* rows of a tile times D: 24 KiB of 16-bit rows */
    TILE_STRIDE = TILE_ROWS_MAX + 16, /* of scores; a block writes up to 3 floats behind its rows */
    TILE_LINE_BYTES = 64,
    TILE_PREFETCH = 2, /* locality of __builtin_prefetch: not the first level */
    TILE_AHEAD_BYTES = 8192, /* distance of prefetching, into the second-level cache */
    TILE_PAGE_BYTES = 4096,
    TILE_TOUCH = 3,           /* locality of a prefetch that also finds out where its page is */
    TILE_TOUCH_BYTES = 24576, /* how far ahead of the lines pages are touched */
};

/* Rows of K or V. */
struct rows {
    const unsigned char *at;
    size_t stride_bytes;
    uint32_t dtype; /* enum dtype */
};

/* One tile and up to TILE_QUERIES queries. What is read after row r is the row r + ahead, counted
 * through the rows that are being read and on into `soon`. */
struct tile {
    const float *q; /* (queries, D) */
    size_t queries, head_dim;
    size_t count;   /* rows */
    struct rows k, v;
    struct rows soon;
    size_t ahead;   /* rows, ≤ count */
    float *scores;  /* (queries, TILE_STRIDE) */
};

static inline size_t tile_rows(size_t head_dim)
{
    size_t count = TILE_FLOATS / head_dim;
    if (count > TILE_ROWS_MAX) count = TILE_ROWS_MAX;
    return count < TILE_ROWS_STEP ? count : count - count % TILE_ROWS_STEP;
}

static inline struct rows rows_from(const struct rows *rows, size_t row)
{
    struct rows later = *rows;
    later.at += row * rows->stride_bytes;
    return later;
}

/* Rows that a block of `queries` queries takes at once: as many as their sums leave registers
 * for. */
INLINE size_t block_rows(size_t queries)
{
    return queries > 2 ? VEC_ROWS : 4;
}

/* Where to prefetch while `row` of `now` is being read. */
static inline const unsigned char *upcoming(const struct tile *tile, const struct rows *now,
                                            size_t row)
{
    size_t wanted = row + tile->ahead;
    if (wanted < tile->count) return now->at + wanted * now->stride_bytes;
    return tile->soon.at + (wanted - tile->count) * tile->soon.stride_bytes;
}

/* Prefetch the bytes that correspond to the vector at element `d` of `count` rows. One address
 * stream in ascending order: it also keeps the CPU's own prefetcher on the track, which several
 * rows read side by side throw off (measured on Zen 3: 8 GB/s without, 18 GB/s with, of 19
 * GB/s). Into the second-level cache, and far ahead: fetched into the first one, lines wait for the
 * few buffers that plain loads need too (decisions/0043). */
INLINE void prefetch(const unsigned char *from, size_t d, size_t count, uint32_t dtype)
{
    const size_t bytes = VEC_FLOATS * count * dtype_bytes(dtype);
    for (size_t at = 0; at < bytes; at += TILE_LINE_BYTES)
        __builtin_prefetch(from + d * count * dtype_bytes(dtype) + at, 0, TILE_PREFETCH);
}

/* Touch every page that begins in the `bytes` from `from`. A prefetch into the second level is
 * dropped where the address of its page is not known yet, and looking that up takes longer than a
 * line takes from memory where a page has 4 KB and the CPU is a virtual one (decisions/0049). */
INLINE void touch_pages(const unsigned char *from, size_t bytes)
{
    size_t at = -(uintptr_t)from % TILE_PAGE_BYTES;
    for (; at < bytes; at += TILE_PAGE_BYTES) __builtin_prefetch(from + at, 0, TILE_TOUCH);
}

/* Scores of the rows row … row + count - 1, count ≤ 4. */
INLINE void dot_block(const struct tile *tile, size_t row, size_t count, size_t queries,
                      uint32_t dtype)
{
    const size_t head_dim = tile->head_dim, stride = tile->k.stride_bytes;
    const unsigned char *k = tile->k.at + row * stride;
    const unsigned char *soon = upcoming(tile, &tile->k, row);
    const float *q = tile->q;
    touch_pages(soon + TILE_TOUCH_BYTES, count * stride);
    vec sums[TILE_QUERIES][4];
    for (size_t m = 0; m < queries; m++)
        for (size_t i = 0; i < 4; i++) sums[m][i] = vec_set(0.0F);
    for (size_t d = 0; d < head_dim; d += VEC_FLOATS) {
        prefetch(soon, d, count, dtype);
        vec key[4];
        for (size_t i = 0; i < count; i++) key[i] = vec_load_row(k + i * stride, d, dtype);
        for (size_t m = 0; m < queries; m++) {
            vec query = vec_load(q + m * head_dim + d);
            for (size_t i = 0; i < count; i++) sums[m][i] = vec_fma(key[i], query, sums[m][i]);
        }
    }
    if (queries == 4) vec_store_blocks(tile->scores + row, TILE_STRIDE, sums);
    for (size_t m = 0; queries < 4 && m < queries; m++)
        vec_store_sums(tile->scores + m * TILE_STRIDE + row, sums[m]);
}

INLINE void dot_rows(const struct tile *tile, size_t queries, uint32_t dtype)
{
    size_t row = 0;
    for (; row + block_rows(queries) <= tile->count; row += block_rows(queries))
        dot_block(tile, row, block_rows(queries), queries, dtype);
    for (; row < tile->count; row++) dot_block(tile, row, 1, queries, dtype);
}

INLINE void dot_queries(const struct tile *tile, uint32_t dtype)
{
    switch (tile->queries) {
    case 1: dot_rows(tile, 1, dtype); break;
    case 2: dot_rows(tile, 2, dtype); break;
    case 3: dot_rows(tile, 3, dtype); break;
    default: dot_rows(tile, 4, dtype); break;
    }
}

/* Fill tile->scores. */
static inline void tile_scores(const struct tile *tile)
{
    switch (tile->k.dtype) {
    case DTYPE_FP32: dot_queries(tile, DTYPE_FP32); break;
    case DTYPE_FP16: dot_queries(tile, DTYPE_FP16); break;
    default: dot_queries(tile, DTYPE_BF16); break;
    }
}

/* Copy `count` rows to fp32, contiguous, and let `rows` point to the copy. to (count, D) */
static inline void tile_widen(struct rows *rows, size_t count, size_t head_dim, float *to)
{
    for (size_t row = 0; row < count; row++) {
        const unsigned char *from = rows->at + row * rows->stride_bytes;
        float *wide = to + row * head_dim;
        if (rows->dtype == DTYPE_FP16) {
            for (size_t d = 0; d < head_dim; d += VEC_FLOATS)
                vec_store(wide + d, vec_load_row(from, d, DTYPE_FP16));
        } else if (rows->dtype == DTYPE_BF16) {
            for (size_t d = 0; d < head_dim; d += VEC_FLOATS)
                vec_store(wide + d, vec_load_row(from, d, DTYPE_BF16));
        } else {
            for (size_t d = 0; d < head_dim; d += VEC_FLOATS)
                vec_store(wide + d, vec_load_row(from, d, DTYPE_FP32));
        }
    }
    *rows = (struct rows){ (const unsigned char *)to, head_dim * sizeof *to, DTYPE_FP32 };
}

#endif
