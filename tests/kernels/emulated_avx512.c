/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_avx512.c — the AVX-512 twins on a CPU without AVX-512.
 *
 * SIMDe (Debian libsimde-dev) gives every intrinsic as portable code under its own name, so the
 * twins are included unchanged. Their arithmetic is tested on every machine with AVX2; their speed
 * only where the CPU has them.
 */
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

#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulate_cvtps_epi32
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 emulate_cvtepu16_epi32
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emulate_cvtph_ps

#include "attention/kernels/partial_avx512.c"
#include "attention/kernels/rotate_avx512.c"
#include "attention/kernels/score_avx512.c"
