/* SPDX-License-Identifier: Apache-2.0 */
/* test_columns.c — where the columns of a token are, and that they do not meet. */
#include "index/columns.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_places(void **state)
{
    (void)state;
    struct columns columns;
    columns_init(COLUMNS_NONE, 8, 64, &columns);
    assert_int_equal(columns.token_bytes, 0);
    columns_init(COLUMNS_MARKS, 8, 64, &columns);
    assert_int_equal(columns.token_bytes, 1);
    columns_init(COLUMNS_QUERIES, 8, 64, &columns);
    assert_int_equal(columns.token_bytes, 8 * 64 * 2);
    columns_init(COLUMNS_QUERIES | COLUMNS_MARKS, 8, 64, &columns);
    assert_int_equal(columns.token_bytes % 2, 0);
    assert_true(columns.token_bytes > 8 * 64 * 2);
}

static void test_values(void **state)
{
    (void)state;
    struct columns columns;
    columns_init(COLUMNS_QUERIES | COLUMNS_MARKS, 1, 8, &columns);
    _Alignas(2) unsigned char records[3 * 64] = { 0 };
    assert_true(columns.token_bytes <= 64);
    unsigned char *second = records + columns.token_bytes;
    for (size_t i = 0; i < 16; i++) second[i] = (unsigned char)(i + 1);
    second[16] = MARK_SPECIAL;
    assert_int_equal(columns_query(&columns, second)[7], 16 << 8 | 15);
    assert_int_equal(columns_marks(&columns, second), MARK_SPECIAL);
    assert_int_equal(columns_marks(&columns, records), 0);
    assert_int_equal(columns_marks(&columns, second + columns.token_bytes), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
