/* SPDX-License-Identifier: Apache-2.0 */
/* encode_backend.c — one row per instruction set that this build was compiled for.
 *
 * A level without a row (neon on an x86) falls to the next lower one that has it.
 */
#include "index/encode_backend.h"

#include <assert.h>
#include <stddef.h>

#define ROW(isa)                                                                       \
    {                                                                                  \
        #isa, encode_rotate_##isa, encode_project_##isa, encode_combine_##isa,         \
            encode_load_##isa, encode_steer_##isa, encode_split_##isa,                 \
            encode_centre_##isa, encode_keys_##isa, encode_values_##isa                \
    }

static const struct encode_backend tables[CPU_LEVELS] = {
    [CPU_REF] = ROW(ref),
#if defined(__x86_64__)
    [CPU_AVX2] = ROW(avx2),
    [CPU_AVX512] = ROW(avx512),
#elif defined(__aarch64__)
    [CPU_NEON] = ROW(neon),
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
    enum cpu_level level = cpu_level(); /* not _for: CPUID traps in virtual machines */
    while (tables[level].rotate == NULL) level--; /* ends at ref, which is always there */
    return &tables[level];
}
