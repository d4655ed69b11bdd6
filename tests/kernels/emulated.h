/* SPDX-License-Identifier: Apache-2.0 */
/* emulated.h — AVX-512 as portable code, for the twins on a CPU without AVX-512.
 *
 * SIMDe (Debian libsimde-dev) gives every intrinsic under its own name, so a file that includes
 * this first includes the twins unchanged. Their arithmetic is tested on every machine with AVX2;
 * their speed only where the CPU has them.
 */
#ifndef MEMD_TESTS_KERNELS_EMULATED_H
#define MEMD_TESTS_KERNELS_EMULATED_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

/* What SIMDe 0.7.4 lacks. */
static inline simde__m512i emulate_cvtps_epi32(simde__m512 a)
{
    simde__m512_private from = simde__m512_to_private(a);
    simde__m512i_private to;
    for (size_t i = 0; i < 16; i++) to.i32[i] = (int32_t)__builtin_lrintf(from.f32[i]);
    return simde__m512i_from_private(to);
}

static inline simde__m512 emulate_cvtepi32_ps(simde__m512i a)
{
    simde__m512i_private from = simde__m512i_to_private(a);
    simde__m512_private to;
    for (size_t i = 0; i < 16; i++) to.f32[i] = (float)from.i32[i];
    return simde__m512_from_private(to);
}

static inline simde__m512i emulate_cvtepi8_epi32(simde__m128i a)
{
    simde__m128i_private from = simde__m128i_to_private(a);
    simde__m512i_private to;
    for (size_t i = 0; i < 16; i++) to.i32[i] = from.u8[i] < 128 ? from.u8[i] : from.u8[i] - 256;
    return simde__m512i_from_private(to);
}

static inline simde__m512i emulate_cvtepu16_epi32(simde__m256i a)
{
    simde__m256i_private from = simde__m256i_to_private(a);
    simde__m512i_private to;
    for (size_t i = 0; i < 16; i++) to.u32[i] = from.u16[i];
    return simde__m512i_from_private(to);
}

static inline simde__m512 emulate_cvtph_ps(simde__m256i a)
{
    simde__m256i_private from = simde__m256i_to_private(a);
    simde__m512_private to;
    for (size_t i = 0; i < 16; i++)
        to.f32[i] = simde_float16_to_float32(simde_uint16_as_float16(from.u16[i]));
    return simde__m512_from_private(to);
}

static inline simde__m512i emulate_srai_epi32(simde__m512i a, unsigned bits)
{
    simde__m512i_private from = simde__m512i_to_private(a), to;
    for (size_t i = 0; i < 16; i++) to.i32[i] = from.i32[i] >> bits;
    return simde__m512i_from_private(to);
}

/* Quarters of a, then of b, two bits each. */
static inline simde__m512 emulate_shuffle_f32x4(simde__m512 a, simde__m512 b, int quarters)
{
    simde__m512_private from[2] = { simde__m512_to_private(a), simde__m512_to_private(b) }, to;
    for (int i = 0; i < 16; i++)
        to.f32[i] = from[i / 8].f32[(quarters >> i / 4 * 2 & 3) * 4 + i % 4];
    return simde__m512_from_private(to);
}

#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulate_shuffle_f32x4
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emulate_srai_epi32
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulate_cvtps_epi32
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps emulate_cvtepi32_ps
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 emulate_cvtepi8_epi32
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 emulate_cvtepu16_epi32
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emulate_cvtph_ps

#endif
