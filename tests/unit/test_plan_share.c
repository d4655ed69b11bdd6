/* SPDX-License-Identifier: Apache-2.0 */
/* test_plan_share.c — shares of runs against softmax in double over the same tokens: joint, gated,
 * apart; where keys are placed elsewhere, against keys that were turned there beforehand. */
#include "index/plan_share.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/plan.h"
#include "tests/unit/past.h"

enum { TOKENS = 300 };

struct fixture {
    struct past past;
    struct arena arena;
    struct plan plan;
    float lse[16]; /* (n, H), over everything unless a test says otherwise */
};

/* Sum of exp(score) of tokens begin … end-1 for one head. */
static double mass(const struct past *past, size_t i, size_t h, size_t begin, size_t end)
{
    double sum = 0;
    for (size_t t = begin; t < end; t++) sum += exp(past_score(past, i, h, t));
    return sum;
}

static void setup(struct fixture *fx)
{
    uint64_t random = random_seed();
    *fx = (struct fixture){ .past = { .query_heads = 4, .kv_heads = 2, .head_dim = 32,
                                      .tokens = TOKENS, .queries = 2, .dtype = DTYPE_FP32 } };
    past_make(&fx->past, &random);
    past_cut(&fx->past, 70, &random);
    arena_init(&fx->arena, 64 << 20);
    assert_int_equal(plan_init(&fx->plan, &fx->arena, NULL), 0);
    for (size_t row = 0; row < 8; row++)
        fx->lse[row] = (float)log(mass(&fx->past, row / 4, row % 4, 0, TOKENS));
}

static void teardown(struct fixture *fx)
{
    past_free(&fx->past);
    arena_fini(&fx->arena);
}

static void add(struct fixture *fx, uint32_t query, uint32_t head, uint32_t heads, uint64_t first,
                uint64_t count)
{
    plan_add(&fx->plan, &(struct plan_run){ .query = query, .head = head, .heads = heads,
                                            .first = first, .count = count, .placed = first,
                                            .query_placed = fx->past.positions[query] });
}

static void share(struct fixture *fx, const struct rope *rope)
{
    struct attend_args args = past_args(&fx->past);
    args.rope = rope;
    struct error err = { 0 };
    int rc = plan_share(&fx->plan, &args, fx->lse, &fx->arena, &err);
    if (rc != 0) fail_msg("%s", err.text);
}

static void expect(const struct fixture *fx, size_t run, double wanted)
{
    double got = (double)fx->plan.runs[run].share;
    if (!(fabs(got - wanted) < 1e-5 * fmax(1, wanted))) /* more than 1: of an lse that was given */
        fail_msg("run %zu: %.7f, not %.7f", run, got, wanted);
}

static void test_joint(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx);
    const struct past *past = &fx.past;
    add(&fx, 0, 0, 4, 0, 10);     /* over both KV heads */
    add(&fx, 0, 1, 1, 50, 200);   /* over some views */
    add(&fx, 1, 2, 2, 299, 1);
    plan_add(&fx.plan, &(struct plan_run){ .heads = 1, .kind = PLAN_SLOTS, .count = 3 });
    assert_true(isnan(fx.plan.runs[0].share));
    share(&fx, NULL);
    double mean = 0, pair = 0;
    for (size_t h = 0; h < 4; h++)
        mean += mass(past, 0, h, 0, 10) / mass(past, 0, h, 0, TOKENS) / 4;
    expect(&fx, 0, mean);
    expect(&fx, 1, mass(past, 0, 1, 50, 250) / mass(past, 0, 1, 0, TOKENS));
    for (size_t h = 2; h < 4; h++)
        pair += mass(past, 1, h, 299, 300) / mass(past, 1, h, 0, TOKENS) / 2;
    expect(&fx, 2, pair);
    assert_true(isnan(fx.plan.runs[3].share));
    teardown(&fx);
}

/* Two gates of one head, what they leave for its joint rows; another head without gates; and rows
 * apart. */
