/* SPDX-License-Identifier: Apache-2.0 */
/* backend.c — one row per instruction set that this build was compiled for.
 *
 * A level without a row (neon on an x86) falls to the next lower one that has it.
 */
#include "attention/backend.h"

#include <assert.h>
#include <stddef.h>

#include "base/tensor.h"

static const struct backend tables[CPU_LEVELS] = {
    [CPU_REF] = { "ref", partial_ref, score_ref, rotate_ref },
#if defined(__x86_64__)
    [CPU_AVX2] = { "avx2", partial_avx2, score_avx2, rotate_avx2 },
    [CPU_AVX512] = { "avx512", partial_avx512, score_avx512, rotate_avx512 },
#elif defined(__aarch64__)
    [CPU_NEON] = { "neon", partial_neon, score_neon, rotate_neon },
#endif
};

const struct backend *backend_for(enum cpu_level level)
{
    assert(level < CPU_LEVELS);
    if (level > cpu_level_best() || tables[level].partial == NULL) return NULL;
    return &tables[level];
}

const struct backend *backend_get(void)
{
    enum cpu_level level = cpu_level(); /* not backend_for: CPUID traps in virtual machines */
    while (tables[level].partial == NULL) level--; /* ends at ref, which is always there */
    return &tables[level];
}

void backend_widen(const void *rows, uint32_t dtype, size_t count, size_t head_dim, float *ret_rows)
{
    backend_get()->rotate(&(struct rotate_args){ .head_dim = head_dim, .rows = rows,
                                                 .stride_bytes = head_dim * dtype_bytes(dtype),
                                                 .dtype = dtype, .count = count,
                                                 .out = ret_rows });
}
