/* SPDX-License-Identifier: Apache-2.0 */
/* test_human.c — rounding at unit borders, and everything that is not a duration or a number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "clients/memctl/human.h"

static void test_bytes(void **state)
{
    (void)state;
    assert_string_equal(human_bytes(0).text, "0 B");
    assert_string_equal(human_bytes(1023).text, "1023 B");
    assert_string_equal(human_bytes(1024).text, "1.00 KiB");
    assert_string_equal(human_bytes(10 * 1024 - 1).text, "10.0 KiB");
    assert_string_equal(human_bytes((1u << 20) - 1).text, "1.00 MiB");
    assert_string_equal(human_bytes(UINT64_C(18350080)).text, "17.5 MiB");
    assert_string_equal(human_bytes(UINT64_MAX).text, "16.0 EiB");
    assert_string_equal(human_bytes_rate(1.07e9).text, "1.07 GB/s");
    assert_string_equal(human_bytes_rate(999.9e6).text, "1.00 GB/s");
}

static void test_counts_and_shares(void **state)
{
    (void)state;
    assert_string_equal(human_count(0).text, "0");
    assert_string_equal(human_count(999).text, "999");
    assert_string_equal(human_count(1000).text, "1,000");
    assert_string_equal(human_count(UINT64_MAX).text, "18,446,744,073,709,551,615");
    assert_string_equal(human_counted(0, "token").text, "0 tokens");
    assert_string_equal(human_counted(1, "connection").text, "1 connection");
    assert_string_equal(human_counted(1, "index").text, "1 index");
    assert_string_equal(human_counted(2048, "index").text, "2,048 indexes");
    assert_string_equal(human_counted(UINT64_MAX, "dropped context").text,
                        "18,446,744,073,709,551,615 dropped contexts");
    assert_string_equal(human_share(0.125).text, "12.5 %");
}

static void test_seconds(void **state)
{
    (void)state;
    assert_string_equal(human_seconds(0.0).text, "0 s");
    assert_string_equal(human_seconds(85e-9).text, "85.0 ns");
    assert_string_equal(human_seconds(41e-6).text, "41.0 us");
    assert_string_equal(human_seconds(3.2e-3).text, "3.20 ms");
    assert_string_equal(human_seconds(12.0).text, "12.0 s");
    assert_string_equal(human_seconds(600.0).text, "10.0 m");
    assert_string_equal(human_seconds(9000.0).text, "2.50 h");
    assert_string_equal(human_seconds(864000.0).text, "10.0 d");
}

static void test_since(void **state)
{
    (void)state;
    assert_string_equal(human_since(0, 5000).text, "never");
    assert_string_equal(human_since(1000, 6000).text, "5.00 s ago");
    assert_string_equal(human_since(6000, 1000).text, "in 5.00 s");
}

static void test_parse(void **state)
{
    (void)state;
    const struct {
        const char *text;
        double seconds; /* < 0: refused */
    } cases[] = {
        { "90", 90 },    { "90s", 90 },  { "1.5s", 1.5 },  { "250ms", 0.25 }, { "15m", 900 },
        { "5min", 300 }, { "2h", 7200 }, { "7d", 604800 }, { "0", 0 },        { "", -1 },
        { "-1", -1 },    { "1w", -1 },   { "inf", -1 },    { "nan", -1 },     { "0x10", -1 },
        { "1 s", -1 },   { "s", -1 },    { "1e300", -1 },  { "367d", -1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double seconds = -1;
        bool good = human_parse_seconds(cases[i].text, &seconds);
        if (good != (cases[i].seconds >= 0)) fail_msg("'%s' gave %d", cases[i].text, good);
        if (seconds != cases[i].seconds) fail_msg("'%s' is %g s", cases[i].text, seconds);
    }
    uint64_t value = 7;
    assert_true(human_parse_uint("18446744073709551615", UINT64_MAX, &value));
    assert_true(value == UINT64_MAX);
    assert_false(human_parse_uint("18446744073709551616", UINT64_MAX, &value));
    assert_false(human_parse_uint("11", 10, &value));
    assert_false(human_parse_uint("-1", UINT64_MAX, &value));
    assert_false(human_parse_uint(" 1", UINT64_MAX, &value));
    assert_false(human_parse_uint("1k", UINT64_MAX, &value));
    assert_true(value == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),   cmocka_unit_test(test_counts_and_shares),
        cmocka_unit_test(test_seconds), cmocka_unit_test(test_since),
        cmocka_unit_test(test_parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
