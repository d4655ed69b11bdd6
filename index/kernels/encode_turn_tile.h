/* SPDX-License-Identifier: Apache-2.0 */
/* encode_turn_tile.h — vectors of 8 floats, and the rotation of a row written with them.
 *
 * The vectors are the compiler's (GNU vector extensions): D is a multiple of 8, so there are no
 * remainders, and shuffles, conversions and integer work need no names of their own. Included by
 * encode_tile.h, compiled with the flags of an instruction set.
 *
 * Five of the stages of a Hadamard transform need no memory: three inside a vector, two between
 * four vectors.
 */
#ifndef MEMD_INDEX_KERNELS_ENCODE_TURN_TILE_H
#define MEMD_INDEX_KERNELS_ENCODE_TURN_TILE_H

#include <string.h>

#include "index/kernels/encode.h"

#define INLINE static inline __attribute__((always_inline))

typedef float wide __attribute__((vector_size(32)));
typedef int32_t wide_int __attribute__((vector_size(32)));
typedef uint8_t wide_bytes __attribute__((vector_size(32)));
typedef uint16_t wide_halves __attribute__((vector_size(32)));
typedef uint16_t eight_halves __attribute__((vector_size(16)));

enum {
    LANES = 8,
    BLOCK = 4 * LANES,
    DIM_MAX = 1024,
    ROWS_MAX = 1024,
    SUMS = 8, /* accumulators of a register block */
    LINE_BYTES = 64,
};

INLINE wide load(const float *at)
{
    wide a;
    memcpy(&a, at, sizeof a);
    return a;
}

INLINE void store(float *at, wide a)
{
    memcpy(at, &a, sizeof a);
}

INLINE wide fill(float value)
{
    return (wide){ 0 } + value;
}

/* The sums over the lanes of eight vectors. */
INLINE wide sums_of(const wide a[8])
{
    wide pair[4], four[2];
    for (size_t i = 0; i < 4; i++)
        pair[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13)
            + __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    for (size_t i = 0; i < 2; i++)
        four[i] = __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13)
            + __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 8, 9, 10, 11)
        + __builtin_shufflevector(four[0], four[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* |a|; finite numbers without their sign are ordered as integers. */
INLINE wide_int magnitude(wide a)
{
    wide_int bits;
    memcpy(&bits, &a, sizeof bits);
    return bits & INT32_MAX;
}

#ifndef LARGER
#define LARGER(a, b) larger(a, b)

INLINE wide_int larger(wide_int a, wide_int b)
{
    wide_int is = a > b;
    return (a & is) | (b & ~is);
}
#endif

/* The largest of the lanes of eight vectors. */
INLINE wide_int largest_of(const wide_int a[8])
{
    wide_int pair[4], four[2];
    for (size_t i = 0; i < 4; i++)
        pair[i] = LARGER(
            __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13),
            __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15));
    for (size_t i = 0; i < 2; i++)
        four[i] = LARGER(
            __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13),
            __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15));
    return LARGER(__builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 8, 9, 10, 11),
                  __builtin_shufflevector(four[0], four[1], 4, 5, 6, 7, 12, 13, 14, 15));
}

/* Four by four bytes in each half. */
INLINE wide_bytes transpose(wide_bytes a)
{
    return __builtin_shufflevector(a, a, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 16,
                                   20, 24, 28, 17, 21, 25, 29, 18, 22, 26, 30, 19, 23, 27, 31);
}

/* The largest |x|; finite numbers without their sign are ordered as integers. x (D) */
static inline float largest(const float *x, size_t head_dim)
{
    int32_t most = 0;
    for (size_t d = 0; d < head_dim; d++) {
        int32_t bits;
        memcpy(&bits, x + d, sizeof bits);
        bits &= INT32_MAX;
        most = bits > most ? bits : most;
    }
    float value;
    memcpy(&value, &most, sizeof value);
    return value;
}

/* P, the largest power of two that is not larger. */
INLINE size_t turn_size(size_t head_dim)
{
    return (size_t)1 << (31 - __builtin_clz((unsigned)head_dim));
}

/* The signs of both passes with 1 / √P in them. */
struct turn {
    float signs[2][DIM_MAX];
};

static void turn_init(const uint8_t *const bits[2], size_t head_dim, struct turn *ret_turn)
{
    const size_t size = turn_size(head_dim);
    const float scale = 1.0F / __builtin_sqrtf((float)size);
    const wide_int each = { 1, 2, 4, 8, 16, 32, 64, 128 };
    for (size_t pass = 0; pass < (size < head_dim ? 2U : 1U); pass++)
        for (size_t d = 0; d < size; d += LANES) {
            wide_int negative = (((wide_int){ 0 } + bits[pass][d / LANES]) & each) == each;
            wide sign = __builtin_convertvector(negative, wide) * 2.0F + 1.0F; /* -1 or 1 */
            store(ret_turn->signs[pass] + d, sign * scale);
        }
}

