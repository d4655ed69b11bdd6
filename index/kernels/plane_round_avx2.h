/* SPDX-License-Identifier: Apache-2.0 */
/* plane_round_avx2.h — weigh_isa.round of plane_weigh_tile.h in AVX2; also for the twin in AVX-512,
 * where 16 weights are too few to gain by it.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_ROUND_AVX2_H
#define MEMD_INDEX_KERNELS_PLANE_ROUND_AVX2_H

#include <immintrin.h>

#include "index/kernels/plane_weigh_tile.h"

INLINE void round_weights(const float *weights, const uint16_t *value_scale,
                          struct rounded *ret_rounded)
{
    const __m128i *steps = (const __m128i *)(const void *)value_scale;
    __m256 left = _mm256_mul_ps(_mm256_loadu_ps(weights), _mm256_cvtph_ps(_mm_load_si128(steps)));
    __m256 right = _mm256_mul_ps(_mm256_loadu_ps(weights + 8),
                                 _mm256_cvtph_ps(_mm_load_si128(steps + 1)));
    __m256 eight = _mm256_max_ps(left, right);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    float top = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    float inverse = top > WEIGHT_MIN ? 255.0F / top : 0.0F;
    left = _mm256_mul_ps(left, _mm256_set1_ps(inverse));
    right = _mm256_mul_ps(right, _mm256_set1_ps(inverse));
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(left), _mm256_cvtps_epi32(right));
    words = _mm256_permute4x64_epi64(words, 0xD8); /* packs works in halves of a register */
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words),
                                     _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)ret_rounded->quads, bytes);
    __m128i sums = _mm_sad_epu8(bytes, _mm_setzero_si128());
    ret_rounded->unit = inverse > 0.0F ? top / 255.0F : 0.0F;
    ret_rounded->sum = _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4);
}

#endif
