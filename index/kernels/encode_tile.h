/* SPDX-License-Identifier: Apache-2.0 */
/* encode_tile.h — the encode kernels, written once for all instruction sets.
 *
 * In vectors of encode_turn_tile.h where order matters; where there are only lanes to fill, plain
 * loops are left to the compiler. Included by one file per instruction set and compiled with its
 * flags and with -ffp-contract=fast.
 */
#ifndef MEMD_INDEX_KERNELS_ENCODE_TILE_H
#define MEMD_INDEX_KERNELS_ENCODE_TILE_H

#include <string.h>

#include "base/tensor.h"
#include "index/kernels/encode.h"
#include "index/kernels/encode_pack_tile.h"
#include "index/kernels/encode_turn_tile.h"

/* ---- rows as stored ---- */

#ifndef LOAD_HALVES
#define LOAD_HALVES(at) widen_halves(at)

/* 8 finite fp16 numbers, where the instruction set has no vocabulary for it. */
INLINE wide widen_halves(const unsigned char *at)
{
    eight_halves halves;
    memcpy(&halves, at, sizeof halves);
    wide_int bits = __builtin_convertvector(halves, wide_int), sign = (bits & 0x8000) << 16;
    bits = (bits & 0x7fff) << 13;
    wide value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112F; /* the difference of the biases; exact for subnormals too */
    memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}
#endif

