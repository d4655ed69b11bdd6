/* SPDX-License-Identifier: Apache-2.0 */
/* test_table.c — alignment in code points, no trailing spaces, control characters made harmless. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "clients/memctl/table.h"

static char *printed(const struct table *table)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    assert_true(table_print(table, out));
    fclose(out);
    return text;
}

static const struct table_column columns[] = {
    { "NAME", TABLE_LEFT },
    { "TOKENS", TABLE_RIGHT },
    { "METHOD", TABLE_LEFT },
};

static void test_alignment(void **state)
{
    (void)state;
    struct table *table = table_new(columns, 3);
    table_add(table, "\xC3\xA9t\xC3\xA9-2026"); /* 8 code points, 10 bytes */
    table_addf(table, "%d", 7);
    table_add(table, "full");
    table_add(table, "b");
    table_add(table, "12345678");
    table_add(table, "landmark");
    assert_int_equal(table_rows(table), 2);
    char *text = printed(table);
    assert_string_equal(text, "NAME        TOKENS  METHOD\n"
                              "\xC3\xA9t\xC3\xA9-2026         7  full\n"
                              "b         12345678  landmark\n");
    free(text);
    table_free(table);
}

static void test_control_characters(void **state)
{
    (void)state;
    struct table *table = table_new(columns, 3);
    table_add(table, "a\x1b[2Jb\nc");
    table_add(table, "\xC2\x9B" "2J"); /* CSI as one C1 code */
    table_add(table, "");
    char *text = printed(table);
    assert_string_equal(text, "NAME      TOKENS  METHOD\na?[2Jb?c    ??2J  \n");
    free(text);
    table_free(table);
}

static void test_no_heading(void **state)
{
    (void)state;
    const struct table_column plain[] = { { NULL, TABLE_LEFT }, { NULL, TABLE_LEFT } };
    struct table *table = table_new(plain, 2);
    char *text = printed(table);
    assert_string_equal(text, "");
    free(text);
    for (int i = 0; i < 100; i++) {
        table_add(table, "label");
        table_add(table, "value");
    }
    assert_int_equal(table_rows(table), 100);
    text = printed(table);
    assert_memory_equal(text, "label  value\nlabel  value\n", 26);
    free(text);
    table_free(table);
    table_free(NULL);
    table_add(NULL, "memory ran out");
    assert_false(table_print(NULL, stdout));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_no_heading),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
