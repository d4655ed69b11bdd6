/* SPDX-License-Identifier: Apache-2.0 */
/* test_context.c — one context: what goes in comes out, whatever happens in between. */
#include "tests/unit/store_fixture.h"

#include <math.h>

static void test_append_fetch(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 3);
    fixture_append(&fx, context, 3, 1500);
    fixture_append(&fx, context, 1503, 545);
    assert_int_equal(context_tokens(context), 2048);
    fixture_append(&fx, context, 2048, 100);
    for (uint32_t layer = 0; layer < fx.model.layers; layer++)
        fixture_expect(&fx, context, layer, 0, 2148);
    struct error err = { 0 };
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    for (uint32_t layer = 0; layer < fx.model.layers; layer++)
        fixture_expect(&fx, context, layer, 0, 2148);
    fixture_end(&fx);
}

static void test_restart(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 2500);
    struct answer before, after;
    struct error err = { 0 };
    ASSERT_OK(fixture_attend(&fx, fixture_context(&fx, "book"), 1, UINT64_MAX, &before, &err), err);
    fixture_restart(&fx);
    struct context *context = fixture_context(&fx, "book");
    assert_int_equal(context_tokens(context), 2500);
    fixture_expect(&fx, context, 0, 0, 2500);
    ASSERT_OK(fixture_attend(&fx, context, 1, UINT64_MAX, &after, &err), err);
    assert_memory_equal(&before.o, &after.o, 4 * 16 * sizeof(float));
    fixture_append(&fx, context, 2500, 1000);
    fixture_restart(&fx);
    fixture_expect(&fx, fixture_context(&fx, "book"), 1, 0, 3500);
    fixture_end(&fx);
}

static void check_truncate(uint64_t position, bool restart)
{
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    fixture_append(&fx, context, 0, 2600);
    ASSERT_OK(context_truncate(context, position, &err), err);
    assert_int_equal(context_tokens(context), position);
    fixture_expect(&fx, context, 1, 0, position);
    if (restart) fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    assert_int_equal(context_tokens(context), position);
    fixture_expect(&fx, context, 0, 0, position);
    fx.salt = 9; /* other bytes than before */
    fixture_append(&fx, context, position, 1200);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    fixture_expect(&fx, context, 0, position, position + 1200);
    fx.salt = 1;
    fixture_expect(&fx, context, 1, 0, position);
    fixture_end(&fx);
}

static void test_truncate(void **state)
{
    (void)state;
    static const uint64_t positions[] = { 0, 1, 1000, 1023, 1024, 1025, 2048, 2500, 2599, 2600 };
    for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
        check_truncate(positions[i], false);
        check_truncate(positions[i], true);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_fetch),
        cmocka_unit_test(test_restart),
        cmocka_unit_test(test_truncate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
