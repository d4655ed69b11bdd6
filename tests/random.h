/* SPDX-License-Identifier: Apache-2.0 */
/* random.h — random numbers that a failure can be repeated with.
 *
 * A test asks for its seed once, which prints it: fixed unless MEMD_TEST_SEED says otherwise, so
 * that CI is the same every time and a long night of other seeds is one loop in the shell.
 */
#ifndef MEMD_TESTS_RANDOM_H
#define MEMD_TESTS_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static inline uint64_t random_seed(void)
{
    const char *text = getenv("MEMD_TEST_SEED");
    uint64_t seed = text == NULL ? 1 : strtoull(text, NULL, 0);
    fprintf(stderr, "MEMD_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* splitmix64 (Steele, Lea, Flood 2014): any state is a good one. */
static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* 0 … bound - 1. */
static inline uint64_t random_below(uint64_t *state, uint64_t bound)
{
    return random_u64(state) % bound;
}

/* -1 … 1, evenly. */
static inline float random_float(uint64_t *state)
{
    return (float)(random_u64(state) >> 40) / (float)(1 << 23) - 1.0F;
}

#endif
