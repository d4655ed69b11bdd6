/* SPDX-License-Identifier: Apache-2.0 */
/* test_text.c — every border of table 3-7, and that what is repaired is text and keeps what was. */
#include "base/text.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/error.h"

static void test_ok(void **state)
{
    (void)state;
    static const char *const good[] = {
        "", "plain", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xc3\xa9z",
    };
    static const char *const bad[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2z", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xe2\x82", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xc3",
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(text_ok(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(text_ok(bad[i], strlen(bad[i])));
    assert_false(text_ok("a\0b", 3));
}

static void test_repair(void **state)
{
    (void)state;
    char text[] = "\xc3\xa9\xff caf\xc3 \xe2\x82";
    text_repair(text);
    assert_string_equal(text, "\xc3\xa9? caf? ??");
}

/* The case it is made for: a name cut in the middle of a character, inside a sentence and at its
 * end. */
static void test_error_text(void **state)
{
    (void)state;
    char name[ERROR_TEXT_BYTES * 2 + 1];
    for (size_t i = 0; i + 1 < sizeof name; i += 2) memcpy(name + i, "\xc3\xa9", 2);
    name[sizeof name - 1] = '\0';
    for (int cut = 1; cut < 9; cut++) {
        struct error err = { 0 };
        error_set(&err, MEMD_EINVAL, "context \"%.*s\" is not here, %s", cut, name, name);
        assert_true(text_ok(err.text, strlen(err.text)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ok),
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_error_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
