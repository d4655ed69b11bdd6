/* SPDX-License-Identifier: Apache-2.0 */
/* plane_weigh_vnni.c — plane_weigh in AVX-512 with VNNI: as plane_weigh_avx2.c with sums of 32 bits
 * from the start, 16 dimensions at once; the last 8 of a head_dim that is no multiple of 16 in half
 * a register.
 */
#include "index/kernels/plane_weigh_tile.h"

#include "index/kernels/plane_round_avx2.h"

INLINE void weigh_sixteen(const struct weighing *w, size_t d, size_t rows)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i left = _mm512_loadu_si512(w->codes + 4 * d);
    __m512i right = _mm512_loadu_si512(w->codes + 4 * (w->head_dim + d));
    __m512i nibbles[QUADS] = { _mm512_and_si512(left, nibble),
                               _mm512_and_si512(_mm512_srli_epi16(left, 4), nibble),
                               _mm512_and_si512(right, nibble),
                               _mm512_and_si512(_mm512_srli_epi16(right, 4), nibble) };
    __builtin_prefetch(w->soon + 8 * d);
    __builtin_prefetch(w->soon + 8 * d + 64);
    for (size_t m = 0; m < rows; m++) {
        __m512i sums = _mm512_setzero_si512();
        for (size_t quad = 0; quad < QUADS; quad++)
            sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(w->weights[m].quads[quad]),
                                       nibbles[quad]);
        float *acc = w->acc[m] + d;
        _mm512_storeu_ps(acc, _mm512_fmadd_ps(_mm512_set1_ps(w->weights[m].unit),
                                              _mm512_cvtepi32_ps(sums), _mm512_loadu_ps(acc)));
    }
}

INLINE void weigh_eight(const struct weighing *w, size_t d, size_t rows)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const uint8_t *at = w->codes + 4 * d;
    __m256i left = _mm256_loadu_si256((const __m256i *)(const void *)at);
    __m256i right = _mm256_loadu_si256((const __m256i *)(const void *)(at + 4 * w->head_dim));
    __m256i nibbles[QUADS] = { _mm256_and_si256(left, nibble),
                               _mm256_and_si256(_mm256_srli_epi16(left, 4), nibble),
                               _mm256_and_si256(right, nibble),
                               _mm256_and_si256(_mm256_srli_epi16(right, 4), nibble) };
    for (size_t m = 0; m < rows; m++) {
        __m256i sums = _mm256_setzero_si256();
        for (size_t quad = 0; quad < QUADS; quad++)
            sums = _mm256_dpbusd_epi32(sums, _mm256_set1_epi32(w->weights[m].quads[quad]),
                                       nibbles[quad]);
        float *acc = w->acc[m] + d;
        _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_set1_ps(w->weights[m].unit),
                                              _mm256_cvtepi32_ps(sums), _mm256_loadu_ps(acc)));
    }
}

INLINE void weigh_groups(const struct weighing *w, size_t d, size_t groups, size_t rows)
{
    if (groups == 2) weigh_sixteen(w, d, rows);
    else weigh_eight(w, d, rows);
}

void plane_weigh_vnni(const struct plane_weigh_args *args)
{
    const struct weigh_isa isa = { round_weights, weigh_groups };
    weigh_tiles(&isa, args);
}
