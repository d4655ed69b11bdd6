/* SPDX-License-Identifier: Apache-2.0 */
/* table.c — one growing array of cell texts; nothing is printed before the widths are known. The
 * last column is not padded, so that lines do not end in spaces. */
#include "clients/memctl/table.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct table {
    const struct table_column *columns;
    size_t column_count;
    char **cells;
    size_t cell_count;
    size_t cell_room;
    bool failed; /* a cell is missing: nothing is printed */
};

struct table *table_new(const struct table_column *columns, size_t column_count)
{
    assert(column_count > 0);
    struct table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->columns = columns;
    table->column_count = column_count;
    return table;
}

static void replace_control(char *text)
{
    for (unsigned char *s = (unsigned char *)text; *s != 0; s++) {
        bool c1 = s[0] == 0xC2 && s[1] >= 0x80 && s[1] < 0xA0; /* U+0080 … U+009F in UTF-8 */
        if (*s < 0x20 || *s == 0x7F) *s = '?';
        if (c1) s[0] = s[1] = '?';
    }
}

/* Room for one more cell. */
static bool grow(struct table *table)
{
    if (table->cell_count < table->cell_room) return true;
    size_t room = table->cell_room == 0 ? 64 : table->cell_room * 2;
    char **cells = realloc(table->cells, room * sizeof *cells);
    if (cells == NULL) return false;
    table->cells = cells;
    table->cell_room = room;
    return true;
}

/* Takes `text`, which came from malloc; NULL when that failed. */
static void put(struct table *table, char *text)
{
    if (table == NULL || text == NULL || !grow(table)) {
        if (table != NULL) table->failed = true;
        free(text);
        return;
    }
    replace_control(text);
    table->cells[table->cell_count++] = text;
}

void table_add(struct table *table, const char *text)
{
    put(table, strdup(text));
}

void table_addf(struct table *table, const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    put(table, length < 0 ? NULL : text);
}

size_t table_rows(const struct table *table)
{
    return table == NULL ? 0 : table->cell_count / table->column_count;
}

static size_t text_width(const char *text)
{
    size_t width = 0;
    for (; *text != '\0'; text++) width += ((unsigned char)*text & 0xC0) != 0x80;
    return width;
}

static void print_cell(FILE *out, const char *text, size_t width, enum table_align align, bool last)
{
    size_t pad = width - text_width(text);
    if (align == TABLE_RIGHT) fprintf(out, "%*s", (int)pad, "");
    fputs(text, out);
    if (align == TABLE_LEFT && !last) fprintf(out, "%*s", (int)pad, "");
    fputs(last ? "\n" : "  ", out);
}

static size_t column_width(const struct table *table, size_t column)
{
    const char *heading = table->columns[column].heading;
    size_t width = heading == NULL ? 0 : text_width(heading);
    for (size_t i = column; i < table->cell_count; i += table->column_count) {
        size_t cell = text_width(table->cells[i]);
        if (cell > width) width = cell;
    }
    return width;
}

bool table_print(const struct table *table, FILE *out)
{
    if (table == NULL || table->failed) return false;
    assert(table->cell_count % table->column_count == 0);
    size_t count = table->column_count;
    size_t *widths = calloc(count, sizeof *widths);
    if (widths == NULL) return false;
    for (size_t c = 0; c < count; c++) widths[c] = column_width(table, c);
    for (size_t c = 0; c < count && table->columns[0].heading != NULL; c++) {
        const struct table_column *column = &table->columns[c];
        print_cell(out, column->heading, widths[c], column->align, c + 1 == count);
    }
    for (size_t i = 0; i < table->cell_count; i++) {
        size_t c = i % count;
        print_cell(out, table->cells[i], widths[c], table->columns[c].align, c + 1 == count);
    }
    free(widths);
    return true;
}

void table_free(struct table *table)
{
    if (table == NULL) return;
    for (size_t i = 0; i < table->cell_count; i++) free(table->cells[i]);
    free(table->cells);
    free(table);
}