/* 8 finite elements from element d. */
INLINE wide load_stored(const unsigned char *row, size_t d, uint32_t dtype)
{
    if (dtype == DTYPE_FP32) {
        wide a;
        memcpy(&a, row + 4 * d, sizeof a);
        return a;
    }
    if (dtype == DTYPE_FP16) return LOAD_HALVES(row + 2 * d);
    eight_halves halves;
    memcpy(&halves, row + 2 * d, sizeof halves);
    wide_int bits = __builtin_convertvector(halves, wide_int);
    wide value;
    bits <<= 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* `count` vectors, a constant, of the sum over rows that stand D apart. */
INLINE void add_block(const float *rows, size_t rows_count, size_t head_dim, size_t count,
                      float *ret_sum)
{
    wide sums[SUMS];
    for (size_t j = 0; j < count; j++) sums[j] = load(ret_sum + j * LANES);
    for (size_t i = 0; i < rows_count; i++)
        for (size_t j = 0; j < count; j++) sums[j] += load(rows + i * head_dim + j * LANES);
    for (size_t j = 0; j < count; j++) store(ret_sum + j * LANES, sums[j]);
}

static inline void add_rows(const float *rows, size_t count, size_t head_dim, float *ret_sum)
{
    size_t d = 0;
    for (; d + (size_t)SUMS * LANES <= head_dim; d += (size_t)SUMS * LANES)
        add_block(rows + d, count, head_dim, SUMS, ret_sum + d);
    for (; d < head_dim; d += LANES) add_block(rows + d, count, head_dim, 1, ret_sum + d);
}

/* Row by row: several streams at once of reads and of writes cost up to a half more. What was
 * written last is summed while it is near. */
INLINE void load_rows_as(const struct encode_load_args *args, uint32_t dtype)
{
    const size_t head_dim = args->head_dim;
    for (size_t from = 0; from < args->count; from += ENCODE_ROWS) {
        const size_t count = args->count - from < ENCODE_ROWS ? args->count - from : ENCODE_ROWS;
        float *out = args->out + from * head_dim;
        for (size_t i = 0; i < count && args->rows != args->out; i++) {
            const unsigned char *row = (const unsigned char *)args->rows
                + (from + i) * args->stride_bytes;
            for (size_t d = 0; d < head_dim; d += LANES)
                store(out + i * head_dim + d, load_stored(row, d, dtype));
        }
        add_rows(out, count, head_dim, args->sum);
    }
}

static void load_rows(const struct encode_load_args *args)
{
    switch (args->dtype) {
    case DTYPE_FP32: load_rows_as(args, DTYPE_FP32); break;
    case DTYPE_FP16: load_rows_as(args, DTYPE_FP16); break;
    default: load_rows_as(args, DTYPE_BF16); break;
    }
}

/* ---- sums over rows ---- */

static void project_rows(const struct encode_rows *rows, const float *direction, float *ret_dots)
{
    const size_t head_dim = rows->head_dim;
    for (size_t at = 0; at < rows->count; at += SUMS) {
        const float *row[SUMS];
        size_t count = rows->count - at < SUMS ? rows->count - at : SUMS;
        for (size_t i = 0; i < SUMS; i++)
            row[i] = rows->rows + rows->order[at + (i < count ? i : 0)] * head_dim;
        wide sums[SUMS] = { 0 };
        for (size_t d = 0; d < head_dim; d += LANES) {
            wide along = load(direction + d);
            for (size_t i = 0; i < SUMS; i++) sums[i] += load(row[i] + d) * along;
        }
        wide dots = sums_of(sums);
        memcpy(ret_dots + at, &dots, count * sizeof *ret_dots);
    }
}

/* `count` vectors of the sum, a constant, over 16 rows; range is first element, first row. In
 * blocks of rows, so that a row is read from memory once. */
INLINE void combine_block(const struct encode_rows *rows, const float *factors,
                          const size_t range[2], size_t count, float *ret_sum)
{
    wide sums[SUMS] = { 0 };
    const size_t d = range[0], from = range[1];
    const size_t to = from + ENCODE_ROWS < rows->count ? from + ENCODE_ROWS : rows->count;
    for (size_t j = 0; j < count && from > 0; j++) sums[j] = load(ret_sum + d + j * LANES);
    for (size_t i = from; i < to; i++) {
        const float *row = rows->rows + rows->order[i] * rows->head_dim + d;
        wide factor = fill(factors[i]);
        for (size_t j = 0; j < count; j++) sums[j] += load(row + j * LANES) * factor;
    }
    for (size_t j = 0; j < count; j++) store(ret_sum + d + j * LANES, sums[j]);
}

static void combine_rows(const struct encode_rows *rows, const float *factors, float *ret_sum)
{
    for (size_t from = 0; from == 0 || from < rows->count; from += ENCODE_ROWS) {
        size_t d = 0;
        for (; d + (size_t)SUMS * LANES <= rows->head_dim; d += (size_t)SUMS * LANES)
            combine_block(rows, factors, (size_t[2]){ d, from }, SUMS, ret_sum);
        for (; d < rows->head_dim; d += LANES)
            combine_block(rows, factors, (size_t[2]){ d, from }, 1, ret_sum);
    }
}

static void steer_rows(const struct encode_rows *rows, float *dots, float *direction)
{
    project_rows(rows, direction, dots);
    float mean = 0.0F;
    for (size_t i = 0; i < rows->count; i++) mean += dots[i];
    mean /= (float)rows->count;
    for (size_t i = 0; i < rows->count; i++) dots[i] -= mean;
    float most = largest(dots, rows->count), scale = most > 0.0F ? 1.0F / most : 0.0F;
    for (size_t i = 0; i < rows->count; i++) dots[i] *= scale;
    combine_rows(rows, dots, direction);
}

/* How many keys are below the border. keys (count) */
static inline size_t count_below(const int32_t *keys, size_t count, int32_t border)
{
    int32_t below = 0;
    for (size_t i = 0; i < count; i++) below += keys[i] < border;
    return (size_t)below;
}

/* The median is found by halving the range of keys, bit by bit from the top: no branch depends on
 * the data, and 32 counts of a few hundred keys are cheaper than one partition. */
static void split_rows(float *dots, uint16_t *order, size_t count)
{
    int32_t keys[ROWS_MAX];
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, dots + i, sizeof bits);
        bits ^= bits >> 31 & INT32_MAX;
        keys[i] = (bits & ~INT32_C(1023)) | order[i];
    }
    int32_t border = INT32_MIN;
    size_t below = 0;
    for (int bit = 31; bit >= 0 && below != count / 2; bit--) {
        int32_t higher = (int32_t)((uint32_t)border + (UINT32_C(1) << bit));
        size_t found = count_below(keys, count, higher);
        if (found > count / 2) continue;
        border = higher;
        below = found;
    }
    uint16_t larger[ROWS_MAX];
    size_t small = 0, large = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t row = order[i];
        size_t is_small = keys[i] < border;
        order[small] = row; /* at or before i */
        larger[large] = row;
        small += is_small;
        large += 1 - is_small;
    }
    memcpy(order + small, larger, large * sizeof *order);
}

