/* SPDX-License-Identifier: Apache-2.0 */
/* plane_centroid_vnni.c — plane_centroid in AVX-512 with VNNI; even and odd steps have sums of
 * their own, as nibbles have in plane_score_vnni.c. */
#include "index/kernels/plane_centroid_tile.h"

#include <immintrin.h>
#include <string.h>

INLINE __m512i add_centroids(__m512i sums, __m512i codes, const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(four));
}

INLINE void centroid_rows(const struct plane_centroid_args *args, size_t c, size_t first,
                          size_t rows)
{
    const struct plane_queries *queries = args->queries;
    const size_t head_dim = queries->head_dim;
    const int8_t *q8 = queries->q8 + first * head_dim; /* (rows, D) */
    const uint8_t *at = args->centroids + c * head_dim, *soon = centroid_soon(args, c, first);
    __m512i sums[CENTROID_ROWS][2];
    for (size_t m = 0; m < rows; m++) sums[m][0] = sums[m][1] = _mm512_setzero_si512();
    for (size_t d = 0; d < head_dim; d += 8, at += 2 * CENTROID_STEP_BYTES) {
        __builtin_prefetch(soon + d * PLANE_TILE);
        __builtin_prefetch(soon + d * PLANE_TILE + CENTROID_STEP_BYTES);
        __m512i even = _mm512_loadu_si512(at), odd = _mm512_loadu_si512(at + CENTROID_STEP_BYTES);
        for (size_t m = 0; m < rows; m++) {
            sums[m][0] = add_centroids(sums[m][0], even, q8 + m * head_dim + d);
            sums[m][1] = add_centroids(sums[m][1], odd, q8 + m * head_dim + d + 4);
        }
    }
    __m512 steps = _mm512_loadu_ps(args->scale + c);
    for (size_t m = 0; m < rows; m++) {
        __m512 dots = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[m][0], sums[m][1]));
        dots = _mm512_sub_ps(dots, _mm512_set1_ps(63.5F * (float)queries->sum[first + m]));
        __m512 scale = _mm512_mul_ps(steps, _mm512_set1_ps(queries->scale[first + m]));
        _mm512_storeu_ps(args->scores + (first + m) * PLANE_TILES + c,
                         _mm512_fmadd_ps(scale, dots, _mm512_set1_ps(queries->offset[first + m])));
    }
}

void plane_centroid_vnni(const struct plane_centroid_args *args)
{
    centroid_tiles(args, centroid_rows);
}
