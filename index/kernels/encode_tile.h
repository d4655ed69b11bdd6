/* SPDX-License-Identifier: Apache-2.0 */
/* encode_tile.h — the encode kernels, written once for all instruction sets.
 *
 * In vectors of encode_turn_tile.h where order matters; where there are only lanes to fill, plain
 * loops are left to the compiler. Included by one file per instruction set and compiled with its
 * flags and with -ffp-contract=fast.
 *
 * Codes of rows are made 32 at a time and may run over the end of a row: buffers have room for it
 * (ENCODE_SLACK), and what stands there never reaches a real code.
 */
#ifndef MEMD_INDEX_KERNELS_ENCODE_TILE_H
#define MEMD_INDEX_KERNELS_ENCODE_TILE_H

#include <string.h>

#include "base/tensor.h"
#include "index/kernels/encode.h"
#include "index/kernels/encode_turn_tile.h"

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

/* Truncate 32 numbers 0 … 255 to bytes. */
INLINE void put_bytes(const wide from[4], uint8_t *to)
{
    wide_int words = { 0 };
    for (int i = 0; i < 4; i++) words |= __builtin_convertvector(from[i], wide_int) << (8 * i);
    wide_bytes bytes; /* 4 i + j of from[j][i] */
    memcpy(&bytes, &words, sizeof bytes);
    bytes = __builtin_shufflevector(bytes, bytes, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11,
                                    15, 16, 20, 24, 28, 17, 21, 25, 29, 18, 22, 26, 30, 19, 23, 27,
                                    31);
    memcpy(&words, &bytes, sizeof words);
    words = __builtin_shufflevector(words, words, 0, 4, 1, 5, 2, 6, 3, 7);
    memcpy(to, &words, sizeof words);
}

/* bytes = x * inverse + zero. x (D) and slack, to (D) and slack */
static inline void put_codes(const float *x, size_t head_dim, float inverse, float zero,
                             uint8_t *to)
{
    for (size_t d = 0; d < head_dim; d += BLOCK) {
        wide four[4];
        for (size_t i = 0; i < 4; i++) four[i] = load(x + d + i * LANES) * inverse + zero;
        put_bytes(four, to + d);
    }
}

static inline float inverse_of(float scale)
{
    /* a little less, so that the largest does not reach the next code */
    return scale > 0.0F ? 0.9999995F / scale : 0.0F;
}

/* encode_step and back, without calls. */
static inline uint16_t step_of(float value, float *ret_step)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (bits > 0x477fe000) { /* 65504 */
        *ret_step = 0.0F;
        return 0x7c00;
    }
    if (bits < 0x38800000) { /* 2^-14: subnormal in fp16 */
        float units = value * 16777216.0F;
        uint32_t whole = (uint32_t)units;
        whole += (float)whole < units;
        *ret_step = (float)whole * 5.9604645e-8F;
        return (uint16_t)whole;
    }
    bits = (bits + 0x1fff) & ~UINT32_C(0x1fff);
    memcpy(ret_step, &bits, sizeof bits);
    return (uint16_t)((bits >> 13) - (112U << 10));
}

/* Steps of all rows before the first is coded: a row's own step comes at the end of a long chain,
 * that of the next row does not wait for it. x (16, D) */
static inline void find_steps(const float *x, size_t head_dim, uint16_t *ret_steps,
                              float *ret_inverses)
{
    float most[ENCODE_ROWS];
    for (size_t i = 0; i < ENCODE_ROWS; i++) most[i] = largest(x + i * head_dim, head_dim);
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        float step;
        ret_steps[i] = step_of(most[i] * 0.125F, &step);
        ret_inverses[i] = inverse_of(step * 0.0625F);
    }
}

/* codes (D) and slack, lo (D / 2) */
static inline void put_lo(const uint8_t *restrict codes, size_t head_dim, uint8_t *restrict lo)
{
    for (size_t i = 0; i < head_dim / 2; i++) {
        uint16_t two;
        memcpy(&two, codes + 2 * i, sizeof two);
        lo[i] = (uint8_t)((two & 15) | (two >> 4 & 0xf0));
    }
}

