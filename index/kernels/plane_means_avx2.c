/* SPDX-License-Identifier: Apache-2.0 */
/* plane_means_avx2.c — plane_means_tile.h in AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx2.h"

#define INLINE static inline __attribute__((always_inline))

static inline vec means_load(const int8_t *at)
{
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)at);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

#include "index/kernels/plane_means_tile.h"

void plane_means_avx2(const struct plane_means_args *args)
{
    means_tiles(args);
}
