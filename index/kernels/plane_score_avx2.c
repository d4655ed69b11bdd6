/* SPDX-License-Identifier: Apache-2.0 */
/* plane_score_avx2.c — plane_score in AVX2: a lane is a token, a step eight dimensions of it.
 *
 * 64 bytes of K-hi hold 16 tokens × (4 + 4) dimensions. After the nibbles are split, vpmaddubsw
 * multiplies them with four query codes that all lanes share: no sum goes across tokens. A pair of
 * products is at most 2 × 15 × 127 = 3,810, so eight of them stay in 16 bits (30,480) before
 * vpmaddwd widens them; that is four steps of 64 bytes. Dots are exact integers.
 *
 * Four query rows share each split, and both halves of a tile each broadcast of a query: with fewer
 * the loads decide, with more the registers do.
 *
 * Rejected: floats of codes (8 conversions for one vpmaddubsw); queries of 16 bits (twice the
 * multiplications, and rounding them to 8 bits is far below the rounding of keys to 4).
 */
#include "index/kernels/plane_score_tile.h"

#include <immintrin.h>
#include <string.h>

enum { STEPS = 4 }; /* until sums of 16 bits must be widened */

INLINE __m256i four_codes(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE __m256i add_products(__m256i pairs, __m256i codes, __m256i query)
{
    return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, query));
}

/* Add steps first_step … first_step + steps - 1 ≤ STEPS. q8 (rows, D) */
INLINE void add_steps(const struct scan *scan, size_t first_step, size_t steps, const int8_t *q8,
                      size_t rows, __m256i sums[SCORE_ROWS][2])
{
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i pairs[SCORE_ROWS][2];
    for (size_t m = 0; m < rows; m++) pairs[m][0] = pairs[m][1] = _mm256_setzero_si256();
    for (size_t step = first_step; step < first_step + steps; step++) {
        const uint8_t *at = scan->codes + step * SCORE_STEP_BYTES;
        __builtin_prefetch(scan->soon + step * SCORE_STEP_BYTES, 0, 2);
        __m256i left = _mm256_load_si256((const __m256i *)(const void *)at);
        __m256i right = _mm256_load_si256((const __m256i *)(const void *)(at + 32));
        __m256i low[2] = { _mm256_and_si256(left, nibble), _mm256_and_si256(right, nibble) };
        __m256i high[2] = { _mm256_and_si256(_mm256_srli_epi16(left, 4), nibble),
                            _mm256_and_si256(_mm256_srli_epi16(right, 4), nibble) };
        for (size_t m = 0; m < rows; m++) {
            const int8_t *q = q8 + m * scan->queries->head_dim + step * 8;
            __m256i query = four_codes(q);
            pairs[m][0] = add_products(pairs[m][0], low[0], query);
            pairs[m][1] = add_products(pairs[m][1], low[1], query);
            query = four_codes(q + 4);
            pairs[m][0] = add_products(pairs[m][0], high[0], query);
            pairs[m][1] = add_products(pairs[m][1], high[1], query);
        }
    }
    for (size_t m = 0; m < rows; m++)
        for (size_t half = 0; half < 2; half++)
            sums[m][half] =
                _mm256_add_epi32(sums[m][half], _mm256_madd_epi16(pairs[m][half], ones));
}

/* Integer sums of 8 tokens of the tile to scores. */
INLINE void finish(const struct scan *scan, size_t m, size_t half, __m256i sums)
{
    const struct plane_queries *queries = scan->queries;
    const __m128i *steps = (const __m128i *)(const void *)scan->key_scale + half;
    __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128(steps)),
                                 _mm256_set1_ps(queries->scale[m]));
    __m256 dots = _mm256_sub_ps(_mm256_cvtepi32_ps(sums),
                                _mm256_set1_ps(7.5F * (float)queries->sum[m]));
    _mm256_storeu_ps(scan->scores + m * scan->stride + 8 * half,
                     _mm256_fmadd_ps(scale, dots, _mm256_set1_ps(queries->offset[m])));
}

INLINE void score_rows(const struct scan *scan, size_t first, size_t rows)
{
    const size_t steps = scan->queries->head_dim / 8;
    const int8_t *q8 = scan->queries->q8 + first * scan->queries->head_dim;
    __m256i sums[SCORE_ROWS][2];
    for (size_t m = 0; m < rows; m++) sums[m][0] = sums[m][1] = _mm256_setzero_si256();
    size_t step = 0;
    for (; step + STEPS <= steps; step += STEPS) add_steps(scan, step, STEPS, q8, rows, sums);
    if (step < steps) add_steps(scan, step, steps - step, q8, rows, sums);
    for (size_t m = 0; m < rows; m++)
        for (size_t half = 0; half < 2; half++) finish(scan, first + m, half, sums[m][half]);
}

void plane_score_avx2(const struct plane_score_args *args)
{
    score_tiles(args, score_rows);
}
