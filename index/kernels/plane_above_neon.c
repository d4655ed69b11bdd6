/* SPDX-License-Identifier: Apache-2.0 */
/* plane_above_neon.c — plane_above in NEON, which has no mask of a comparison: lanes keep a bit
 * each, and their sum is the mask. */
#include "index/kernels/plane.h"

#include <arm_neon.h>

enum { ABOVE_LANES = 4 };

void plane_above_neon(const struct plane_above_args *args)
{
    static const uint32_t powers[ABOVE_LANES] = { 1, 2, 4, 8 };
    uint32x4_t bits = vld1q_u32(powers);
    for (size_t m = 0; m < args->queries; m++) {
        float *scores = args->scores + m * PLANE_TILES;
        float32x4_t least = vdupq_n_f32(args->least[m]);
        uint64_t above = 0;
        for (size_t i = 0; i < PLANE_TILES; i += ABOVE_LANES) {
            float32x4_t sum = vld1q_f32(scores + i);
            if (args->extra != NULL) {
                sum = vaddq_f32(sum, vld1q_f32(args->extra + i));
                vst1q_f32(scores + i, sum);
            }
            above |= (uint64_t)vaddvq_u32(vandq_u32(vcgeq_f32(sum, least), bits)) << i;
        }
        args->above[m] = above;
    }
}
