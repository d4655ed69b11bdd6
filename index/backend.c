/* SPDX-License-Identifier: Apache-2.0 */
/* backend.c — one row per instruction set that this build was compiled for, as
 * attention/backend.c.
 *
 * A level without a row (neon on an x86) falls to the next lower one that has it. AVX-512 without
 * VNNI multiplies integers as AVX2 does (docs/decisions/0035); rows are decoded too seldom for more
 * than AVX2.
 */
#include "index/backend.h"

#include <assert.h>
#include <stddef.h>

static const struct plane_backend tables[CPU_LEVELS] = {
    [CPU_REF] = { "ref", plane_turn_ref, plane_score_ref, plane_centroid_ref, plane_dot_ref,
                  plane_above_ref, plane_rank_ref, plane_estimate_ref, plane_soften_ref,
                  plane_weigh_ref, plane_means_ref, plane_miss_ref, plane_row_ref },
#if defined(__x86_64__)
    [CPU_AVX2] = { "avx2", plane_turn_avx2, plane_score_avx2, plane_centroid_avx2, plane_dot_avx2,
                   plane_above_avx2, plane_rank_avx2, plane_estimate_avx2, plane_soften_avx2,
                   plane_weigh_avx2, plane_means_avx2, plane_miss_avx2, plane_row_avx2 },
    [CPU_AVX512] = { "avx512", plane_turn_avx512, plane_score_avx2, plane_centroid_avx2,
                     plane_dot_avx512, plane_above_avx512, plane_rank_avx512,
                     plane_estimate_avx512, plane_soften_avx512, plane_weigh_avx2,
                     plane_means_avx512, plane_miss_avx512, plane_row_avx2 },
    [CPU_VNNI] = { "vnni", plane_turn_avx512, plane_score_vnni, plane_centroid_vnni,
                   plane_dot_avx512, plane_above_avx512, plane_rank_avx512, plane_estimate_avx512,
                   plane_soften_avx512, plane_weigh_vnni, plane_means_avx512, plane_miss_avx512,
                   plane_row_avx2 },
#elif defined(__aarch64__)
    [CPU_NEON] = { "neon", plane_turn_neon, plane_score_neon, plane_centroid_neon, plane_dot_neon,
                   plane_above_neon, plane_rank_neon, plane_estimate_neon, plane_soften_neon,
                   plane_weigh_neon, plane_means_neon, plane_miss_neon, plane_row_neon },
#endif
};

const struct plane_backend *plane_backend_for(enum cpu_level level)
{
    assert(level < CPU_LEVELS);
    if (level > cpu_level_best() || tables[level].score == NULL) return NULL;
    return &tables[level];
}

const struct plane_backend *plane_backend_get(void)
{
    enum cpu_level level = cpu_level(); /* not plane_backend_for: CPUID traps in virtual machines */
    while (tables[level].score == NULL) level--; /* ends at ref, which is always there */
    return &tables[level];
}