static void centre_rows(const struct encode_centre_args *args)
{
    const size_t head_dim = args->head_dim;
    memset(args->square, 0, head_dim * sizeof *args->square);
    for (size_t row = 0; row < args->count; row += 2) {
        size_t step = row + 1 < args->count ? head_dim : 0;
        float *x = args->rows + row * head_dim; /* two rows of D, or one */
        for (size_t d = 0; d < head_dim; d += LANES) {
            wide mean = load(args->mean + d), factor = load(args->factor + d);
            wide a = load(x + d) - mean, b = load(x + step + d) - mean;
            wide square = a * a + load(args->square + d);
            store(args->square + d, step > 0 ? square + b * b : square);
            store(x + d, a * factor);
            if (step > 0) store(x + step + d, b * factor);
        }
    }
}

/* ---- codes ---- */

/* x (16, D), ret_mean (D) */
INLINE void mean_rows(const float *x, size_t head_dim, float *ret_mean)
{
    for (size_t d = 0; d < head_dim; d += LANES) {
        wide even = load(x + d), odd = load(x + head_dim + d);
        for (size_t i = 2; i < ENCODE_ROWS; i += 2) {
            even += load(x + i * head_dim + d);
            odd += load(x + (i + 1) * head_dim + d);
        }
        store(ret_mean + d, (even + odd) * (1.0F / ENCODE_ROWS));
    }
}

INLINE float sum_lanes(wide a)
{
    float sum = 0.0F;
    for (size_t i = 0; i < LANES; i++) sum += a[i];
    return sum;
}

/* ---- keys ---- */

/* Mean over the rows of Σ weight (row - centroid)². centroid (D) */
INLINE float key_spread(const struct encode_keys_args *args, const uint16_t *order,
                        const float *centroid)
{
    wide sums[ENCODE_ROWS / 2] = { 0 };
    for (size_t d = 0; d < args->head_dim; d += LANES) {
        wide from = load(centroid + d), weight = load(args->weight + d);
        for (size_t i = 0; i < ENCODE_ROWS; i++) {
            wide away = load(args->rows + order[i] * args->head_dim + d) - from;
            sums[i / 2] += away * away * weight;
        }
    }
    return sum_lanes(sums_of(sums)) / ENCODE_ROWS;
}

/* Code the centroid x and give back the decoded one, in the metric; returns its scale. x (D) */
INLINE float code_centroid(const struct encode_keys_args *args, const struct turn *turn,
                           float *restrict x, uint8_t *restrict ret_codes)
{
    const size_t head_dim = args->head_dim;
    float scale = largest(x, head_dim) / 64.0F, inverse = inverse_of(scale);
    for (size_t d = 0; d < head_dim; d++) {
        int32_t code = (int32_t)(x[d] * inverse + 64.0F);
        ret_codes[d] = (uint8_t)code;
        x[d] = scale * ((float)code - 63.5F);
    }
    turn_back(turn, head_dim, x);
    for (size_t d = 0; d < head_dim; d++) x[d] /= args->factor[d];
    return scale;
}

