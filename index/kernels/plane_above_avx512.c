/* SPDX-License-Identifier: Apache-2.0 */
/* plane_above_avx512.c — plane_above in AVX-512: a comparison is a mask already. */
#include "index/kernels/plane.h"

#include <immintrin.h>

enum { ABOVE_LANES = 16 };

void plane_above_avx512(const struct plane_above_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        float *scores = args->scores + m * PLANE_TILES;
        __m512 least = _mm512_set1_ps(args->least[m]);
        uint64_t above = 0;
        for (size_t i = 0; i < PLANE_TILES; i += ABOVE_LANES) {
            __m512 sum = _mm512_loadu_ps(scores + i);
            if (args->extra != NULL) {
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(args->extra + i));
                _mm512_storeu_ps(scores + i, sum);
            }
            above |= (uint64_t)_mm512_cmp_ps_mask(sum, least, _CMP_GE_OQ) << i;
        }
        args->above[m] = above;
    }
}
