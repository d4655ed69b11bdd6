/* SPDX-License-Identifier: Apache-2.0 */
/* test_exact.c — top-k against a full sort: order, ties to the lower id, filling, limits, stop. */
#include "index/exact.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "tests/unit/past.h"

static struct index_hits hits_new(const struct past *past, size_t k)
{
    size_t count = past->queries * past->query_heads * k;
    return (struct index_hits){ .ids = past_alloc(count, sizeof(uint64_t)),
                                .scores = past_alloc(count, sizeof(float)), .k = k };
}

static void hits_free(struct index_hits *hits)
{
    free(hits->ids);
    free(hits->scores);
}

static struct index_hits ask(const struct past *past, const struct attend_args *args, size_t k)
{
    struct index_hits hits = hits_new(past, k);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(exact_search(args, &arena, &hits, NULL), 0);
    arena_fini(&arena);
    return hits;
}

/* The expected token, or one whose score fp32 cannot tell from it; among equal scores the lower
 * id. */
static bool matches(const struct past *past, size_t i, size_t h, uint64_t id,
                    const struct ranked *truth)
{
    if (id == truth->id) return true;
    if (id >= past->limits[i]) return false;
    double score = past_score(past, i, h, (size_t)id);
    return score != truth->score && fabs(score - truth->score) < 1e-6;
}

static void check_row(const struct past *past, const struct index_hits *hits, size_t i, size_t h)
{
    struct ranked *truth = past_alloc(past->tokens, sizeof *truth);
    size_t visible = (size_t)past->limits[i], row = (i * past->query_heads + h) * hits->k;
    for (size_t t = 0; t < visible; t++) truth[t] = (struct ranked){ past_score(past, i, h, t), t };
    qsort(truth, visible, sizeof *truth, better_first);
    for (size_t j = 0; j < hits->k; j++) {
        float score = hits->scores[row + j];
        if (j >= visible) {
            assert_true(hits->ids[row + j] == INDEX_NONE);
            assert_true(score == -INFINITY);
            continue;
        }
        if (!matches(past, i, h, hits->ids[row + j], &truth[j]) ||
            fabs((double)score - truth[j].score) > 1e-5)
            fail_msg("query %zu head %zu rank %zu: (%llu, %.9g), expected (%llu, %.9g)", i, h, j,
                     (unsigned long long)hits->ids[row + j], (double)score,
                     (unsigned long long)truth[j].id, truth[j].score);
    }
    free(truth);
}

static void check_all(const struct past *past, const struct index_hits *hits)
{
    for (size_t i = 0; i < past->queries; i++)
        for (size_t h = 0; h < past->query_heads; h++) check_row(past, hits, i, h);
}

/* Small whole numbers: scores are exact and most of them tie. */
static void make_ties(struct past *past, uint64_t *random)
{
    size_t kv_count = past->kv_heads * past->tokens * past->head_dim;
    for (size_t i = 0; i < kv_count; i++) past->k[i] = (float)random_below(random, 2);
    half_store(past->k, kv_count, past->dtype, past->k_rows);
    for (size_t i = 0; i < past->queries * past->query_heads * past->head_dim; i++)
        past->q[i] = i % 8 == 0 ? 1.0F : 0.0F;
}

static void test_against_sort(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t ks[] = { 1, 2, 5, 100, 3000 }, tokens[] = { 1, 50, 1200, 2500 };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 40; turn++) {
        struct past past = { .kv_heads = turn % 2 + 1, .head_dim = 64, .tokens = tokens[turn % 4],
                             .queries = turn % 5 + 1, .dtype = dtypes[turn % 3] };
        past.query_heads = past.kv_heads * (turn % 4 + 1);
        past_make(&past, &random);
        if (turn % 2 == 1) make_ties(&past, &random);
        past_cut(&past, 400, &random);
        struct attend_args args = past_args(&past);
        struct pool *pool = NULL;
        if (turn % 3 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        args.pool = pool;
        struct index_hits hits = ask(&past, &args, ks[turn % 5]);
        check_all(&past, &hits);
        hits_free(&hits);
        pool_close(pool);
        past_free(&past);
    }
}

static void test_many_queries(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 8, .kv_heads = 1, .head_dim = 1024, .tokens = 30,
                         .queries = 300, .dtype = DTYPE_FP16 }; /* two waves */
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    struct index_hits hits = ask(&past, &args, 4);
    for (size_t i = 0; i < past.queries; i += 13) check_row(&past, &hits, i, i % 8);
    check_row(&past, &hits, 299, 7);
    hits_free(&hits);
    past_free(&past);
}

static void test_rope(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 500,
                         .queries = 2, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    struct attend_args args = past_args(&past);
    args.rope = &rope;
    struct index_hits hits = ask(&past, &args, 10);
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t t = 0; t < past.tokens; t++) { /* the truth's keys */
        rope_angles(&rope, t, cos, sin);
        rope_apply(&rope, cos, sin, past.k + t * past.head_dim, 1);
    }
    for (size_t i = 0; i < past.queries; i++) {
        rope_angles(&rope, past.positions[i], cos, sin);
        rope_apply(&rope, cos, sin, past.q + i * 128, 2);
    }
    check_all(&past, &hits);
    hits_free(&hits);
    past_free(&past);
}

static void test_stop_and_no_memory(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 50,
                         .queries = 1, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    struct index_hits hits = hits_new(&past, 3);
    struct arena arena;
    struct error err = { 0 };
    arena_init(&arena, 16);
    assert_int_equal(exact_search(&args, &arena, &hits, &err), MEMD_ENOMEM);
    arena_fini(&arena);
    arena_init(&arena, 1 << 20);
    args.stop = past_refuse;
    assert_int_equal(exact_search(&args, &arena, &hits, &err), MEMD_ECANCELLED);
    arena_fini(&arena);
    args.stop = NULL;
    args.view_count = 0;
    struct index_hits none = ask(&past, &args, 3);
    for (size_t i = 0; i < 6; i++) assert_true(none.ids[i] == INDEX_NONE);
    hits_free(&none);
    hits_free(&hits);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_sort),
        cmocka_unit_test(test_many_queries),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_stop_and_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
