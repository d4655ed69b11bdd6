/* SPDX-License-Identifier: Apache-2.0 */
/* plane_weigh_avx2.c — plane_weigh in AVX2: a lane is a dimension, a step four tokens of it.
 *
 * vpmaddubsw multiplies weights (unsigned) with nibbles (as signed): a pair is at most 2 × 255 × 15
 * = 7,650, and the four pairs of a lane (30,600) stay in 16 bits until vpmaddwd widens them, once
 * per tile.
 */
#include "index/kernels/plane_weigh_tile.h"

#include "index/kernels/plane_round_avx2.h"

INLINE __m256i add_products(__m256i pairs, int32_t weights, __m256i nibbles)
{
    return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi32(weights), nibbles));
}

INLINE void weigh_groups(const struct weighing *w, size_t d, size_t groups, size_t rows)
{
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i nibbles[2][QUADS];
    for (size_t g = 0; g < groups; g++) {
        const uint8_t *at = w->codes + 4 * d + 32 * g;
        __m256i left = _mm256_load_si256((const __m256i *)(const void *)at);
        __m256i right = _mm256_load_si256((const __m256i *)(const void *)(at + 4 * w->head_dim));
        nibbles[g][0] = _mm256_and_si256(left, nibble);
        nibbles[g][1] = _mm256_and_si256(_mm256_srli_epi16(left, 4), nibble);
        nibbles[g][2] = _mm256_and_si256(right, nibble);
        nibbles[g][3] = _mm256_and_si256(_mm256_srli_epi16(right, 4), nibble);
        __builtin_prefetch(w->soon + 8 * d + 64 * g, 0, 2);
    }
    for (size_t m = 0; m < rows; m++) {
        __m256i pairs[2] = { _mm256_setzero_si256(), _mm256_setzero_si256() };
        for (size_t quad = 0; quad < QUADS; quad++)
            for (size_t g = 0; g < groups; g++)
                pairs[g] = add_products(pairs[g], w->weights[m].quads[quad], nibbles[g][quad]);
        for (size_t g = 0; g < groups; g++) {
            float *acc = w->acc[m] + d + 8 * g;
            __m256 sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs[g], ones));
            _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_set1_ps(w->weights[m].unit), sums,
                                                  _mm256_loadu_ps(acc)));
        }
    }
}

INLINE void weigh_all(const struct weighing *batch, size_t count, size_t rows)
{
    weigh_each(weigh_groups, batch, count, rows);
}

void plane_weigh_avx2(const struct plane_weigh_args *args)
{
    const struct weigh_isa isa = { round_weights, weigh_all };
    weigh_tiles(&isa, args);
}