static void test_groups(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx);
    const struct past *past = &fx.past;
    add(&fx, 0, 1, 2, 0, 20); /* head 2 has no gates */
    uint32_t gate = plan_begin(&fx.plan, 0, 1, PLAN_GATED);
    add(&fx, 0, 1, 1, 100, 5);
    add(&fx, 0, 1, 1, 110, 5);
    plan_weigh(&fx.plan, gate, 0.5F);
    plan_end(&fx.plan);
    gate = plan_begin(&fx.plan, 0, 1, PLAN_GATED);
    add(&fx, 0, 1, 1, 200, 5);
    plan_weigh(&fx.plan, gate, 0.25F);
    plan_end(&fx.plan);
    plan_begin(&fx.plan, 1, 0, PLAN_SEPARATE);
    add(&fx, 1, 0, 2, 0, 8);
    add(&fx, 1, 0, 1, 20, 8);
    plan_end(&fx.plan);
    share(&fx, NULL);
    double whole = mass(past, 0, 1, 100, 105) + mass(past, 0, 1, 110, 115);
    expect(&fx, 0, (0.25 + mass(past, 0, 2, 0, 20) / mass(past, 0, 2, 0, TOKENS)) / 2);
    expect(&fx, 1, 0.5 * mass(past, 0, 1, 100, 105) / whole);
    expect(&fx, 2, 0.5 * mass(past, 0, 1, 110, 115) / whole);
    expect(&fx, 3, 0.25);
    double both = mass(past, 1, 0, 0, 8) + mass(past, 1, 0, 20, 28);
    expect(&fx, 4, (mass(past, 1, 0, 0, 8) / both + 1) / 2);
    expect(&fx, 5, mass(past, 1, 0, 20, 28) / both);
    teardown(&fx);
}

/* Rotated where the plan says, not where the rows stand: the truth turns them first. */
static void test_placed(void **state)
{
    (void)state;
    struct fixture fx;
    struct rope rope;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    setup(&fx);
    struct past *past = &fx.past;
    assert_int_equal(rope_init(&(struct rope_config){ .theta = 1e4 }, 32, &rope, NULL), 0);
    struct plan_run run = { .heads = 1, .first = 90, .count = 60, .placed = 7,
                            .query_placed = 1000 };
    plan_add(&fx.plan, &run);
    run.placed = PLAN_UNPLACED;
    run.query_placed = PLAN_UNPLACED;
    run.first = 10;
    plan_add(&fx.plan, &run);
    run.placed = run.first = 200; /* where it stands */
    run.query_placed = 1000;
    plan_add(&fx.plan, &run);
    for (size_t row = 0; row < 8; row++) fx.lse[row] = 0;
    share(&fx, &rope);
    expect(&fx, 1, mass(past, 0, 0, 10, 70));
    for (size_t t = 90; t < 150; t++) {
        rope_angles(&rope, 7 + t - 90, cos, sin);
        rope_apply(&rope, cos, sin, past->k + t * 32, 1);
    }
    for (size_t t = 200; t < 260; t++) {
        rope_angles(&rope, t, cos, sin);
        rope_apply(&rope, cos, sin, past->k + t * 32, 1);
    }
    rope_angles(&rope, 1000, cos, sin);
    rope_apply(&rope, cos, sin, past->q, 1);
    assert_true(fabs((double)fx.plan.runs[0].share / mass(past, 0, 0, 90, 150) - 1) < 1e-4);
    assert_true(fabs((double)fx.plan.runs[2].share / mass(past, 0, 0, 200, 260) - 1) < 1e-4);
    teardown(&fx);
}

static int refuse(void *arg)
{
    (void)arg;
    return MEMD_ECANCELLED;
}

static int forbid(void *arg, const struct view *view, size_t row, size_t count, unsigned parts)
{
    (void)arg, (void)count, (void)parts;
    return view->position + row >= 100 ? MEMD_ECORRUPT : 0;
}

static void test_refused(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx);
    add(&fx, 0, 0, 4, 0, 300);
    struct attend_args args = past_args(&fx.past);
    args.stop = refuse;
    assert_int_equal(plan_share(&fx.plan, &args, fx.lse, &fx.arena, NULL), MEMD_ECANCELLED);
    args.stop = NULL;
    args.admit = forbid;
    assert_int_equal(plan_share(&fx.plan, &args, fx.lse, &fx.arena, NULL), MEMD_ECORRUPT);
    struct arena small;
    arena_init(&small, 64);
    args.admit = NULL;
    assert_int_equal(plan_share(&fx.plan, &args, fx.lse, &small, NULL), MEMD_ENOMEM);
    arena_fini(&small);
    teardown(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_joint),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_placed),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