/* Eight rows of x. */
INLINE void find_key_steps(const float *x, size_t head_dim, uint16_t *ret_steps,
                           float *ret_inverses)
{
    wide_int most[LANES] = { 0 };
    for (size_t d = 0; d < head_dim; d += LANES)
        for (size_t i = 0; i < LANES; i++)
            most[i] = LARGER(most[i], magnitude(load(x + i * head_dim + d)));
    find_steps(most, ret_steps, ret_inverses);
}

/* `count` times 8 dimensions of four rows. x (4, D), hi and lo at the first dimension */
INLINE void put_keys(const struct encode_keys_args *args, const float *x, const float *inverses,
                     size_t count, uint8_t *const to[2])
{
    wide_bytes codes[4];
    for (size_t v = count; v < 4; v++) codes[v] = (wide_bytes){ 0 };
#pragma GCC unroll 4
    for (size_t v = 0; v < count; v++) {
        wide four[4];
        for (size_t i = 0; i < 4; i++) four[i] = load(x + i * args->head_dim + v * LANES);
        codes[v] = code_four(four, inverses);
        eight_halves half[2];
        memcpy(half, codes + v, sizeof half);
        half[0] = (half[0] >> 4 & 0x0f0f) | (half[1] & 0xf0f0);
        memcpy(to[0] + 64 * v, half, sizeof *half);
    }
    put_lo(codes, count, to[1], args->tile.lo_stride_bytes);
}

INLINE void put_key_codes(const struct encode_keys_args *args, const float *inverses, uint8_t *hi,
                          uint8_t *lo)
{
    const size_t head_dim = args->head_dim;
    for (size_t i = 0; i < ENCODE_ROWS; i += 4) {
        const float *x = args->scratch + i * head_dim;
        uint8_t *low = lo + i * args->tile.lo_stride_bytes;
        size_t d = 0;
        for (; d + BLOCK <= head_dim; d += BLOCK)
            put_keys(args, x + d, inverses + i, 4,
                     (uint8_t *[2]){ hi + 8 * d + 4 * i, low + d / 2 });
        if (d < head_dim)
            put_keys(args, x + d, inverses + i, (head_dim - d) / LANES,
                     (uint8_t *[2]){ hi + 8 * d + 4 * i, low + d / 2 });
    }
}

INLINE void prefetch(const void *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += LINE_BYTES)
        __builtin_prefetch((const unsigned char *)row + at);
}

/* The rows of a tile into scratch, in the space of codes; the next tile is asked for. */
INLINE void load_keys(const struct encode_keys_args *args, const struct turn *turn,
                      const float *signed_factor, size_t place)
{
    const size_t head_dim = args->head_dim, size = turn_size(head_dim);
    const uint16_t *order = args->order + place;
    const size_t next = place + ENCODE_ROWS < args->count ? ENCODE_ROWS : 0;
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        prefetch(args->rows + order[next + i] * head_dim, head_dim * sizeof(float));
        const float *from = args->rows + order[i] * head_dim;
        float *to = args->scratch + i * head_dim;
        start(to, from, signed_factor, size);
        for (size_t d = size; d < head_dim; d += LANES)
            store(to + d, load(from + d) * load(args->factor + d));
        turn_finish(turn, head_dim, to);
    }
}

INLINE void keys_tiles_of(struct encode_keys_args given, size_t head_dim)
{
    given.head_dim = head_dim;
    const struct encode_keys_args *args = &given;
    const struct encode_tile *tile = &args->tile;
    float *x = args->scratch, *centroid = x + ENCODE_ROWS * head_dim;
    struct turn turn;
    turn_init(args->signs, head_dim, &turn);
    float signed_factor[DIM_MAX];
    for (size_t d = 0; d < turn_size(head_dim); d++)
        signed_factor[d] = args->factor[d] * turn.signs[0][d];
    for (size_t place = 0; place < args->count; place += ENCODE_ROWS) {
        const size_t index = place / ENCODE_ROWS;
        load_keys(args, &turn, signed_factor, place);
        mean_rows(x, head_dim, centroid);
        float inverses[ENCODE_ROWS];
        for (size_t i = 0; i < ENCODE_ROWS; i += LANES)
            find_key_steps(x + i * head_dim, head_dim, tile->step + place + i, inverses + i);
        put_key_codes(args, inverses, tile->hi + place * head_dim / 2,
                      tile->lo + place * tile->lo_stride_bytes);
        tile->mean_scale[index] = code_centroid(args, &turn, centroid,
                                                (uint8_t *)tile->mean + index * head_dim);
        tile->spread[index] = key_spread(args, args->order + place, centroid);
    }
}

