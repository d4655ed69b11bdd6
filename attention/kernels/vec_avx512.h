/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx512.h — the vector vocabulary of tile.h in AVX-512 (F, BW, DQ, VL): 16 floats, 32
 * registers.
 *
 * AVX512-BF16's dot product is not used: it multiplies bf16 by bf16, and queries are fp32 here.
 */
#ifndef MEMD_ATTENTION_KERNELS_VEC_AVX512_H
#define MEMD_ATTENTION_KERNELS_VEC_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/kernels/exp_roughly.h"
#include "base/tensor.h"

typedef __m512 vec;

/* 4 rows × 4 queries of sums, 4 row vectors and one more operand fit the 32 registers with room to
 * spare. */
enum { VEC_FLOATS = 16, VEC_ROWS = 4 };

static inline vec vec_set(float value) { return _mm512_set1_ps(value); }
static inline vec vec_load(const float *at) { return _mm512_loadu_ps(at); }
static inline void vec_store(float *at, vec a) { _mm512_storeu_ps(at, a); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }

static inline vec vec_round(vec a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* The larger; `b` where one of them is NaN. */
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }

static inline vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec vec_sqrt(vec a) { return _mm512_sqrt_ps(a); }

/* a * 2^n for whole n in -127 … 127; n = -127 gives 0. */
static inline vec vec_scale2(vec a, vec n)
{
    __mmask16 kept = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-127.0F), _CMP_NLE_UQ); /* NaN too */
    return _mm512_maskz_scalef_ps(kept, a, n);
}

/* exp(a) within 4 % for a in -87 … 87, growing with a (exp_roughly.h). */
static inline vec vec_exp_roughly(vec a)
{
    __m512i bits = _mm512_cvtps_epi32(vec_fma(a, vec_set(EXP_UNIT), vec_set(EXP_ZERO)));
    return _mm512_castsi512_ps(bits);
}

/* VEC_FLOATS elements of `dtype` (a constant where it is called) from element `d` of a row. */
static inline vec vec_load_row(const unsigned char *row, size_t d, uint32_t dtype)
{
    if (dtype == DTYPE_FP32) return _mm512_loadu_ps((const float *)(const void *)(row + 4 * d));
    __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * d));
    if (dtype == DTYPE_FP16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline vec vec_load_s8(const int8_t *at)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

static inline __m256 vec_low(vec a) { return _mm512_castps512_ps256(a); }

static inline __m256 vec_high(vec a)
{
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
}

static inline __m256 vec_halves(vec a) { return _mm256_add_ps(vec_low(a), vec_high(a)); }

/* [a | b], each in 8 sums of two. */
static inline vec vec_fold(vec a, vec b)
{
    return _mm512_add_ps(_mm512_mask_blend_ps(0xFF00, a, b), _mm512_shuffle_f32x4(a, b, 0x4E));
}

/* [a | b | c | d], each in 4 sums of four. */
static inline vec vec_fours(vec a, vec b, vec c, vec d)
{
    vec left = vec_fold(a, b), right = vec_fold(c, d);
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88),
                         _mm512_shuffle_f32x4(left, right, 0xDD));
}

/* The four sums over the elements of each of `sums`. */
static inline void vec_store_sums(float *at, const vec sums[4])
{
    vec fours = vec_fours(sums[0], sums[1], sums[2], sums[3]);
    vec twos = _mm512_add_ps(fours, _mm512_shuffle_ps(fours, fours, 0x4E));
    vec ones = _mm512_add_ps(twos, _mm512_shuffle_ps(twos, twos, 0xB1));
    __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(at, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, ones)));
}

/* The same for four blocks of four, `stride` floats apart, to the bit: what a query gets does not
 * depend on how many are asked with it. 45 instructions instead of 56. */
static inline void vec_store_blocks(float *at, size_t stride, vec sums[4][4])
{
    vec quarters[4]; /* of row i */
    for (size_t i = 0; i < 4; i++)
        quarters[i] = vec_fours(sums[0][i], sums[1][i], sums[2][i], sums[3][i]);
    vec pairs[2];
    for (size_t i = 0; i < 2; i++)
        pairs[i] = _mm512_add_ps(_mm512_shuffle_ps(quarters[2 * i], quarters[2 * i + 1], 0x44),
                                 _mm512_shuffle_ps(quarters[2 * i], quarters[2 * i + 1], 0xEE));
    vec all = _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88),
                            _mm512_shuffle_ps(pairs[0], pairs[1], 0xDD));
    _mm_storeu_ps(at, _mm512_castps512_ps128(all));
    _mm_storeu_ps(at + stride, _mm512_extractf32x4_ps(all, 1));
    _mm_storeu_ps(at + 2 * stride, _mm512_extractf32x4_ps(all, 2));
    _mm_storeu_ps(at + 3 * stride, _mm512_extractf32x4_ps(all, 3));
}

static inline float vec_largest(vec a)
{
    __m256 eight = _mm256_max_ps(vec_low(a), vec_high(a));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

static inline float vec_sum(vec a)
{
    __m256 eight = vec_halves(a);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

#endif
