/* SPDX-License-Identifier: Apache-2.0 */
/* plane_weigh_neon.c — plane_weigh in NEON: 16 bytes hold four dimensions, of which every widening
 * multiply-add takes two. The four products of a lane (4 × 255 × 15 = 15,300) stay in 16 bits. */
#include "index/kernels/plane_weigh_tile.h"

#include "attention/kernels/vec_neon.h"

enum { PARTS = PLANE_TILE / VEC_FLOATS };

INLINE void round_weights(const float *weights, const uint16_t *value_scale,
                          struct rounded *ret_rounded)
{
    float32x4_t products[PARTS], largest = vdupq_n_f32(0.0F);
    for (size_t i = 0; i < PARTS; i++) {
        float16x4_t steps = vreinterpret_f16_u16(vld1_u16(value_scale + 4 * i));
        products[i] = vmulq_f32(vld1q_f32(weights + 4 * i), vcvt_f32_f16(steps));
        largest = vmaxq_f32(largest, products[i]);
    }
    float top = vmaxvq_f32(largest);
    float inverse = top > WEIGHT_MIN ? 255.0F / top : 0.0F;
    uint16x4_t words[PARTS];
    for (size_t i = 0; i < PARTS; i++)
        words[i] = vmovn_u32(vcvtnq_u32_f32(vmulq_n_f32(products[i], inverse)));
    uint8x16_t bytes = vcombine_u8(vqmovn_u16(vcombine_u16(words[0], words[1])),
                                   vqmovn_u16(vcombine_u16(words[2], words[3])));
    vst1q_s32(ret_rounded->quads, vreinterpretq_s32_u8(bytes));
    ret_rounded->unit = inverse > 0.0F ? top / 255.0F : 0.0F;
    ret_rounded->sum = vaddlvq_u8(bytes);
}

/* Dimensions d … d + 3. */
INLINE void weigh_four(const struct weighing *w, size_t d, size_t rows)
{
    uint8x16_t left = vld1q_u8(w->codes + 4 * d);
    uint8x16_t right = vld1q_u8(w->codes + 4 * (w->head_dim + d));
    uint8x16_t nibbles[QUADS] = { vandq_u8(left, vdupq_n_u8(15)), vshrq_n_u8(left, 4),
                                  vandq_u8(right, vdupq_n_u8(15)), vshrq_n_u8(right, 4) };
    for (size_t m = 0; m < rows; m++) {
        uint16x8_t low = vdupq_n_u16(0), high = vdupq_n_u16(0);
        for (size_t quad = 0; quad < QUADS; quad++) {
            uint8x8_t weights = vreinterpret_u8_s32(vdup_n_s32(w->weights[m].quads[quad]));
            low = vmlal_u8(low, vget_low_u8(nibbles[quad]), weights);
            high = vmlal_u8(high, vget_high_u8(nibbles[quad]), weights);
        }
        uint32x4_t sums = vpaddq_u32(vpaddlq_u16(low), vpaddlq_u16(high));
        float *acc = w->acc[m] + d;
        vst1q_f32(acc, vfmaq_n_f32(vld1q_f32(acc), vcvtq_f32_u32(sums), w->weights[m].unit));
    }
}

INLINE void weigh_groups(const struct weighing *w, size_t d, size_t groups, size_t rows)
{
    for (size_t g = 0; g < groups; g++) {
        __builtin_prefetch(w->soon + 8 * d + 64 * g, 0, 2);
        weigh_four(w, d + 8 * g, rows);
        weigh_four(w, d + 8 * g + 4, rows);
    }
}

INLINE void weigh_all(const struct weighing *batch, size_t count, size_t rows)
{
    weigh_each(weigh_groups, batch, count, rows);
}

void plane_weigh_neon(const struct plane_weigh_args *args)
{
    const struct weigh_isa isa = { round_weights, weigh_all };
    weigh_tiles(&isa, args);
}
