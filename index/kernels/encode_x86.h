/* SPDX-License-Identifier: Apache-2.0 */
/* encode_x86.h — what encode_tile.h asks an instruction set for, in AVX2. */
#ifndef MEMD_INDEX_KERNELS_ENCODE_X86_H
#define MEMD_INDEX_KERNELS_ENCODE_X86_H

#include <immintrin.h>

#define LOAD_HALVES(at) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(at)))
#define LARGER(a, b) ((wide_int)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#define NARROW(four)                                                            \
    ((wide_bytes)_mm256_packus_epi16(                                           \
        _mm256_packs_epi32((__m256i)(four)[0], (__m256i)(four)[1]),             \
        _mm256_packs_epi32((__m256i)(four)[2], (__m256i)(four)[3])))

#endif
