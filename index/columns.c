/* SPDX-License-Identifier: Apache-2.0 */
/* columns.c — queries first, because they want even addresses; the record is as long as they allow.
 */
#include "index/columns.h"

#include <assert.h>

void columns_init(uint32_t mask, size_t query_heads, size_t head_dim, struct columns *ret_columns)
{
    assert(mask >> COLUMNS == 0);
    struct columns columns = { .mask = mask };
    size_t bytes = 0;
    if ((mask & COLUMNS_QUERIES) != 0) {
        columns.offset[COLUMN_QUERIES] = bytes;
        bytes += query_heads * head_dim * sizeof(uint16_t);
    }
    if ((mask & COLUMNS_MARKS) != 0) {
        columns.offset[COLUMN_MARKS] = bytes;
        bytes += (mask & COLUMNS_QUERIES) != 0 ? sizeof(uint16_t) : 1;
    }
    columns.token_bytes = bytes;
    *ret_columns = columns;
}

const uint16_t *columns_query(const struct columns *columns, const unsigned char *record)
{
    assert((columns->mask & COLUMNS_QUERIES) != 0 && (uintptr_t)record % sizeof(uint16_t) == 0);
    return (const uint16_t *)(const void *)(record + columns->offset[COLUMN_QUERIES]);
}

uint8_t columns_marks(const struct columns *columns, const unsigned char *record)
{
    assert((columns->mask & COLUMNS_MARKS) != 0);
    return record[columns->offset[COLUMN_MARKS]];
}