/* Butterflies inside a vector. */
INLINE wide within(wide a)
{
    const wide ones = { 1, -1, 1, -1, 1, -1, 1, -1 }, twos = { 1, 1, -1, -1, 1, 1, -1, -1 };
    const wide fours = { 1, 1, 1, 1, -1, -1, -1, -1 };
    a = __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6) + a * ones;
    a = __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5) + a * twos;
    return __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3) + a * fours;
}

/* Two stages of butterflies between vectors that stand `gap` floats apart. */
INLINE void between_four(float *x, size_t gap)
{
    wide a = load(x), b = load(x + gap), c = load(x + 2 * gap), d = load(x + 3 * gap);
    wide ab = a + b, cd = c + d;
    a -= b;
    c -= d;
    store(x, ab + cd);
    store(x + gap, a + c);
    store(x + 2 * gap, ab - cd);
    store(x + 3 * gap, a - c);
}

/* The first five stages of 32 numbers that are still in registers. */
INLINE void start_block(float *to, const wide from[4])
{
    wide a = within(from[0]), b = within(from[1]), c = within(from[2]), d = within(from[3]);
    wide ab = a + b, cd = c + d;
    a -= b;
    c -= d;
    store(to, ab + cd);
    store(to + LANES, a + c);
    store(to + 2 * LANES, ab - cd);
    store(to + 3 * LANES, a - c);
}

/* The same for `size` numbers, a power of two, times signs if there are any; 3 stages below 32. */
INLINE void start(float *to, const float *from, const float *signs, size_t size)
{
    size_t d = 0;
    for (; d + BLOCK <= size; d += BLOCK) {
        wide four[4];
        for (size_t i = 0; i < 4; i++) {
            four[i] = load(from + d + i * LANES);
            if (signs != NULL) four[i] *= load(signs + d + i * LANES);
        }
        start_block(to + d, four);
    }
    for (; d < size; d += LANES)
        store(to + d, within(signs != NULL ? load(from + d) * load(signs + d) : load(from + d)));
}

/* The stages that `start` has left. */
INLINE void between(float *x, size_t size)
{
    size_t gap = size < BLOCK ? LANES : BLOCK;
    for (; gap * 4 <= size; gap *= 4)
        for (size_t from = 0; from < size; from += 4 * gap)
            for (size_t d = from; d < from + gap; d += LANES) between_four(x + d, gap);
    if (gap * 2 > size) return;
    for (size_t d = 0; d < gap; d += LANES) {
        wide a = load(x + d), b = load(x + gap + d);
        store(x + d, a + b);
        store(x + gap + d, a - b);
    }
}

/* The usual sizes as constants. */
static void between_any(float *x, size_t size)
{
    switch (size) {
    case 64: between(x, 64); break;
    case 128: between(x, 128); break;
    case 256: between(x, 256); break;
    default: between(x, size); break;
    }
}

/* In place where the caller's size is a constant. */
INLINE void finish(float *x, size_t size)
{
    if (__builtin_constant_p(size))
        between(x, size);
    else
        between_any(x, size);
}

/* What follows when the first pass has been started. x (D) */
INLINE void turn_finish(const struct turn *turn, size_t head_dim, float *x)
{
    const size_t size = turn_size(head_dim);
    finish(x, size);
    if (size == head_dim) return;
    x += head_dim - size;
    start(x, x, turn->signs[1], size);
    finish(x, size);
}

static inline void turn_row(const struct turn *turn, size_t head_dim, float *x)
{
    start(x, x, turn->signs[0], turn_size(head_dim));
    turn_finish(turn, head_dim, x);
}

INLINE void turn_back(const struct turn *turn, size_t head_dim, float *x)
{
    const size_t size = turn_size(head_dim);
    for (size_t pass = size < head_dim ? 2 : 1; pass-- > 0;) {
        float *from = pass == 1 ? x + head_dim - size : x;
        start(from, from, NULL, size);
        finish(from, size);
        for (size_t d = 0; d < size; d += LANES)
            store(from + d, load(from + d) * load(turn->signs[pass] + d));
    }
}

static inline void rotate_rows(const struct encode_rotate_args *args)
{
    struct turn turn;
    turn_init(args->signs, args->head_dim, &turn);
    for (size_t row = 0; row < args->count; row++) {
        float *x = args->rows + row * args->head_dim;
        if (args->invert) turn_back(&turn, args->head_dim, x);
        else turn_row(&turn, args->head_dim, x);
    }
}

#endif
