/* SPDX-License-Identifier: Apache-2.0 */
/* centroid_table.h — the centroids of many segments of a layer side by side and in one space, so
 * that a query over a long context turns its rows once and reads one stretch of memory.
 *
 * Every segment has a space of its own (planes.h): its balance of channels and its mean key. Asked
 * for the centroids of a thousand segments, a query spends as much on a thousand turns of its rows
 * and on the way from one segment to the next as on the centroids (docs/decisions/0047). A table
 * holds copies for TABLE_SEGMENTS segments of every KV head, coded again in the space of the first
 * one that is put into it. At 4 bits: half of the bytes are read, and an answer is not worse for
 * that where clusters that are opened have their centroid at 7 (their tokens are moved to it,
 * progressive_scan.c). Of what a query then wants mean values, it is of a few clusters in each
 * segment, and where every segment lies on pages of its own it waits for the addresses of pages: so
 * mean values are copied too. 178 bytes per 16 tokens at D = 64, 338 at 128, 4.1 to 4.4 % of their
 * fp16 rows.
 *
 *     entry   centroids as K-hi of planes.h (32 D bytes) · their steps (64 f16) · key_spread of
 *             their clusters, for queries of the table's space, and what rounding adds (64 f32)
 *     behind  centroids of 7 bits as planes.h has them, in the space of their segment, but row by
 *             row (64, D) · their scales (64 f32)
 *     behind  mean values (64, D) s8 · their steps (64 f32) · value_spread (64 f32), as in planes.h
 *
 * A copy, never the only one: nothing of it is stored, a segment without an entry is read from its
 * planes. What 4 bits are off by is in what the sample measures, like everything about shut
 * clusters.
 *
 * Memory   one allocation, of whole huge pages where it is as large as that
 * Threads  put: whoever may change the planes; an entry does not change while planes point to it
 * Errors   NULL = no memory
 * Tests    tests/unit/test_centroid_table.c
 */
#ifndef MEMD_INDEX_CENTROID_TABLE_H
#define MEMD_INDEX_CENTROID_TABLE_H

#include <stddef.h>

#include "index/planes.h"

enum {
    TABLE_SEGMENTS = 128,
    TABLE_FROM = 64, /* segments of a layer: with fewer there is little to gain (0047) */
};

struct centroid_table;

/* Empty, for `heads` KV heads. */
struct centroid_table *centroid_table_new(size_t head_dim, size_t heads);
void centroid_table_free(struct centroid_table *table);
size_t centroid_table_bytes(const struct centroid_table *table);

/* Copy the centroids and mean values of `planes` of this head to `place` < TABLE_SEGMENTS and let
 * `planes` point to them; left as they are where the centroids are too far from each other and from
 * the table's mean key for 4 bits. The first `planes` of a head give the table its space in any
 * case. What was there is no longer in use. */
void centroid_table_put(struct centroid_table *table, size_t head, size_t place,
                        struct planes *planes);

#endif
