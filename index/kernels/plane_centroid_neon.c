/* SPDX-License-Identifier: Apache-2.0 */
/* plane_centroid_neon.c — plane_centroid in NEON: 16 bytes hold four centroids × 4 dimensions. Two
 * products of 127 × 127 stay in 16 bits (32,258): those of two steps, then pairs are widened. */
#include "index/kernels/plane_centroid_tile.h"

#include "attention/kernels/vec_neon.h"

enum { QUARTER = 4 }; /* centroids */

INLINE int8x8_t four_codes(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}

/* Centroids c … c + 3. */
INLINE void finish(const struct plane_centroid_args *args, size_t m, size_t c, int32x4_t sums)
{
    const struct plane_queries *queries = args->queries;
    float32x4_t scale = vmulq_n_f32(vld1q_f32(args->scale + c), queries->scale[m]);
    float32x4_t dots = vsubq_f32(vcvtq_f32_s32(sums),
                                 vdupq_n_f32(63.5F * (float)queries->sum[m]));
    vst1q_f32(args->scores + m * PLANE_TILES + c,
              vfmaq_f32(vdupq_n_f32(queries->offset[m]), scale, dots));
}

INLINE void centroid_quarter(const struct plane_centroid_args *args, size_t c, size_t first,
                             size_t rows)
{
    const size_t head_dim = args->queries->head_dim;
    const int8_t *q8 = args->queries->q8 + first * head_dim; /* (rows, D) */
    const uint8_t *at = args->centroids + c / PLANE_TILE * PLANE_TILE * head_dim +
                        c % PLANE_TILE * 4;
    int32x4_t sums[CENTROID_ROWS][2]; /* centroids 0 and 0, 1 and 1; 2 and 2, 3 and 3 */
    for (size_t m = 0; m < rows; m++) sums[m][0] = sums[m][1] = vdupq_n_s32(0);
    for (size_t d = 0; d < head_dim; d += 8, at += 2 * CENTROID_STEP_BYTES) {
        int8x16_t even = vreinterpretq_s8_u8(vld1q_u8(at));
        int8x16_t odd = vreinterpretq_s8_u8(vld1q_u8(at + CENTROID_STEP_BYTES));
        for (size_t m = 0; m < rows; m++) {
            int8x8_t query = four_codes(q8 + m * head_dim + d);
            int8x8_t next = four_codes(q8 + m * head_dim + d + 4);
            int16x8_t left = vmull_s8(vget_low_s8(even), query);
            int16x8_t right = vmull_s8(vget_high_s8(even), query);
            left = vmlal_s8(left, vget_low_s8(odd), next);
            right = vmlal_s8(right, vget_high_s8(odd), next);
            sums[m][0] = vpadalq_s16(sums[m][0], left);
            sums[m][1] = vpadalq_s16(sums[m][1], right);
        }
    }
    for (size_t m = 0; m < rows; m++)
        finish(args, first + m, c, vpaddq_s32(sums[m][0], sums[m][1]));
}

INLINE void centroid_rows(const struct plane_centroid_args *args, size_t c, size_t first,
                          size_t rows)
{
    for (size_t i = 0; i < PLANE_TILE; i += QUARTER) centroid_quarter(args, c + i, first, rows);
}

void plane_centroid_neon(const struct plane_centroid_args *args)
{
    centroid_tiles(args, centroid_rows);
}
