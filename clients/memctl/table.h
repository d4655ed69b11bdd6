/* SPDX-License-Identifier: Apache-2.0 */
/* table.h — aligned columns: cells are collected, widths follow, then everything is printed.
 *
 * A heading of NULL in every column prints no heading line (for "label value" lists). Control
 * characters in cells are replaced by '?', so that a name cannot move the cursor of a terminal.
 * Width is counted in code points.
 *
 * Errors   when memory runs out, anywhere from table_new on, table_print prints nothing and says
 *          so; until then a NULL table is as good as one
 *
 * Tests    tests/memctl/test_table.c
 */
#ifndef MEMD_CLIENTS_MEMCTL_TABLE_H
#define MEMD_CLIENTS_MEMCTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct table;

enum table_align { TABLE_LEFT, TABLE_RIGHT };

struct table_column {
    const char *heading;
    enum table_align align;
};

/* `columns` must outlive the table. */
struct table *table_new(const struct table_column *columns, size_t column_count);
/* The next cell, row by row. */
void table_add(struct table *table, const char *text);
void table_addf(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
size_t table_rows(const struct table *table);
/* Only whole rows may have been added. False: memory ran out. */
bool table_print(const struct table *table, FILE *out);
void table_free(struct table *table);

static inline void table_freep(struct table **table)
{
    table_free(*table);
}

#endif
