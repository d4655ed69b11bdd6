/* SPDX-License-Identifier: Apache-2.0 */
/* vec_neon.h — the vector vocabulary of tile.h in AArch64 Advanced SIMD: 4 floats, 32 registers.
 *
 * Loads go through bytes, because rows may be unaligned and strict compilers trap on casts.
 */
#ifndef MEMD_ATTENTION_KERNELS_VEC_NEON_H
#define MEMD_ATTENTION_KERNELS_VEC_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "attention/kernels/exp_roughly.h"
#include "base/tensor.h"

typedef float32x4_t vec;

/* 4 rows × 4 queries of sums, 4 row vectors and one more operand fit the 32 registers with room to
 * spare. */
enum { VEC_FLOATS = 4, VEC_ROWS = 4 };

static inline vec vec_set(float value) { return vdupq_n_f32(value); }
static inline vec vec_load(const float *at) { return vld1q_f32(at); }
static inline void vec_store(float *at, vec a) { vst1q_f32(at, a); }
static inline vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
static inline vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline vec vec_round(vec a) { return vrndnq_f32(a); }

/* The larger; `b` where one of them is NaN. */
static inline vec vec_max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

static inline vec vec_min(vec a, vec b) { return vminq_f32(a, b); }
static inline vec vec_sqrt(vec a) { return vsqrtq_f32(a); }

/* a * 2^n for whole n in -127 … 127; n = -127 gives 0. */
static inline vec vec_scale2(vec a, vec n)
{
    int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

/* exp(a) within 4 % for a in -87 … 87, growing with a (exp_roughly.h). */
static inline vec vec_exp_roughly(vec a)
{
    int32x4_t bits = vcvtnq_s32_f32(vec_fma(a, vec_set(EXP_UNIT), vec_set(EXP_ZERO)));
    return vreinterpretq_f32_s32(bits);
}

/* VEC_FLOATS elements of `dtype` (a constant where it is called) from element `d` of a row. */
static inline vec vec_load_row(const unsigned char *row, size_t d, uint32_t dtype)
{
    if (dtype == DTYPE_FP32) return vreinterpretq_f32_u8(vld1q_u8(row + 4 * d));
    uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(row + 2 * d));
    if (dtype == DTYPE_FP16) return vcvt_f32_f16(vreinterpret_f16_u16(bits));
    return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}

static inline vec vec_load_s8(const int8_t *at)
{
    int32_t four;
    memcpy(&four, at, sizeof four);
    int16x8_t wide = vmovl_s8(vcreate_s8((uint32_t)four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}

/* The four sums over the elements of each of `sums`. */
static inline void vec_store_sums(float *at, const vec sums[4])
{
    vst1q_f32(at, vpaddq_f32(vpaddq_f32(sums[0], sums[1]), vpaddq_f32(sums[2], sums[3])));
}

/* The same for four blocks of four, `stride` floats apart. */
static inline void vec_store_blocks(float *at, size_t stride, vec sums[4][4])
{
    for (size_t i = 0; i < 4; i++) vec_store_sums(at + i * stride, sums[i]);
}

static inline float vec_largest(vec a) { return vmaxvq_f32(a); }
static inline float vec_sum(vec a) { return vaddvq_f32(a); }

#endif
