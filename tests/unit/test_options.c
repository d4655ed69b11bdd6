/* SPDX-License-Identifier: Apache-2.0 */
/* test_options.c — values, defaults, and a refusal with a helpful sentence for everything else;
 * and the references of layer_index.h, which need no index to be tested. */
#include "index/options.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "index/layer_index.h"

static const struct option_spec specs[] = {
    OPTION_WHOLE("k", "rows per query", 100, 1, 1e6),
    OPTION_REAL("alpha", "share", 0.25, 0, 1),
    OPTION_REAL("shift", "may be negative", 0, -2, 2),
};
static const struct option_table table = { "fake", specs, 3 };

static const char *const colours[] = { "red", "green", "dark green" };
static const struct option_spec named_specs[] = {
    OPTION_WHOLE("k", "rows per query", 100, 1, 1e6),
    OPTION_CHOICE("colour", "of the thing", 1, colours),
};
static const struct option_table named = { "painter", named_specs, 2 };

static void test_values(void **state)
{
    (void)state;
    double values[3];
    assert_int_equal(options_parse(&table, NULL, 0, values, NULL), 0);
    assert_true(values[0] == 100.0 && values[1] == 0.25 && values[2] == 0.0);
    struct option_text texts[] = { { "shift", "-1.5" }, { "k", "1e6" }, { "alpha", "1" } };
    assert_int_equal(options_parse(&table, texts, 3, values, NULL), 0);
    assert_true(values[0] == 1e6 && values[1] == 1.0 && values[2] == -1.5);
    struct option_text fraction[] = { { "alpha", ".5" }, { "k", "1.0" } };
    assert_int_equal(options_parse(&table, fraction, 2, values, NULL), 0);
    assert_true(values[0] == 1.0 && values[1] == 0.5 && values[2] == 0.0);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        struct option_text text;
        const char *says;
    } cases[] = {
        { { "kk", "1" }, "fake has no option \"kk\"; it has k alpha shift" },
        { { "", "1" }, "it has k alpha shift" },
        { { "k", "" }, "not a number" },
        { { "k", "many" }, "not a number" },
        { { "k", " 1" }, "not a number" },
        { { "k", "1 " }, "not a number" },
        { { "k", "0x10" }, "not a number" },
        { { "k", "1e" }, "not a number" },
        { { "k", "1-2" }, "not a number" },
        { { "k", "-" }, "not a number" },
        { { "alpha", "nan" }, "not a number" },
        { { "alpha", "inf" }, "not a number" },
        { { "k", "0" }, "allowed is 1 to 1000000" },
        { { "k", "1000001" }, "allowed is 1 to 1000000" },
        { { "k", "1e999" }, "allowed is 1 to 1000000" },
        { { "k", "2.5" }, "whole numbers from 1 to 1000000" },
        { { "alpha", "1.01" }, "allowed is 0 to 1" },
        { { "shift", "-2.01" }, "allowed is -2 to 2" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = { 0 };
        double values[3] = { 7, 7, 7 };
        int rc = options_parse(&table, &cases[i].text, 1, values, &err);
        if (rc != MEMD_EINVAL || strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s=%s: %d %s", cases[i].text.name, cases[i].text.value, rc, err.text);
        assert_true(values[0] == 7.0 && values[1] == 7.0 && values[2] == 7.0);
    }
}

static void test_choices(void **state)
{
    (void)state;
    double values[2];
    assert_int_equal(options_parse(&named, NULL, 0, values, NULL), 0);
    assert_true(values[0] == 100.0 && values[1] == 1.0);
    for (size_t i = 0; i < 3; i++) {
        struct option_text text = { "colour", colours[i] };
        assert_int_equal(options_parse(&named, &text, 1, values, NULL), 0);
        assert_true(values[1] == (double)i);
    }
    static const char *const wrong[] = { "", "0", "1", "Red", "red ", "gree", "greens", "dark" };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct error err = { 0 };
        struct option_text text = { "colour", wrong[i] };
        assert_int_equal(options_parse(&named, &text, 1, values, &err), MEMD_EINVAL);
        assert_non_null(strstr(err.text, "painter: colour is \""));
        assert_non_null(strstr(err.text, "allowed is one of red green dark green"));
    }
}

static void test_twice_and_none(void **state)
{
    (void)state;
    struct error err = { 0 };
    double values[3];
    struct option_text texts[] = { { "k", "1" }, { "alpha", "0" }, { "k", "1" } };
    assert_int_equal(options_parse(&table, texts, 3, values, &err), MEMD_EINVAL);
    assert_non_null(strstr(err.text, "k is given twice"));
    const struct option_table empty = { "full", NULL, 0 };
    assert_int_equal(options_parse(&empty, NULL, 0, values, NULL), 0);
    assert_int_equal(options_parse(&empty, texts, 1, values, &err), MEMD_EINVAL);
}

/* A text as long as a stranger likes. */
static void test_long_texts(void **state)
{
    (void)state;
    static char text[100001];
    memset(text, '1', sizeof text - 1);
    struct error err = { 0 };
    double values[3];
    struct option_text texts[] = { { "k", text }, { text, "1" }, { "colour", text } };
    assert_int_equal(options_parse(&named, &texts[2], 1, values, &err), MEMD_EINVAL);
    assert_int_equal(options_parse(&table, &texts[0], 1, values, &err), MEMD_EINVAL);
    assert_int_equal(options_parse(&table, &texts[1], 1, values, &err), MEMD_EINVAL);
}

static void count_free(struct layer_index *version)
{
    version->bytes++;
}

static void test_references(void **state)
{
    (void)state;
    const struct layer_index_type type = { .name = "fake", .free = count_free };
    struct layer_index version = { .type = &type, .references = 1 };
    layer_index_put(NULL);
    assert_ptr_equal(layer_index_get(&version), &version);
    layer_index_put(&version);
    assert_int_equal(version.bytes, 0);
    layer_index_put(&version);
    assert_int_equal(version.bytes, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),     cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_twice_and_none), cmocka_unit_test(test_long_texts),
        cmocka_unit_test(test_choices),    cmocka_unit_test(test_references),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
