/* SPDX-License-Identifier: Apache-2.0 */
/* test_plan.c — runs that continue each other become one, groups stay apart, and what does not fit
 * is said. */
#include "index/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/arena.h"

static struct plan_run run_of(uint64_t first, uint64_t count, uint64_t placed)
{
    return (struct plan_run){ .heads = 3, .first = first, .count = count, .placed = placed };
}

static void add(struct plan *plan, uint64_t first, uint64_t count, uint64_t placed)
{
    plan_add(plan, &(struct plan_run){ .heads = 3, .first = first, .count = count,
                                       .placed = placed });
}

static void test_runs(void **state)
{
    (void)state;
    struct arena arena;
    struct plan plan;
    arena_init(&arena, 16 << 20);
    assert_int_equal(plan_init(&plan, &arena, NULL), 0);
    add(&plan, 0, 4, 0);
    add(&plan, 4, 0, 4);   /* nothing */
    add(&plan, 4, 2, 4);   /* goes on */
    add(&plan, 6, 2, 100); /* elsewhere */
    add(&plan, 8, 1, 102);
    add(&plan, 20, 1, 103); /* other tokens */
    struct plan_run other = run_of(21, 1, 104);
    other.head = 3;
    plan_add(&plan, &other);
    assert_int_equal(plan.run_count, 4);
    assert_int_equal(plan.runs[0].count, 6);
    assert_int_equal(plan.runs[1].count, 3);
    add(&plan, 30, 2, PLAN_UNPLACED);
    add(&plan, 32, 2, PLAN_UNPLACED);
    add(&plan, 34, 2, 0);
    assert_int_equal(plan.run_count, 6);
    assert_int_equal(plan.runs[4].count, 4);
    assert_false(plan.cut);
    arena_fini(&arena);
}

static void test_groups(void **state)
{
    (void)state;
    struct arena arena;
    struct plan plan;
    arena_init(&arena, 16 << 20);
    assert_int_equal(plan_init(&plan, &arena, NULL), 0);
    add(&plan, 0, 4, 0);
    uint32_t group = plan_begin(&plan, 0, 2, PLAN_GATED);
    assert_int_equal(group, 1);
    add(&plan, 4, 4, 4);
    plan_end(&plan);
    add(&plan, 8, 4, 8);
    plan_weigh(&plan, group, 0.25F);
    plan_weigh(&plan, 0, 7.0F); /* no group */
    assert_int_equal(plan.run_count, 3);
    assert_int_equal(plan.runs[1].group, 1);
    assert_int_equal(plan.runs[2].group, 0);
    assert_true(plan.groups[1].weight == 0.25F && plan.groups[0].weight == 1.0F);
    assert_int_equal(plan.groups[1].head, 2);
    arena_fini(&arena);
}

static void test_full(void **state)
{
    (void)state;
    struct arena arena;
    struct plan plan;
    arena_init(&arena, 16 << 20);
    assert_int_equal(plan_init(&plan, &arena, NULL), 0);
    for (uint64_t i = 0; i < PLAN_RUNS_MAX; i++) add(&plan, 2 * i, 1, 2 * i);
    assert_false(plan.cut);
    add(&plan, 2 * PLAN_RUNS_MAX, 1, 0);
    assert_true(plan.cut);
    assert_int_equal(plan.run_count, PLAN_RUNS_MAX);
    for (size_t i = 1; i < PLAN_GROUPS_MAX; i++) {
        assert_int_equal(plan_begin(&plan, 0, 0, PLAN_GATED), i);
        plan_end(&plan);
    }
    assert_int_equal(plan_begin(&plan, 0, 0, PLAN_GATED), 0);
    arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
