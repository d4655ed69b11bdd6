/* SPDX-License-Identifier: Apache-2.0 */
/* encode_backend.c — one row per instruction set that this build was compiled for.
 *
 * A level without a row (neon on an x86) falls to the next lower one that has it.
 */
#include "index/encode_backend.h"

#include <assert.h>
#include <stddef.h>

static const struct encode_backend tables[CPU_LEVELS] = {
    [CPU_REF] = { "ref", encode_rotate_ref, encode_project_ref, encode_combine_ref,
                  encode_centre_ref, encode_keys_ref, encode_values_ref },
#if defined(__x86_64__)
    [CPU_AVX2] = { "avx2", encode_rotate_avx2, encode_project_avx2, encode_combine_avx2,
                   encode_centre_avx2, encode_keys_avx2, encode_values_avx2 },
    [CPU_AVX512] = { "avx512", encode_rotate_avx512, encode_project_avx512, encode_combine_avx512,
                     encode_centre_avx512, encode_keys_avx512, encode_values_avx512 },
#elif defined(__aarch64__)
    [CPU_NEON] = { "neon", encode_rotate_neon, encode_project_neon, encode_combine_neon,
                   encode_centre_neon, encode_keys_neon, encode_values_neon },
#endif
};

const struct encode_backend *encode_backend_for(enum cpu_level level)
{
    assert(level < CPU_LEVELS);
    if (level > cpu_level_best() || tables[level].rotate == NULL) return NULL;
    return &tables[level];
}

const struct encode_backend *encode_backend_get(void)
{
    enum cpu_level level = cpu_level(); /* not encode_backend_for: CPUID traps in virtual machines */
    while (tables[level].rotate == NULL) level--; /* ends at ref, which is always there */
    return &tables[level];
}
