/* SPDX-License-Identifier: Apache-2.0 */
/* plane_above_avx2.c — plane_above in AVX2: signs of comparisons, eight at a time. */
#include "index/kernels/plane.h"

#include <immintrin.h>

enum { ABOVE_LANES = 8 };

void plane_above_avx2(const struct plane_above_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        float *scores = args->scores + m * PLANE_TILES;
        __m256 least = _mm256_set1_ps(args->least[m]);
        uint64_t above = 0;
        for (size_t i = 0; i < PLANE_TILES; i += ABOVE_LANES) {
            __m256 sum = _mm256_loadu_ps(scores + i);
            if (args->extra != NULL) {
                sum = _mm256_add_ps(sum, _mm256_loadu_ps(args->extra + i));
                _mm256_storeu_ps(scores + i, sum);
            }
            int bits = _mm256_movemask_ps(_mm256_cmp_ps(sum, least, _CMP_GE_OQ));
            above |= (uint64_t)(unsigned)bits << i;
        }
        args->above[m] = above;
    }
}
