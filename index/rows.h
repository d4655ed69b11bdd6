/* SPDX-License-Identifier: Apache-2.0 */
/* rows.h — the exact rows of a layer by position: where a token lies, and copies of tokens in fp32.
 *
 * What scan.h is to "all rows in any order", this is to an index that knows which tokens it wants.
 *
 * Shapes   views (G, view_count), those of a KV head ascending and without gaps from position 0
 * Cost     O(1) to find a token of equal views (sealed segments), a short walk behind them
 * Threads  pure
 * Tests    tests/unit/test_streaming.c
 */
#ifndef MEMD_INDEX_ROWS_H
#define MEMD_INDEX_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "attention/view.h"

struct columns;
struct rope;

struct rows {
    const struct view *views; /* (G, view_count) */
    size_t view_count, head_dim;
    const struct rope *rope; /* not NULL: keys are stored unrotated */
};

/* How many tokens there are: positions 0 … result-1. */
uint64_t rows_tokens(const struct rows *rows);

/* The view of KV head g that holds `position`, which is below rows_tokens. */
const struct view *rows_view(const struct rows *rows, size_t g, uint64_t position);

/* Keys of positions begin … begin+count-1, rotated, in fp32. Where they are rotated a last bit can
 * depend on where a view begins. ret_keys (count, D) */
void rows_keys(const struct rows *rows, size_t g, uint64_t begin, size_t count, float *ret_keys);

/* The columns of a token (columns.h), of views that have them. */
const unsigned char *rows_columns(const struct rows *rows, uint64_t position);

/* Queries of head h of positions begin … begin+count-1, as their columns have them (columns.h).
 * ret_queries (count, D) fp16 */
void rows_queries(const struct rows *rows, const struct columns *columns, size_t h, uint64_t begin,
                  size_t count, uint16_t *ret_queries);

/* ret_values (count, D) fp32 */
void rows_values(const struct rows *rows, size_t g, uint64_t begin, size_t count,
                 float *ret_values);

#endif