/* The usual sizes as constants: a tenth of the time. */
static void keys_tiles(const struct encode_keys_args *args)
{
    switch (args->head_dim) {
    case 64: keys_tiles_of(*args, 64); break;
    case 128: keys_tiles_of(*args, 128); break;
    case 256: keys_tiles_of(*args, 256); break;
    default: keys_tiles_of(*args, args->head_dim); break;
    }
}

/* ---- values ---- */

/* As load_keys. */
INLINE void load_values_as(const struct encode_values_args *args, const struct turn *turn,
                           uint32_t dtype, size_t place)
{
    const size_t head_dim = args->head_dim, size = turn_size(head_dim);
    const uint16_t *order = args->order + place;
    const unsigned char *rows = args->rows;
    const size_t next = place + ENCODE_ROWS < args->count ? ENCODE_ROWS : 0;
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        prefetch(rows + order[next + i] * args->stride_bytes,
                 head_dim * (dtype == DTYPE_FP32 ? 4 : 2));
        const unsigned char *from = rows + order[i] * args->stride_bytes;
        float *to = args->scratch + i * head_dim;
        size_t d = 0;
        for (; d + BLOCK <= size; d += BLOCK) {
            wide four[4];
            for (size_t j = 0; j < 4; j++)
                four[j] = load_stored(from, d + j * LANES, dtype)
                    * load(turn->signs[0] + d + j * LANES);
            start_block(to + d, four);
        }
        for (; d < size; d += LANES)
            store(to + d, within(load_stored(from, d, dtype) * load(turn->signs[0] + d)));
        for (d = size; d < head_dim; d += LANES) store(to + d, load_stored(from, d, dtype));
        turn_finish(turn, head_dim, to);
    }
}

INLINE void load_values(const struct encode_values_args *args, const struct turn *turn,
                        size_t place)
{
    switch (args->dtype) {
    case DTYPE_FP32: load_values_as(args, turn, DTYPE_FP32, place); break;
    case DTYPE_FP16: load_values_as(args, turn, DTYPE_FP16, place); break;
    default: load_values_as(args, turn, DTYPE_BF16, place); break;
    }
}

/* Code the mean x and give back the decoded one; returns its scale. x (D) */
INLINE float code_mean(size_t head_dim, float *restrict x, int8_t *restrict ret_codes)
{
    float scale = largest(x, head_dim) / 127.0F, inverse = inverse_of(scale);
    for (size_t d = 0; d < head_dim; d++) {
        int32_t code = (int32_t)(x[d] * inverse + 128.5F) - 128;
        ret_codes[d] = (int8_t)code;
        x[d] = scale * (float)code;
    }
    return scale;
}

/* Steps of eight rows without their mean; gives back four sums of squares of what is left. */
INLINE void find_value_steps(const float *x, const float *mean, size_t head_dim,
                             wide ret_squares[4], uint16_t *ret_steps, float *ret_inverses)
{
    wide squares[4] = { 0 };
    wide_int most[LANES] = { 0 };
    for (size_t d = 0; d < head_dim; d += LANES) {
        wide from = load(mean + d);
        for (size_t i = 0; i < LANES; i++) {
            wide away = load(x + i * head_dim + d) - from;
            squares[i / 2] += away * away;
            most[i] = LARGER(most[i], magnitude(away));
        }
    }
    memcpy(ret_squares, squares, sizeof squares);
    find_steps(most, ret_steps, ret_inverses);
}

