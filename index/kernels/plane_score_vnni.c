/* SPDX-License-Identifier: Apache-2.0 */
/* plane_score_vnni.c — plane_score in AVX-512 with VNNI: vpdpbusd multiplies four nibbles of each
 * of 16 tokens with four query codes and adds them to 32 bits, where AVX2 needs two instructions
 * and a widening now and then for eight tokens. Low and high nibbles have sums of their own,
 * because each sum waits for the one before.
 */
#include "index/kernels/plane_score_tile.h"

#include <immintrin.h>
#include <string.h>

INLINE __m512i add_products(__m512i sums, __m512i codes, const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(four));
}

INLINE void score_rows(const struct scan *scan, size_t first, size_t rows)
{
    const struct plane_queries *queries = scan->queries;
    const size_t head_dim = queries->head_dim;
    const int8_t *q8 = queries->q8 + first * head_dim; /* (rows, D) */
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i sums[SCORE_ROWS][2];
    for (size_t m = 0; m < rows; m++) sums[m][0] = sums[m][1] = _mm512_setzero_si512();
    for (size_t d = 0; d < head_dim; d += 8) {
        __builtin_prefetch(scan->soon + d * (SCORE_STEP_BYTES / 8), 0, 2);
        __m512i codes = _mm512_loadu_si512(scan->codes + d * (SCORE_STEP_BYTES / 8));
        __m512i low = _mm512_and_si512(codes, nibble);
        __m512i high = _mm512_andnot_si512(nibble, codes); /* 16 times the code */
        for (size_t m = 0; m < rows; m++) {
            sums[m][0] = add_products(sums[m][0], low, q8 + m * head_dim + d);
            sums[m][1] = add_products(sums[m][1], high, q8 + m * head_dim + d + 4);
        }
    }
    __m512 steps = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)
                                                          scan->key_scale));
    for (size_t m = 0; m < rows; m++) {
        __m512i sum = _mm512_add_epi32(sums[m][0], _mm512_srai_epi32(sums[m][1], 4));
        __m512 dots = _mm512_cvtepi32_ps(sum);
        dots = _mm512_sub_ps(dots, _mm512_set1_ps(7.5F * (float)queries->sum[first + m]));
        __m512 scale = _mm512_mul_ps(steps, _mm512_set1_ps(queries->scale[first + m]));
        _mm512_storeu_ps(scan->scores + (first + m) * scan->stride,
                         _mm512_fmadd_ps(scale, dots, _mm512_set1_ps(queries->offset[first + m])));
    }
}

/* A query row that is alone waits for memory, and loads of 32 bytes get more of it than those of
 * 64: 2.8 against 3.1 ns per token (docs/decisions/0049). */
void plane_score_vnni(const struct plane_score_args *args)
{
    if (args->queries->count == 1) plane_score_avx2(args);
    else score_tiles(args, score_rows);
}
