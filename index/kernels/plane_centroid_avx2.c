/* SPDX-License-Identifier: Apache-2.0 */
/* plane_centroid_avx2.c — plane_centroid in AVX2: plane_score_avx2.c with codes of 7 bits.
 *
 * A pair of products is at most 2 × 127 × 127 = 32,258 and fills 16 bits: that is why centroids
 * have 7 bits and not 8, and every pair is widened at once. Half a tile at a time: with the sums of
 * a whole one gcc 12 keeps one of them in memory, and every step waits for it.
 */
#include "index/kernels/plane_centroid_tile.h"

#include <immintrin.h>
#include <string.h>

enum { HALF = 8 }; /* centroids */

INLINE __m256i add_products(__m256i sums, __m256i codes, const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Centroids c … c + 7. */
INLINE void finish(const struct plane_centroid_args *args, size_t m, size_t c, __m256i sums)
{
    const struct plane_queries *queries = args->queries;
    __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(args->scale + c),
                                 _mm256_set1_ps(queries->scale[m]));
    __m256 dots = _mm256_sub_ps(_mm256_cvtepi32_ps(sums),
                                _mm256_set1_ps(63.5F * (float)queries->sum[m]));
    _mm256_storeu_ps(args->scores + m * PLANE_TILES + c,
                     _mm256_fmadd_ps(scale, dots, _mm256_set1_ps(queries->offset[m])));
}

INLINE void centroid_rows(const struct plane_centroid_args *args, size_t c, size_t first,
                          size_t rows)
{
    const size_t head_dim = args->queries->head_dim;
    const int8_t *q8 = args->queries->q8 + first * head_dim; /* (rows, D) */
    const uint8_t *soon = centroid_soon(args, c, first);
    for (size_t half = 0; half < PLANE_TILE; half += HALF) {
        const uint8_t *at = args->centroids + c * head_dim + 4 * half;
        __m256i sums[CENTROID_ROWS];
        for (size_t m = 0; m < rows; m++) sums[m] = _mm256_setzero_si256();
        for (size_t d = 0; d < head_dim; d += 4, at += CENTROID_STEP_BYTES) {
            __builtin_prefetch(soon + d * PLANE_TILE);
            __m256i codes = _mm256_load_si256((const __m256i *)(const void *)at);
            for (size_t m = 0; m < rows; m++)
                sums[m] = add_products(sums[m], codes, q8 + m * head_dim + d);
        }
        for (size_t m = 0; m < rows; m++) finish(args, first + m, c + half, sums[m]);
    }
}

void plane_centroid_avx2(const struct plane_centroid_args *args)
{
    centroid_tiles(args, centroid_rows);
}
