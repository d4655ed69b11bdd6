/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.h — which instruction set the kernels may use.
 *
 * The level is found once, from CPUID and the operating system's promise to save the registers, and
 * may be lowered (never raised) by MEMD_SIMD = ref | avx2 | avx512 | vnni | neon, for tests and for
 * blaming. A folder need not have kernels of every level: it takes those of the next lower one. One
 * of the two process-wide variables of memd (the other is the log level).
 */
#ifndef MEMD_BASE_CPU_H
#define MEMD_BASE_CPU_H

/* X(name, text); later is faster, a CPU has exactly one chain of these. AVX512 is F, BW, DQ and VL;
 * VNNI is AVX-512 with dot products of bytes. */
#define CPU_LEVEL_MAP(X) \
    X(REF, "ref")        \
    X(NEON, "neon")      \
    X(AVX2, "avx2")      \
    X(AVX512, "avx512")  \
    X(VNNI, "vnni")

enum cpu_level {
#define X(name, text) CPU_##name,
    CPU_LEVEL_MAP(X)
#undef X
    CPU_LEVELS,
};

/* The level in force; the first call decides, later calls return the same. Any thread. */
enum cpu_level cpu_level(void);

/* The best level this CPU and this build have, whatever MEMD_SIMD says. */
enum cpu_level cpu_level_best(void);

const char *cpu_level_name(enum cpu_level level);

#endif