/* `count` times 8 dimensions of eight rows without their mean. x (8, D) and mean (D), hi and lo at
 * the first dimension */
INLINE void put_values(const struct encode_values_args *args, const float *const from[2],
                       const float *inverses, size_t count, uint8_t *const to[2])
{
    wide_bytes codes[2][4];
    for (size_t v = count; v < 4; v++) codes[0][v] = codes[1][v] = (wide_bytes){ 0 };
#pragma GCC unroll 4
    for (size_t v = 0; v < count; v++) {
        wide mean = load(from[1] + v * LANES);
        for (size_t half = 0; half < 2; half++) {
            wide four[4];
            for (size_t i = 0; i < 4; i++)
                four[i] = load(from[0] + (half * 4 + i) * args->head_dim + v * LANES) - mean;
            codes[half][v] = code_four(four, inverses + half * 4);
        }
        wide_bytes hi = transpose(join_high(codes[0][v], codes[1][v]));
        memcpy(to[0] + v * sizeof hi, &hi, sizeof hi);
    }
    const size_t stride_bytes = args->tile.lo_stride_bytes;
    put_lo(codes[0], count, to[1], stride_bytes);
    put_lo(codes[1], count, to[1] + 4 * stride_bytes, stride_bytes);
}

INLINE void put_value_codes(const struct encode_values_args *args, const float *inverses,
                            uint8_t *hi, uint8_t *lo)
{
    const size_t head_dim = args->head_dim;
    const float *mean = args->scratch + ENCODE_ROWS * head_dim;
    for (size_t i = 0; i < ENCODE_ROWS; i += LANES) {
        const float *x = args->scratch + i * head_dim;
        uint8_t *high = hi + i / LANES * head_dim * 4, *low = lo + i * args->tile.lo_stride_bytes;
        size_t d = 0;
        for (; d + BLOCK <= head_dim; d += BLOCK)
            put_values(args, (const float *[2]){ x + d, mean + d }, inverses + i, 4,
                       (uint8_t *[2]){ high + 4 * d, low + d / 2 });
        if (d < head_dim)
            put_values(args, (const float *[2]){ x + d, mean + d }, inverses + i,
                       (head_dim - d) / LANES, (uint8_t *[2]){ high + 4 * d, low + d / 2 });
    }
}

INLINE void values_tiles_of(struct encode_values_args given, size_t head_dim)
{
    given.head_dim = head_dim;
    const struct encode_values_args *args = &given;
    const struct encode_tile *tile = &args->tile;
    float *x = args->scratch, *mean = x + ENCODE_ROWS * head_dim;
    struct turn turn;
    turn_init(args->signs, head_dim, &turn);
    for (size_t place = 0; place < args->count; place += ENCODE_ROWS) {
        const size_t index = place / ENCODE_ROWS;
        load_values(args, &turn, place);
        mean_rows(x, head_dim, mean);
        tile->mean_scale[index] = code_mean(head_dim, mean,
                                            (int8_t *)tile->mean + index * head_dim);
        wide squares[ENCODE_ROWS / 2];
        float inverses[ENCODE_ROWS];
        for (size_t i = 0; i < ENCODE_ROWS; i += LANES)
            find_value_steps(x + i * head_dim, mean, head_dim, squares + i / 2,
                             tile->step + place + i, inverses + i);
        tile->spread[index] = sum_lanes(sums_of(squares)) / ENCODE_ROWS;
        put_value_codes(args, inverses, tile->hi + place * head_dim / 2,
                        tile->lo + place * tile->lo_stride_bytes);
    }
}

static void values_tiles(const struct encode_values_args *args)
{
    switch (args->head_dim) {
    case 64: values_tiles_of(*args, 64); break;
    case 128: values_tiles_of(*args, 128); break;
    case 256: values_tiles_of(*args, 256); break;
    default: values_tiles_of(*args, args->head_dim); break;
    }
}

#endif
