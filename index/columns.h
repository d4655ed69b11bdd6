/* SPDX-License-Identifier: Apache-2.0 */
/* columns.h — what a method wants to be kept of every token besides its key and its value.
 *
 * Some methods can only choose with things that come with a token and cannot be had later: whether
 * it is a landmark, whether it is a special token, its query. A method names its columns; then they
 * are stored with the rows, in the same transaction, follow them into segments, forks and dumps,
 * and are cut with them. All columns of a token lie together, one small record for all heads of the
 * layer, so that storage knows nothing but its size.
 *
 *     column    a token has                           missing from an append
 *     queries   q (H, D) fp16, as the client sent it  refused
 *     marks     one byte, bits MARK_…                 no mark
 *
 * Rejected: one value per column and segment (many small values; nobody reads one column of many
 * tokens without the others), columns that some rows have and others have not.
 *
 * Shapes   record (token_bytes), at even addresses where it holds queries
 * Threads  pure
 * Tests    tests/unit/test_columns.c
 */
#ifndef MEMD_INDEX_COLUMNS_H
#define MEMD_INDEX_COLUMNS_H

#include <stddef.h>
#include <stdint.h>

enum column {
    COLUMN_QUERIES,
    COLUMN_MARKS,
    COLUMNS,
};

/* Sets of columns. */
enum { COLUMNS_NONE = 0, COLUMNS_QUERIES = 1 << COLUMN_QUERIES, COLUMNS_MARKS = 1 << COLUMN_MARKS };

/* Bits of a mark. */
enum {
    MARK_LANDMARK = 1, /* ends a block and stands for it */
    MARK_SPECIAL = 2,  /* BOS, EOS, padding: not to be retrieved */
    MARKS_ALL = MARK_LANDMARK | MARK_SPECIAL,
};

struct columns {
    uint32_t mask;          /* which there are */
    size_t token_bytes;     /* of the record of one token; 0 = there are none */
    size_t offset[COLUMNS]; /* in it, of those that there are */
};

/* Where the columns of `mask` are for a model with these heads. */
void columns_init(uint32_t mask, size_t query_heads, size_t head_dim, struct columns *ret_columns);

/* Of one token's record: its query (H, D) fp16, and its marks. */
const uint16_t *columns_query(const struct columns *columns, const unsigned char *record);
uint8_t columns_marks(const struct columns *columns, const unsigned char *record);

#endif
