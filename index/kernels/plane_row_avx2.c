/* SPDX-License-Identifier: Apache-2.0 */
/* plane_row_avx2.c — plane_row in AVX2: eight nibbles of a word become eight lanes by shifts of
 * their own (vpsrlvd), whichever order the plane keeps them in.
 *
 *     K-hi   a word of the tile: dimensions 0 … 3 are the low nibbles of its bytes, 4 … 7 the high
 *     lo     a word of the row: dimension j is nibble j
 *     V-hi   a word per dimension: the token's nibble is the same in all
 */
#include "index/kernels/plane.h"

#include <immintrin.h>
#include <string.h>

static inline __m256i nibbles(__m256i words, __m256i shifts)
{
    return _mm256_and_si256(_mm256_srlv_epi32(words, shifts), _mm256_set1_epi32(15));
}

static inline __m256i word(const uint8_t *at)
{
    int32_t four;
    memcpy(&four, at, sizeof four);
    return _mm256_set1_epi32(four);
}

static inline void decode(__m256i hi, __m256i lo, __m256 step, float *to)
{
    __m256 code = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(hi, 4), lo));
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_sub_ps(code, _mm256_set1_ps(127.5F)), step));
}

/* Step of 8-bit codes: a 16th of that of hi. */
static inline __m256 step_of(uint16_t scale)
{
    return _mm256_set1_ps(_cvtsh_ss(scale) / 16.0F);
}

void plane_row_avx2(const struct plane_row_args *args)
{
    const size_t head_dim = args->head_dim, i = args->place % PLANE_TILE;
    const size_t tile_at = args->place / PLANE_TILE * PLANE_TILE / 2 * head_dim;
    const uint8_t *key = args->key_hi + tile_at + 4 * i;
    const uint8_t *value = args->value_hi + tile_at + i / 8 * 4 * head_dim;
    const uint8_t *key_lo = args->lo + args->place * head_dim, *value_lo = key_lo + head_dim / 2;
    const __m256i by_half = _mm256_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i of_token = _mm256_set1_epi32((int)(i % 4 * 8 + i % 8 / 4 * 4));
    const __m256 key_step = step_of(args->key_scale[args->place]);
    const __m256 value_step = step_of(args->value_scale[args->place]);
    for (size_t d = 0; d < head_dim; d += 8) {
        decode(nibbles(word(key + d * 8), by_half), nibbles(word(key_lo + d / 2), in_order),
               key_step, args->k + d);
        __m256i eight = _mm256_load_si256((const __m256i *)(const void *)(value + d * 4));
        decode(nibbles(eight, of_token), nibbles(word(value_lo + d / 2), in_order), value_step,
               args->v + d);
    }
}
