/* SPDX-License-Identifier: Apache-2.0 */
/* test_json.c — exact output of json.h: separators, escapes, empty containers, numbers that JSON
 * lacks. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "clients/memctl/json.h"

/* Run `write` on a memory stream and compare. */
static void expect(void (*write)(struct json *json), const char *wanted)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    struct json json = json_writer(out);
    write(&json);
    fclose(out);
    assert_int_equal(json.depth, 0);
    assert_string_equal(text, wanted);
    free(text);
}

static void write_object(struct json *json)
{
    json_open(json, NULL, '{');
    json_text(json, "name", "book");
    json_uint(json, "tokens", UINT64_MAX);
    json_int(json, "code", -5);
    json_bool(json, "ready", true);
    json_null(json, "parent");
    json_open(json, "list", '[');
    json_real(json, NULL, 0.25);
    json_open(json, NULL, '{');
    json_close(json);
    json_close(json);
    json_open(json, "none", '[');
    json_close(json);
    json_close(json);
}

static void test_object(void **state)
{
    (void)state;
    expect(write_object, "{\n  \"name\": \"book\",\n  \"tokens\": 18446744073709551615,\n"
                         "  \"code\": -5,\n  \"ready\": true,\n  \"parent\": null,\n"
                         "  \"list\": [\n    0.25,\n    {}\n  ],\n  \"none\": []\n}\n");
}

static void write_escapes(struct json *json)
{
    json_text(json, NULL, "a\"b\\c\n\x7f\xC3\xA9");
}

static void write_malformed(struct json *json)
{
    /* A lone continuation, an overlong slash, a surrogate, a cut sequence, past U+10FFFF. */
    json_text(json, NULL, "\x80|\xC0\xAF|\xED\xA0\x80|\xF4\x90\x80\x80|\xE2\x82");
}

static void test_strings(void **state)
{
    (void)state;
    expect(write_escapes, "\"a\\\"b\\\\c\\u000a\\u007f\xC3\xA9\"\n");
    expect(write_malformed, "\"\\ufffd|\\ufffd\\ufffd|\\ufffd\\ufffd\\ufffd|"
                            "\\ufffd\\ufffd\\ufffd\\ufffd|\\ufffd\\ufffd\"\n");
}

static void write_odd(struct json *json)
{
    json_open(json, NULL, '[');
    json_real(json, NULL, (double)NAN);
    json_real(json, NULL, -HUGE_VAL);
    json_real(json, NULL, 1e21);
    json_text(json, NULL, NULL);
    json_close(json);
}

static void test_odd_values(void **state)
{
    (void)state;
    expect(write_odd, "[\n  null,\n  null,\n  1e+21,\n  null\n]\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_object),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_odd_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
