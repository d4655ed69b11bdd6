/* SPDX-License-Identifier: Apache-2.0 */
/* stream.h — the floor that every kernel's time stands beside: read every byte once, in order. One
 * definition, so that shares of it can be compared between benchmarks. */
#ifndef MEMD_TESTS_BENCH_STREAM_H
#define MEMD_TESTS_BENCH_STREAM_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t stream_lane __attribute__((vector_size(32)));

/* bytes at a multiple of 32, count a multiple of 128. The result keeps the compiler from skipping
 * it. */
static inline uint64_t stream(const unsigned char *bytes, size_t count)
{
    stream_lane sums[4] = { { 0 } };
    for (size_t at = 0; at < count; at += sizeof sums) {
        const stream_lane *block = (const stream_lane *)(const void *)(bytes + at);
        for (size_t i = 0; i < 4; i++) sums[i] += block[i];
    }
    stream_lane sum = sums[0] + sums[1] + sums[2] + sums[3];
    return sum[0] + sum[1] + sum[2] + sum[3];
}

#endif
