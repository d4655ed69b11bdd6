/* SPDX-License-Identifier: Apache-2.0 */
/* encode_pack_tile.h — steps, and codes of four rows at once.
 *
 * That way nibbles of different rows come to stand beside each other, as hi wants them, without a
 * transposition through memory. Included by encode_tile.h.
 */
#ifndef MEMD_INDEX_KERNELS_ENCODE_PACK_TILE_H
#define MEMD_INDEX_KERNELS_ENCODE_PACK_TILE_H

#include <string.h>

#include "index/kernels/encode_turn_tile.h"

INLINE float inverse_of(float scale)
{
    /* a little less, so that the largest does not reach the next code */
    return scale > 0.0F ? 0.9999995F / scale : 0.0F;
}

/* encode_step and back, without calls. */
INLINE uint16_t step_of(float value, float *ret_step)
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

/* Steps of eight rows from their largest |x|, lane by lane. */
INLINE void find_steps(const wide_int most[8], uint16_t *ret_steps, float *ret_inverses)
{
    wide_int each = largest_of(most);
    float largest[LANES];
    memcpy(largest, &each, sizeof each);
    for (size_t i = 0; i < LANES; i++) {
        float step;
        ret_steps[i] = step_of(largest[i] * 0.125F, &step);
        ret_inverses[i] = inverse_of(step * 0.0625F);
    }
}

#ifndef NARROW
#define NARROW(four) narrow(four)

INLINE wide_bytes narrow(const wide_int four[4])
{
    wide_int words = four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24;
    wide_bytes bytes;
    memcpy(&bytes, &words, sizeof bytes);
    return transpose(bytes);
}
#endif

/* Codes of eight dimensions of four rows. Bytes 16 h + 4 i + j: dimension 4 h + j of row i. */
INLINE wide_bytes code_four(const wide four[4], const float *inverses)
{
    wide_int codes[4];
    for (size_t i = 0; i < 4; i++)
        codes[i] = __builtin_convertvector(four[i] * inverses[i] + 128.0F, wide_int);
    return NARROW(codes);
}

/* The lower nibbles of neighbouring dimensions in one byte of two. */
INLINE wide_halves join_low(wide_bytes codes)
{
    wide_halves two;
    memcpy(&two, &codes, sizeof two);
    return (two & 0x0f) | (two >> 4 & 0xf0);
}

/* 16 bytes per row of the lower nibbles of 32 dimensions. */
INLINE void join_rows(const wide_bytes codes[4], wide_bytes ret_two[2])
{
    wide_halves near = join_low(codes[0]) | join_low(codes[1]) << 8;
    wide_halves far = join_low(codes[2]) | join_low(codes[3]) << 8;
    wide_int a, b;
    memcpy(&a, &near, sizeof a);
    memcpy(&b, &far, sizeof b);
    wide_int two[2] = { __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13),
                        __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15) };
    for (size_t i = 0; i < 2; i++) {
        two[i] = __builtin_shufflevector(two[i], two[i], 0, 1, 4, 5, 2, 3, 6, 7);
        wide_bytes bytes;
        memcpy(&bytes, two + i, sizeof bytes);
        ret_two[i] = __builtin_shufflevector(bytes, bytes, 0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14,
                                             5, 7, 13, 15, 16, 18, 24, 26, 17, 19, 25, 27, 20, 22,
                                             28, 30, 21, 23, 29, 31);
    }
}

/* `count` (a constant but at the end of a row) times 8 dimensions of the lo of four rows. */
INLINE void put_lo(const wide_bytes codes[4], size_t count, uint8_t *lo, size_t stride_bytes)
{
    wide_bytes rows[2];
    join_rows(codes, rows);
    for (size_t i = 0; i < 4; i++)
        memcpy(lo + i * stride_bytes, (const uint8_t *)(rows + i / 2) + i % 2 * 16, 4 * count);
}

/* Upper nibbles: of `low` below, of `high` above. */
INLINE wide_bytes join_high(wide_bytes low, wide_bytes high)
{
    wide_int a, b;
    memcpy(&a, &low, sizeof a);
    memcpy(&b, &high, sizeof b);
    a = (a >> 4 & 0x0f0f0f0f) | (b & ~0x0f0f0f0f);
    memcpy(&low, &a, sizeof low);
    return low;
}

#endif
