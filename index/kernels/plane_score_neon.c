/* SPDX-License-Identifier: Apache-2.0 */
/* plane_score_neon.c — plane_score in NEON: 16 bytes hold four tokens, of which every widening
 * multiply-add takes two.
 *
 * A product is at most 15 × 127 = 1,905, so 16 bits hold eight steps (30,480) before pairs are
 * widened. A tile goes by quarters: all of it at once needs more registers than there are. The dot
 * products of ARMv8.2 are not used: not every CPU has them.
 */
#include "index/kernels/plane_score_tile.h"

#include "attention/kernels/vec_neon.h"

enum {
    STEPS = 8,   /* until sums of 16 bits must be widened */
    QUARTER = 4, /* tokens */
};

/* Four tokens of a tile and the query rows of a block. */
struct quarter {
    const uint8_t *codes; /* of the first step, SCORE_STEP_BYTES apart */
    const int8_t *q8;     /* (rows, D) */
    size_t head_dim;
    int32x4_t sums[SCORE_ROWS][2]; /* tokens 0 and 0, 1 and 1; 2 and 2, 3 and 3 */
};

INLINE int8x8_t four_codes(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}

INLINE void add_steps(struct quarter *quarter, size_t first, size_t steps, size_t rows)
{
    int16x8_t pairs[SCORE_ROWS][2];
    for (size_t m = 0; m < rows; m++) pairs[m][0] = pairs[m][1] = vdupq_n_s16(0);
    for (size_t step = first; step < first + steps; step++) {
        uint8x16_t codes = vld1q_u8(quarter->codes + step * SCORE_STEP_BYTES);
        int8x16_t low = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15)));
        int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(codes, 4));
        for (size_t m = 0; m < rows; m++) {
            const int8_t *q = quarter->q8 + m * quarter->head_dim + step * 8;
            int8x8_t query = four_codes(q);
            pairs[m][0] = vmlal_s8(pairs[m][0], vget_low_s8(low), query);
            pairs[m][1] = vmlal_s8(pairs[m][1], vget_high_s8(low), query);
            query = four_codes(q + 4);
            pairs[m][0] = vmlal_s8(pairs[m][0], vget_low_s8(high), query);
            pairs[m][1] = vmlal_s8(pairs[m][1], vget_high_s8(high), query);
        }
    }
    for (size_t m = 0; m < rows; m++)
        for (size_t half = 0; half < 2; half++)
            quarter->sums[m][half] = vpadalq_s16(quarter->sums[m][half], pairs[m][half]);
}

INLINE void finish(const struct scan *scan, size_t m, size_t token, int32x4_t sums)
{
    const struct plane_queries *queries = scan->queries;
    float16x4_t steps = vreinterpret_f16_u16(vld1_u16(scan->key_scale + token));
    float32x4_t scale = vmulq_n_f32(vcvt_f32_f16(steps), queries->scale[m]);
    float32x4_t dots = vsubq_f32(vcvtq_f32_s32(sums),
                                 vdupq_n_f32(7.5F * (float)queries->sum[m]));
    vst1q_f32(scan->scores + m * scan->stride + token,
              vfmaq_f32(vdupq_n_f32(queries->offset[m]), scale, dots));
}

INLINE void score_rows(const struct scan *scan, size_t first, size_t rows)
{
    const size_t head_dim = scan->queries->head_dim, steps = head_dim / 8;
    for (size_t step = 0; step < steps; step++)
        __builtin_prefetch(scan->soon + step * SCORE_STEP_BYTES, 0, 2);
    for (size_t token = 0; token < PLANE_TILE; token += QUARTER) {
        struct quarter quarter = { scan->codes + 4 * token, scan->queries->q8 + first * head_dim,
                                   head_dim, { { { 0 } } } };
        size_t step = 0;
        for (size_t m = 0; m < rows; m++)
            quarter.sums[m][0] = quarter.sums[m][1] = vdupq_n_s32(0);
        for (; step + STEPS <= steps; step += STEPS) add_steps(&quarter, step, STEPS, rows);
        if (step < steps) add_steps(&quarter, step, steps - step, rows);
        for (size_t m = 0; m < rows; m++)
            finish(scan, first + m, token, vpaddq_s32(quarter.sums[m][0], quarter.sums[m][1]));
    }
}

void plane_score_neon(const struct plane_score_args *args)
{
    score_tiles(args, score_rows);
}
