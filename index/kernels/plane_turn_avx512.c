/* SPDX-License-Identifier: Apache-2.0 */
/* plane_turn_avx512.c — plane_turn in AVX-512 for head_dim 64, 128 and 256: a row stays in 4, 8 or
 * 16 registers from the division by the balance to its codes. Four stages of the Hadamard transform
 * are inside a register, the others between registers. Other sizes go to AVX2.
 *
 * Signs and the root of D are put into the reciprocals of the balance, once for all rows.
 */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, VECS_MAX = 16 };

/* What all rows share. */
struct turning {
    __m512 factor[VECS_MAX]; /* sign / (balance sqrt(D)) */
    __m512 weight[VECS_MAX]; /* 1 / query_square, bounded */
};

INLINE void turning_init(const struct plane_turn_args *args, size_t vecs,
                         struct turning *ret_turning)
{
    const __m512 root = _mm512_set1_ps(1.0F / __builtin_sqrtf((float)(vecs * LANES)));
    const __m512 minus = _mm512_set1_ps(-0.0F);
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < vecs; i++) {
        const uint8_t *bits = args->signs[0] + i * LANES / 8;
        __mmask16 negative = (__mmask16)(bits[0] | bits[1] << 8);
        __m512 factor = _mm512_div_ps(root, _mm512_loadu_ps(args->balance + i * LANES));
        ret_turning->factor[i] = _mm512_mask_xor_ps(factor, negative, factor, minus);
        ret_turning->weight[i] = _mm512_set1_ps(1.0F);
        if (args->query_square == NULL) continue;
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(args->query_square + i * LANES));
    }
    if (args->query_square == NULL) return;
    float mean = vec_sum(sum) / (float)(vecs * LANES);
    const __m512 least = _mm512_set1_ps(args->floor * mean + 1e-30F);
    for (size_t i = 0; i < vecs; i++)
        ret_turning->weight[i] = _mm512_div_ps(
            ret_turning->weight[i],
            _mm512_max_ps(_mm512_loadu_ps(args->query_square + i * LANES), least));
}

/* ±1: lanes of `negative` are the second of their pair. */
INLINE __m512 signs_of(__mmask16 negative)
{
    const __m512 one = _mm512_set1_ps(1.0F);
    return _mm512_mask_blend_ps(negative, one, _mm512_set1_ps(-1.0F));
}

/* Butterflies inside a register: the partner plus or minus x. As multiply-adds they run beside the
 * additions between registers, and round the same. */
INLINE __m512 within(__m512 x)
{
    x = _mm512_fmadd_ps(x, signs_of(0xAAAA), _mm512_shuffle_ps(x, x, 0xB1));
    x = _mm512_fmadd_ps(x, signs_of(0xCCCC), _mm512_shuffle_ps(x, x, 0x4E));
    x = _mm512_fmadd_ps(x, signs_of(0xF0F0), _mm512_shuffle_f32x4(x, x, 0xB1));
    return _mm512_fmadd_ps(x, signs_of(0xFF00), _mm512_shuffle_f32x4(x, x, 0x4E));
}

/* Codes of a row, and what goes with them. x (vecs) */
INLINE void round_row(const struct plane_turn_args *args, size_t m, const __m512 *x, size_t vecs)
{
    __m512 most = _mm512_setzero_ps(), square = _mm512_setzero_ps();
    for (size_t i = 0; i < vecs; i++) {
        most = _mm512_max_ps(most, _mm512_abs_ps(x[i]));
        square = _mm512_fmadd_ps(x[i], x[i], square);
    }
    float top = vec_largest(most);
    const __m512 inverse = _mm512_set1_ps(top > 0.0F ? 127.0F / top : 0.0F);
    __m512i sum = _mm512_setzero_si512();
    int8_t *q8 = args->q8 + m * vecs * LANES;
    for (size_t i = 0; i < vecs; i++) {
        __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
        sum = _mm512_add_epi32(sum, codes);
        _mm_storeu_si128((__m128i *)(void *)(q8 + i * LANES), _mm512_cvtsepi32_epi8(codes));
        _mm512_storeu_ps(args->turned + (m * vecs + i) * LANES, x[i]);
    }
    args->scale[m] = top / 127.0F;
    args->square[m] = vec_sum(square);
    args->sum[m] = (int32_t)vec_sum(_mm512_cvtepi32_ps(sum)); /* exact: below 2^24 */
}

/* `vecs`, a constant at every call: D / 16. */
INLINE void turn_rows(const struct plane_turn_args *args, size_t vecs)
{
    struct turning turning;
    turning_init(args, vecs, &turning);
    for (size_t m = 0; m < args->queries; m++) {
        const float *q = args->q + m * vecs * LANES;
        __m512 x[VECS_MAX], offset = _mm512_setzero_ps(), ratio = _mm512_setzero_ps();
        for (size_t i = 0; i < vecs; i++) {
            __m512 here = _mm512_loadu_ps(q + i * LANES);
            offset = _mm512_fmadd_ps(here, _mm512_loadu_ps(args->key_mean + i * LANES), offset);
            ratio = _mm512_fmadd_ps(_mm512_mul_ps(here, here), turning.weight[i], ratio);
            x[i] = within(_mm512_mul_ps(here, turning.factor[i]));
        }
        for (size_t gap = 1; gap < vecs; gap *= 2)
            for (size_t i = 0; i < vecs; i++) {
                if ((i & gap) != 0) continue;
                __m512 a = x[i], b = x[i + gap];
                x[i] = _mm512_add_ps(a, b);
                x[i + gap] = _mm512_sub_ps(a, b);
            }
        args->offset[m] = vec_sum(offset);
        args->deviation[m] =
            __builtin_sqrtf(vec_sum(ratio) / (float)(vecs * LANES));
        round_row(args, m, x, vecs);
    }
}

void plane_turn_avx512(const struct plane_turn_args *args)
{
    switch (args->head_dim) {
    case 64: turn_rows(args, 4); break;
    case 128: turn_rows(args, 8); break;
    case 256: turn_rows(args, 16); break;
    default: plane_turn_avx2(args); break;
    }
}