/* One row of K-hi: a word every 64 bytes. */
static inline void put_key_hi(const uint8_t *restrict codes, size_t head_dim, uint8_t *restrict hi)
{
    uint32_t words[DIM_MAX / LANES];
    for (size_t i = 0; i < head_dim / LANES; i++) {
        uint32_t eight[2];
        memcpy(eight, codes + i * LANES, sizeof eight);
        words[i] = (eight[0] >> 4 & 0x0f0f0f0f) | (eight[1] & 0xf0f0f0f0);
    }
    for (size_t i = 0; i < head_dim / LANES; i++) memcpy(hi + 64 * i, words + i, sizeof *words);
}

/* Eight rows of V-hi. codes (8, DIM_MAX + slack) */
static inline void put_value_hi(const uint8_t *restrict codes, size_t head_dim,
                                uint8_t *restrict hi)
{
    enum { STRIDE = DIM_MAX + ENCODE_SLACK };
    uint8_t pairs[4][DIM_MAX]; /* tokens j and j + 4 */
    for (size_t j = 0; j < 4; j++)
        for (size_t d = 0; d < head_dim; d++)
            pairs[j][d] = (uint8_t)(codes[j * STRIDE + d] >> 4
                                    | (codes[(j + 4) * STRIDE + d] & 0xf0));
    for (size_t d = 0; d < head_dim; d++) {
        uint32_t word = (uint32_t)pairs[0][d] | (uint32_t)pairs[1][d] << 8
            | (uint32_t)pairs[2][d] << 16 | (uint32_t)pairs[3][d] << 24;
        memcpy(hi + 4 * d, &word, sizeof word);
    }
}

/* x (16, D), ret_mean (D) */
static inline void mean_rows(const float *x, size_t head_dim, float *ret_mean)
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

/* ---- tiles ---- */

/* Mean over the rows of Σ weight (row - centroid)². centroid (D) */
static inline float key_spread(const struct encode_keys_args *args, const float *centroid)
{
    wide sums[ENCODE_ROWS / 2] = { 0 };
    for (size_t d = 0; d < args->head_dim; d += LANES) {
        wide from = load(centroid + d), weight = load(args->weight + d);
        for (size_t i = 0; i < ENCODE_ROWS; i++) {
            wide away = load(args->rows + args->order[i] * args->head_dim + d) - from;
            sums[i / 2] += away * away * weight;
        }
    }
    wide each = sums_of(sums);
    float sum = 0.0F;
    for (size_t i = 0; i < LANES; i++) sum += each[i];
    return sum / ENCODE_ROWS;
}

/* Code the centroid x and give back the decoded one, in the metric. x (D) and slack */
static inline void code_centroid(const struct encode_keys_args *args, const struct turn *turn,
                                 float *x)
{
    const size_t head_dim = args->head_dim;
    float scale = largest(x, head_dim) / 64.0F;
    uint8_t codes[DIM_MAX + ENCODE_SLACK];
    put_codes(x, head_dim, inverse_of(scale), 64.0F, codes);
    memcpy(args->tile.mean, codes, head_dim);
    *args->tile.mean_scale = scale;
    for (size_t d = 0; d < head_dim; d++) x[d] = scale * ((float)codes[d] - 63.5F);
    turn_back(turn, x);
    for (size_t d = 0; d < head_dim; d++) x[d] /= args->factor[d];
}

static void keys_tile(const struct encode_keys_args *args)
{
    const size_t head_dim = args->head_dim;
    const struct encode_tile *tile = &args->tile;
    float *x = args->scratch, *centroid = x + ENCODE_ROWS * head_dim;
    struct turn turn;
    turn_init(args->signs, head_dim, &turn);
    float signed_factor[DIM_MAX];
    for (size_t d = 0; d < turn.size; d++) signed_factor[d] = args->factor[d] * turn.signs[0][d];
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        const float *from = args->rows + args->order[i] * head_dim;
        float *to = x + i * head_dim;
        start(to, from, signed_factor, turn.size);
        for (size_t d = turn.size; d < head_dim; d += LANES)
            store(to + d, load(from + d) * load(args->factor + d));
        turn_finish(&turn, to);
    }
    mean_rows(x, head_dim, centroid);
    float inverses[ENCODE_ROWS];
    find_steps(x, head_dim, tile->step, inverses);
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        uint8_t codes[DIM_MAX + ENCODE_SLACK];
        put_codes(x + i * head_dim, head_dim, inverses[i], 128.0F, codes);
        put_key_hi(codes, head_dim, tile->hi + 4 * i);
        put_lo(codes, head_dim, tile->lo + i * tile->lo_stride_bytes);
    }
    code_centroid(args, &turn, centroid);
    *tile->spread = key_spread(args, centroid);
}

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

