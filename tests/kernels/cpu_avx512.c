/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_avx512.c — instead of base/cpu.c where AVX-512 is emulated: with AVX2, this CPU has
 * everything. */
#include "base/cpu.h"

enum cpu_level cpu_level_best(void)
{
    return __builtin_cpu_supports("avx2") ? CPU_VNNI : CPU_REF;
}

enum cpu_level cpu_level(void)
{
    return cpu_level_best();
}

const char *cpu_level_name(enum cpu_level level)
{
    return level == CPU_VNNI ? "vnni" : "other";
}
