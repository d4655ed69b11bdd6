/* SPDX-License-Identifier: Apache-2.0 */
/* bisect.h — balanced clusters: halve a set at the median of its projection on its main direction,
 * until 16 are left.
 *
 * Every cluster has exactly 16 tokens, so that codes lie in regular tiles; and it costs about 30 D
 * multiplications per token where k-means with 10 passes over 64 centroids costs 640 D. Measured
 * in the metric of the queries it is as good as spherical k-means over 8,192 tokens
 * (docs/decisions/0030).
 *
 * Equal projections are halved by row number, so the same sums give the same clusters. Instruction
 * sets sum in different orders: rows that lie on a border may fall to either side of it.
 *
 * Shapes   rows (n, D) fp32, already in the metric to cluster in; n = 16 · 2^m ≤ 1024
 * Memory   ret_order (n): order[16 c + i] = row; rows of a cluster ascending. Scratch of 4 KiB
 *          and a row from the arena
 * Errors   MEMD_ENOMEM
 * Threads  pure
 * Tests    tests/unit/test_bisect.c
 */
#ifndef MEMD_INDEX_BISECT_H
#define MEMD_INDEX_BISECT_H

#include <stddef.h>
#include <stdint.h>

struct arena;

int bisect_rows(const float *rows, size_t n, size_t head_dim, struct arena *arena,
                uint16_t *ret_order);

#endif
