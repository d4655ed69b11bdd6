/* SPDX-License-Identifier: Apache-2.0 */
/* graph_rows.h — keys and values by position: what a graph jumps to lies all over the views.
 *
 * Rows that are wanted together are copied side by side, so that the kernels of attention/ score
 * and weigh them; the copy runs behind a prefetch of all of them, since each is a cache miss. Keys
 * stored unrotated come out rotated, in fp32.
 *
 * Shapes   ids (count) are nodes: position = first + id
 * Memory   nothing is owned
 * Threads  immutable after graph_rows_init
 * Tests    tests/unit/test_graph.c, through the graph: exact answers from scattered views
 */
#ifndef MEMD_INDEX_GRAPH_ROWS_H
#define MEMD_INDEX_GRAPH_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "index/rows.h"

struct rope;

struct graph_rows {
    struct rows all;         /* of one KV head */
    uint64_t first;          /* position of node 0 */
    uint32_t key_dtype;      /* of what graph_rows_keys writes; values stay as stored */
    uint32_t value_dtype;
};

/* `all` of one KV head; ret_rows->first is 0. */
void graph_rows_init(struct graph_rows *ret_rows, const struct rows *all);

size_t graph_rows_key_bytes(const struct graph_rows *rows);

/* ret_keys (count, D) of key_dtype, ret_values (count, D) of value_dtype */
void graph_rows_keys(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                     void *ret_keys);
void graph_rows_values(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                       void *ret_values);

/* The rows at positions begin … end - 1 of ascending views -> ret_views (≤ view_count); their
 * number. */
size_t graph_rows_clip(const struct view *views, size_t view_count, uint64_t begin, uint64_t end,
                       struct view *ret_views);

/* One key in fp32: ret_key (D). */
void graph_rows_key(const struct graph_rows *rows, uint32_t id, float *ret_key);

#endif
