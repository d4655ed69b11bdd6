/* SPDX-License-Identifier: Apache-2.0 */
/* test_positions.c — places counted one token at a time, rules refused; and pick_place through a
 * task of the test: every rule against keys and queries that the test rotated itself. */
#include "index/positions.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "index/pick.h"
#include "tests/unit/subset.h"

/* StreamingLLM's own example: the cache holds 0 1 2 3 6 7 8, token 9 is decoded: 0 … 7. */
static void test_paper(void **state)
{
    (void)state;
    struct kept_range kept = { 4, 6, 9 };
    static const uint64_t tokens[] = { 0, 1, 2, 3, 6, 7, 8, 9 };
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(positions_before(&kept, tokens[i]), i);
    assert_int_equal(positions_before(&kept, 4), 4); /* left out: behind the sinks */
    assert_int_equal(positions_before(&kept, 5), 4);
    assert_int_equal(positions_before(&kept, 30), 7 + 21); /* the client's own window between */
    struct kept_range nothing = { 0, 0, 0 }, behind = { 0, 9, 9 };
    assert_int_equal(positions_before(&nothing, 12), 12);
    assert_int_equal(positions_before(&behind, 12), 3);
    assert_int_equal(positions_before(&behind, 8), 0);
}

static void test_counted(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (int turn = 0; turn < 2000; turn++) {
        struct kept_range kept = { .limit = random_below(&random, 20) };
        kept.begin = random_below(&random, kept.limit + 1);
        kept.sinks = random_below(&random, kept.begin + 1);
        uint64_t position = random_below(&random, 30), count = 0;
        for (uint64_t t = 0; t < position; t++)
            count += t < kept.sinks || t >= kept.begin;
        assert_int_equal(positions_before(&kept, position), count);
    }
}

static void test_rules(void **state)
{
    (void)state;
    static const enum position_rule rules[] = { POSITIONS_ZERO, POSITIONS_ORIGINAL,
                                                POSITIONS_NONE };
    assert_int_equal(positions_rule(rules, 0, true), POSITIONS_ZERO);
    assert_int_equal(positions_rule(rules, 0, false), POSITIONS_ORIGINAL);
    assert_int_equal(positions_rule(rules, 2, false), POSITIONS_NONE);
    struct error err = { 0 };
    for (int rule = POSITIONS_ORIGINAL; rule <= POSITIONS_NONE; rule++) {
        assert_int_equal(positions_check("x", (enum position_rule)rule, true, &err), 0);
        int rc = positions_check("x", (enum position_rule)rule, false, &err);
        assert_int_equal(rc, rule == POSITIONS_ORIGINAL ? 0 : MEMD_EUNSUPPORTED);
    }
    assert_non_null(strstr(err.text, "x: positions is none, which needs keys that memd rotates"));
}

/* ---- pick_place ---- */

enum { LISTED = 3 };

/* Rows 10 … 299 (from 170 on for one head after the other), from 300 on a list of three, with the
 * placement of the test, which is come back to from others. */
static int task(struct pick *pick, struct error *err)
{
    (void)err;
    static const uint64_t list[LISTED] = { 310, 333, 398 };
    struct placement placement = *(const struct placement *)pick->call->version;
    pick_place(pick, placement);
    pick_range(pick, 10, 170);
    pick_place(pick, (struct placement){ .rule = POSITIONS_NONE });
    pick_place(pick, (struct placement){ .rule = POSITIONS_ZERO, .query = placement.query });
    pick_place(pick, placement);
    for (size_t m = 0; m < pick->group; m++) {
        pick_span(pick, m, 170, 300);
        pick_list(pick, m, list, LISTED);
    }
    return 0;
}

/* One row of D floats at a position; UINT64_MAX: not at all. */
static void turn(const struct rope *rope, uint64_t position, float *row)
{
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    if (position == UINT64_MAX) return;
    rope_angles(rope, position, cos, sin);
    rope_apply(rope, cos, sin, row, 1);
}

static uint64_t key_place(const struct placement *placement, uint64_t t)
{
    if (placement->rule == POSITIONS_NONE) return UINT64_MAX;
    bool moves = placement->rule == POSITIONS_CACHE_INDEX || placement->rule == POSITIONS_ORIGINAL;
    return moves ? t - placement->shift : 0;
}

static void place(const struct rope *rope, const struct placement *placement, struct past *past)
{
    struct index_args args = { .attend = past_args(past) };
    args.attend.rope = rope;
    struct reply reply;
    reply_init(&reply, past);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    struct pick_call call = { .args = &args, .task = task, .version = placement, .places = true,
                              .partial = &reply.answer.partial, .quality = &reply.quality };
    assert_int_equal(pick_run(&call, &arena, NULL), 0);
    arena_fini(&arena);
    size_t rows = past->kv_heads * past->tokens, heads = past->queries * past->query_heads;
    for (size_t t = 0; t < rows; t++)
        if (t % past->tokens >= 10)
            turn(rope, key_place(placement, t % past->tokens), past->k + t * past->head_dim);
    uint64_t query = placement->rule == POSITIONS_NONE ? UINT64_MAX : placement->query;
    for (size_t h = 0; h < heads; h++) turn(rope, query, past->q + h * past->head_dim);
    bool *chosen = past_alloc(past->tokens, sizeof *chosen);
    for (size_t t = 10; t < 300; t++) chosen[t] = true;
    chosen[310] = chosen[333] = chosen[398] = true;
    for (size_t row = 0; row < heads; row++)
        assert_true(subset_equals(past, &reply, row / past->query_heads, row % past->query_heads,
                                  chosen));
    free(chosen);
    reply_fini(&reply);
}

static void test_place(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const struct placement placements[] = {
        { POSITIONS_ORIGINAL, 777, 0 }, { POSITIONS_CACHE_INDEX, 395, 10 },
        { POSITIONS_ZERO, 21, 0 },      { POSITIONS_CONSTANT, 4095, 0 },
        { POSITIONS_NONE, 0, 0 },
    };
    static const struct rope_config ropes[] = {
        { .theta = 1e4 },
        { .theta = 1e5, .pairing = ROPE_PAIR_INTERLEAVED, .rotary_dims = 32 },
        { .theta = 1e4, .scaling = ROPE_SCALE_YARN, .factor = 4, .original_context = 256 },
    };
    for (size_t i = 0; i < 15; i++) {
        struct past past = { .query_heads = 4, .kv_heads = 2, .head_dim = 64, .tokens = 400,
                             .queries = 3, .dtype = i % 2 == 0 ? DTYPE_FP32 : DTYPE_FP16 };
        past_make(&past, &random);
        for (size_t q = 0; q < past.queries; q++) past.limits[q] = 400;
        past_cut(&past, 90, &random);
        struct rope rope;
        assert_int_equal(rope_init(&ropes[i / 5], 64, &rope, NULL), 0);
        place(&rope, &placements[i % 5], &past);
        past_free(&past);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paper),
        cmocka_unit_test(test_counted),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
