/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.c — detection through the compiler's own builtins, which know about XSAVE. */
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

static int has_f16c(void) /* clang 14 has no name for it in __builtin_cpu_supports */
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

enum cpu_level cpu_level_best(void)
{
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx2 && avx512)
        return __builtin_cpu_supports("avx512vnni") ? CPU_VNNI : CPU_AVX512;
    return avx2 ? CPU_AVX2 : CPU_REF;
}
#elif defined(__aarch64__)
enum cpu_level cpu_level_best(void)
{
    return CPU_NEON; /* part of the base architecture */
}
#else
enum cpu_level cpu_level_best(void)
{
    return CPU_REF;
}
#endif

static const char *const names[CPU_LEVELS] = {
#define X(name, text) [CPU_##name] = text,
    CPU_LEVEL_MAP(X)
#undef X
};

const char *cpu_level_name(enum cpu_level level)
{
    return level < CPU_LEVELS ? names[level] : "unknown";
}

static enum cpu_level choose(void)
{
    enum cpu_level best = cpu_level_best();
    const char *wish = getenv("MEMD_SIMD");
    for (int level = 0; wish != NULL && level < CPU_LEVELS; level++) {
        if (strcmp(wish, names[level]) == 0 && level < (int)best) return (enum cpu_level)level;
    }
    return best;
}

enum cpu_level cpu_level(void)
{
    static atomic_int chosen = -1; /* racing first calls choose the same */
    int level = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (level < 0) {
        level = (int)choose();
        atomic_store_explicit(&chosen, level, memory_order_relaxed);
    }
    return (enum cpu_level)level;
}
