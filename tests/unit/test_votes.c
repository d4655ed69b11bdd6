/* SPDX-License-Identifier: Apache-2.0 */
/* test_votes.c — votes of a window's queries against softmax in double, over whole rows; and that
 * neither threads nor waves nor views show. */
#include "index/votes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "tests/unit/past.h"

/* votes (tokens - window) of head h in double: queries 0 … window-1 of the past at its end. */
static void true_votes(const struct past *past, size_t window, size_t h, double *ret_votes)
{
    size_t n = past->tokens - window;
    double *weights = past_alloc(past->tokens, sizeof *weights);
    memset(ret_votes, 0, n * sizeof *ret_votes);
    for (size_t i = 0; i < window; i++) {
        double sum = 0.0;
        for (size_t t = 0; t <= n + i; t++) sum += weights[t] = exp(past_score(past, i, h, t));
        for (size_t t = 0; t < n; t++) ret_votes[t] += weights[t] / sum;
    }
    free(weights);
}

static struct votes_args args_of(const struct past *past, size_t window)
{
    return (struct votes_args){
        .rows = { past->views, past->view_count, past->head_dim, NULL },
        .kv_heads = past->kv_heads, .query_heads = past->query_heads,
        .scale = 1.0F / sqrtf((float)past->head_dim), .tokens = past->tokens, .window = window,
        .q = { past->q, DTYPE_FP32, 3, { past->queries, past->query_heads, past->head_dim } } };
}

static float *votes_of(const struct votes_args *args, size_t first, size_t heads)
{
    size_t group = args->query_heads / args->kv_heads;
    float *votes = past_alloc(heads * group * args->tokens, sizeof *votes);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(votes_count(args, first, heads, &arena, votes, NULL), 0);
    arena_fini(&arena);
    return votes;
}

static void expect(const struct past *past, size_t window, size_t first_head, const float *votes,
                   size_t heads)
{
    size_t n = past->tokens - window;
    double *wanted = past_alloc(n, sizeof *wanted);
    for (size_t at = 0; at < heads; at++) {
        true_votes(past, window, first_head + at, wanted);
        for (size_t t = 0; t < n; t++)
            if (fabs((double)votes[at * n + t] - wanted[t]) > 1e-6 + 1e-5 * wanted[t])
                fail_msg("head %zu, token %zu: %g, expected %g", first_head + at, t,
                         (double)votes[at * n + t], wanted[t]);
    }
    free(wanted);
}

static void test_votes(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t tokens[] = { 33, 300, 2050, 4500 };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 12; turn++) {
        size_t window = turn % 2 ? 32 : 5;
        struct past past = { .kv_heads = turn % 2 + 1, .head_dim = turn % 3 ? 64 : 8,
                             .tokens = tokens[turn % 4], .queries = window,
                             .dtype = dtypes[turn % 3] };
        past.query_heads = past.kv_heads * (turn % 3 + 1);
        past_make(&past, &random);
        past_cut(&past, 200, &random);
        struct votes_args args = args_of(&past, window);
        struct pool *pool = NULL;
        assert_int_equal(pool_open(2, &pool, NULL), 0);
        float *votes = votes_of(&args, 0, past.kv_heads);
        expect(&past, window, 0, votes, past.query_heads);
        args.pool = pool;
        size_t last = past.kv_heads - 1, group = past.query_heads / past.kv_heads;
        float *again = votes_of(&args, last, 1);
        size_t row = group * (past.tokens - window);
        assert_memory_equal(again, votes + last * row, row * sizeof *votes);
        free(votes);
        free(again);
        pool_close(pool);
        past_free(&past);
    }
}

/* More queries than the window: the last ones count. Keys and queries that memd rotates. */
static void test_rotated(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 500,
                         .queries = 20, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    struct votes_args args = args_of(&past, 12);
    args.rows.rope = &rope;
    float *votes = votes_of(&args, 0, 1);
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t t = 0; t < 500; t++) {
        rope_angles(&rope, t, cos, sin);
        rope_apply(&rope, cos, sin, past.k + t * 64, 1);
    }
    memmove(past.q, past.q + (size_t)8 * 2 * 64, (size_t)12 * 2 * 64 * sizeof *past.q);
    for (size_t i = 0; i < 12; i++) {
        rope_angles(&rope, 488 + i, cos, sin);
        rope_apply(&rope, cos, sin, past.q + i * 2 * 64, 2);
    }
    expect(&past, 12, 0, votes, 2);
    free(votes);
    past_free(&past);
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = 64, .tokens = 100,
                         .queries = 4, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct votes_args args = args_of(&past, 4);
    float votes[96];
    struct arena arena;
    args.stop = past_refuse;
    arena_init(&arena, (size_t)1 << 20);
    assert_int_equal(votes_count(&args, 0, 1, &arena, votes, NULL), MEMD_ECANCELLED);
    arena_fini(&arena);
    arena_init(&arena, 64);
    assert_int_equal(votes_count(&args, 0, 1, &arena, votes, NULL), MEMD_ENOMEM);
    arena_fini(&arena);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_votes),
        cmocka_unit_test(test_rotated),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