INLINE void load_values(const struct encode_values_args *args, const struct turn *turn,
                        uint32_t dtype)
{
    for (size_t i = 0; i < ENCODE_ROWS; i++) {
        const unsigned char *from = (const unsigned char *)args->rows
            + args->order[i] * args->stride_bytes;
        float *to = args->scratch + i * args->head_dim;
        size_t d = 0;
        for (; d + BLOCK <= turn->size; d += BLOCK) {
            wide four[4];
            for (size_t j = 0; j < 4; j++)
                four[j] = load_stored(from, d + j * LANES, dtype)
                    * load(turn->signs[0] + d + j * LANES);
            start_block(to + d, four);
        }
        for (; d < turn->size; d += LANES)
            store(to + d, within(load_stored(from, d, dtype) * load(turn->signs[0] + d)));
        for (d = turn->size; d < args->head_dim; d += LANES)
            store(to + d, load_stored(from, d, dtype));
        turn_finish(turn, to);
    }
}

/* Code the mean x and give back the decoded one. x (D) and slack */
static inline void code_mean(const struct encode_values_args *args, float *x)
{
    const size_t head_dim = args->head_dim;
    float scale = largest(x, head_dim) / 127.0F;
    uint8_t codes[DIM_MAX + ENCODE_SLACK];
    put_codes(x, head_dim, inverse_of(scale), 128.5F, codes);
    int8_t *to = args->tile.mean;
    for (size_t d = 0; d < head_dim; d++) {
        to[d] = (int8_t)(codes[d] - 128);
        x[d] = scale * (float)(codes[d] - 128);
    }
    *args->tile.mean_scale = scale;
}

/* rows -= mean; returns the sum of the squares of what is left. x (16, D), mean (D) */
static inline float subtract(float *x, const float *mean, size_t head_dim)
{
    wide squares[ENCODE_ROWS / 2] = { 0 };
    for (size_t d = 0; d < head_dim; d += LANES) {
        wide from = load(mean + d);
        for (size_t i = 0; i < ENCODE_ROWS; i++) {
            wide away = load(x + i * head_dim + d) - from;
            squares[i / 2] += away * away;
            store(x + i * head_dim + d, away);
        }
    }
    wide each = sums_of(squares);
    float sum = 0.0F;
    for (size_t i = 0; i < LANES; i++) sum += each[i];
    return sum;
}

static void values_tile(const struct encode_values_args *args)
{
    const size_t head_dim = args->head_dim;
    const struct encode_tile *tile = &args->tile;
    float *x = args->scratch, *mean = x + ENCODE_ROWS * head_dim;
    struct turn turn;
    turn_init(args->signs, head_dim, &turn);
    switch (args->dtype) {
    case DTYPE_FP32: load_values(args, &turn, DTYPE_FP32); break;
    case DTYPE_FP16: load_values(args, &turn, DTYPE_FP16); break;
    default: load_values(args, &turn, DTYPE_BF16); break;
    }
    mean_rows(x, head_dim, mean);
    code_mean(args, mean);
    float inverses[ENCODE_ROWS];
    *tile->spread = subtract(x, mean, head_dim) / ENCODE_ROWS;
    find_steps(x, head_dim, tile->step, inverses);
    for (size_t from = 0; from < ENCODE_ROWS; from += LANES) {
        uint8_t codes[LANES][DIM_MAX + ENCODE_SLACK];
        for (size_t j = 0; j < LANES; j++) {
            size_t i = from + j;
            put_codes(x + i * head_dim, head_dim, inverses[i], 128.0F, codes[j]);
            put_lo(codes[j], head_dim, tile->lo + i * tile->lo_stride_bytes);
        }
        put_value_hi(codes[0], head_dim, tile->hi + from / LANES * head_dim * 4);
    }
}

#endif
