/* SPDX-License-Identifier: Apache-2.0 */
/* plane_row_neon.c — plane_row in NEON: as plane_row_avx2.c, four nibbles of a word by four shifts.
 */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"
#include "base/half.h"

/* right: minus the shifts to the right */
static inline uint32x4_t nibbles(uint32x4_t words, int32x4_t right)
{
    return vandq_u32(vshlq_u32(words, right), vdupq_n_u32(15));
}

static inline uint32x4_t word(const uint8_t *at)
{
    uint32_t four;
    memcpy(&four, at, sizeof four);
    return vdupq_n_u32(four);
}

static inline void decode(uint32x4_t hi, uint32x4_t lo, float step, float *to)
{
    float32x4_t code = vcvtq_f32_u32(vaddq_u32(vshlq_n_u32(hi, 4), lo));
    vst1q_f32(to, vmulq_n_f32(vsubq_f32(code, vdupq_n_f32(127.5F)), step));
}

void plane_row_neon(const struct plane_row_args *args)
{
    const size_t head_dim = args->head_dim, i = args->place % PLANE_TILE;
    const size_t tile_at = args->place / PLANE_TILE * PLANE_TILE / 2 * head_dim;
    const uint8_t *key = args->key_hi + tile_at + 4 * i;
    const uint8_t *value = args->value_hi + tile_at + i / 8 * 4 * head_dim;
    const uint8_t *key_lo = args->lo + args->place * head_dim, *value_lo = key_lo + head_dim / 2;
    const int32x4_t bytes = { 0, -8, -16, -24 }, in_order = { 0, -4, -8, -12 };
    const int32x4_t of_token = vdupq_n_s32(-(int32_t)(i % 4 * 8 + i % 8 / 4 * 4));
    const float key_step = half_from_fp16(args->key_scale[args->place]) / 16.0F;
    const float value_step = half_from_fp16(args->value_scale[args->place]) / 16.0F;
    for (size_t d = 0; d < head_dim; d += 4) {
        int32_t half = (int32_t)(d / 4 % 2); /* the high nibbles; the second four of a word */
        uint32x4_t hi = nibbles(word(key + d / 8 * 64), vsubq_s32(bytes, vdupq_n_s32(4 * half)));
        int32x4_t shifts = vsubq_s32(in_order, vdupq_n_s32(16 * half));
        decode(hi, nibbles(word(key_lo + d / 8 * 4), shifts), key_step, args->k + d);
        hi = nibbles(vreinterpretq_u32_u8(vld1q_u8(value + d * 4)), of_token);
        decode(hi, nibbles(word(value_lo + d / 8 * 4), shifts), value_step, args->v + d);
    }
}
