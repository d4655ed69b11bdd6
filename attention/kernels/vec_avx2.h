/* SPDX-License-Identifier: Apache-2.0 */
/* vec_avx2.h — the vector vocabulary of tile.h in AVX2, FMA and F16C: 8 floats, 16 registers. */
#ifndef MEMD_ATTENTION_KERNELS_VEC_AVX2_H
#define MEMD_ATTENTION_KERNELS_VEC_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/kernels/exp_roughly.h"
#include "base/tensor.h"

typedef __m256 vec;

/* VEC_ROWS rows and 4 queries have VEC_ROWS * 4 sums (or weights), which with VEC_ROWS row vectors
 * and one more operand just fit the registers. */
enum { VEC_FLOATS = 8, VEC_ROWS = 3 };

static inline vec vec_set(float value) { return _mm256_set1_ps(value); }
static inline vec vec_load(const float *at) { return _mm256_loadu_ps(at); }
static inline void vec_store(float *at, vec a) { _mm256_storeu_ps(at, a); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }

static inline vec vec_round(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* The larger; `b` where one of them is NaN. */
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }

static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec vec_sqrt(vec a) { return _mm256_sqrt_ps(a); }

/* a * 2^n for whole n in -127 … 127; n = -127 gives 0. */
static inline vec vec_scale2(vec a, vec n)
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

/* exp(a) within 4 % for a in -87 … 87, growing with a (exp_roughly.h). */
static inline vec vec_exp_roughly(vec a)
{
    __m256i bits = _mm256_cvtps_epi32(vec_fma(a, vec_set(EXP_UNIT), vec_set(EXP_ZERO)));
    return _mm256_castsi256_ps(bits);
}

/* VEC_FLOATS elements of `dtype` (a constant where it is called) from element `d` of a row. */
static inline vec vec_load_row(const unsigned char *row, size_t d, uint32_t dtype)
{
    if (dtype == DTYPE_FP32) return _mm256_loadu_ps((const float *)(const void *)(row + 4 * d));
    __m128i bits = _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * d));
    if (dtype == DTYPE_FP16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

static inline vec vec_load_s8(const int8_t *at)
{
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)at);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

/* The four sums over the elements of a, b, c, d. */
static inline void vec_store_sums(float *at, const vec sums[4])
{
    vec ab = _mm256_hadd_ps(sums[0], sums[1]), cd = _mm256_hadd_ps(sums[2], sums[3]);
    vec abcd = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(at, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

/* The same for four blocks of four, `stride` floats apart. */
static inline void vec_store_blocks(float *at, size_t stride, vec sums[4][4])
{
    for (size_t i = 0; i < 4; i++) vec_store_sums(at + i * stride, sums[i]);
}

static inline float vec_largest(vec a)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

static inline float vec_sum(vec a)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

#endif
