/* SPDX-License-Identifier: Apache-2.0 */
/* test_budget.c — PyramidKV's budgets, worked out by hand from its rule. */
#include "index/budget.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/tensor.h"

/* Capacity 128, window 8, β 20, 32 layers: C 120, from 234 in steps of 7. */
static const struct budget small = { 128, 8, 20, 32 };
static const struct budget large = { 2048, 32, 20, 32 };

static void test_pyramid(void **state)
{
    (void)state;
    uint64_t sum = 0;
    for (uint32_t layer = 0; layer < 32; layer++) {
        assert_int_equal(budget_pyramid(&small, layer, 4096), 234 - 7 * layer);
        sum += budget_pyramid(&small, layer, 4096);
    }
    assert_int_equal(sum, 4016); /* uniform: 3840 */
    assert_int_equal(budget_pyramid(&small, 31, 4096), 17);
    assert_int_equal(budget_pyramid(&large, 0, 8192), 3932);
    assert_int_equal(budget_pyramid(&large, 1, 8192), 3932 - 123);
    assert_int_equal(budget_pyramid(&large, 31, 8192), 119);
}

static void test_edges(void **state)
{
    (void)state;
    for (uint32_t layer = 0; layer < 32; layer++) {
        assert_int_equal(budget_pyramid(&large, layer, 3000), 2016); /* below 2C = 4032 */
        assert_int_equal(budget_pyramid(&large, layer, 4031), 2016);
        /* at 2C there are 4000 besides the window, more than the pyramid's 3932 */
        assert_int_equal(budget_pyramid(&large, layer, 4032), 3932 - 123 * layer);
        /* 232 besides the window, fewer than 234: the least is what is left of 240 */
        assert_int_equal(budget_pyramid(&small, layer, 240), 232 - 7 * layer);
        assert_true(budget_pyramid(&small, layer, 127) == BUDGET_ALL);
        assert_int_equal(budget_pyramid(&small, layer, 128), 120);
    }
    static const struct budget wide = { 40, 32, 20, 4 }; /* C 8, less than the window */
    assert_int_equal(budget_pyramid(&wide, 0, 40), 8);   /* 2C = 16 wanted, 8 there are */
    assert_int_equal(budget_pyramid(&wide, 3, 40), 8);
    assert_int_equal(budget_pyramid(&wide, 0, 41), 9);
    assert_int_equal(budget_pyramid(&wide, 3, 41), 9); /* (9 - 7) / 3 = 0 */
    static const struct budget flat = { 128, 8, 1, 32 }, alone = { 128, 8, 20, 1 };
    assert_int_equal(budget_pyramid(&flat, 31, 4096), 120);
    assert_int_equal(budget_pyramid(&alone, 0, 4096), 234);
}

/* Whatever the numbers: no more than there is, no less in a lower layer. */
static void test_never_too_many(void **state)
{
    (void)state;
    for (uint64_t window = 1; window < 40; window += 6)
        for (uint64_t capacity = window + 1; capacity < 120; capacity += 7)
            for (uint64_t tokens = 1; tokens < 400; tokens += 3) {
                struct budget budget = { capacity, window, 1 + tokens % 30, 5 };
                uint64_t before = BUDGET_ALL;
                for (uint32_t layer = 0; layer < 5; layer++) {
                    uint64_t kept = budget_pyramid(&budget, layer, tokens);
                    assert_true(kept <= before);
                    assert_true(tokens < capacity ? kept == BUDGET_ALL : kept <= tokens - window);
                    before = kept;
                }
            }
}

static void test_const(void **state)
{
    (void)state;
    assert_int_equal(budget_const(&large, 100000), 2016);
    assert_int_equal(budget_const(&large, 2048), 2016);
    assert_true(budget_const(&large, 2047) == BUDGET_ALL);
}

static void test_heads(void **state)
{
    (void)state;
    float given[] = { 32, 33, 1000, 1001, 0x1p20F };
    struct tensor capacities = { given, DTYPE_FP32, 1, { 5 } };
    struct error err = { 0 };
    uint64_t kept[5];
    assert_int_equal(budget_heads(&capacities, 32, 1000, kept, &err), 0);
    static const uint64_t expected[] = { 0, 1, 968, BUDGET_ALL, BUDGET_ALL };
    for (size_t g = 0; g < 5; g++) assert_true(kept[g] == expected[g]);
    assert_true(budget_chooses(kept, 5, 968));
    assert_int_equal(kept[3], 968);
    assert_int_equal(budget_heads(&capacities, 32, 32, kept, &err), 0); /* nothing but window */
    assert_false(budget_chooses(kept, 5, 0));
    assert_int_equal(budget_heads(&capacities, 33, 1000, kept, &err), MEMD_EINVAL);
    assert_string_equal(err.text,
                        "the capacity of KV head 0 is 32, it must be a whole number and at "
                        "least 33");
    given[0] = 1;
    assert_int_equal(budget_heads(&capacities, 0, 1000, kept, &err), 0);
    assert_int_equal(kept[0], 1);
    given[0] = 0;
    assert_int_equal(budget_heads(&capacities, 0, 1000, kept, &err), MEMD_EINVAL);
    given[0] = 100.5F;
    assert_int_equal(budget_heads(&capacities, 32, 1000, kept, &err), MEMD_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pyramid),        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_never_too_many), cmocka_unit_test(test_const),
        cmocka_unit_test(test_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
