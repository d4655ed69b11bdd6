/* SPDX-License-Identifier: Apache-2.0 */
/* test_streaming.c — the indexes that build nothing (streaming, oracle-topk), and through them how
 * pick and rows read chosen rows: against softmax over the same subset in double. */
#include "index/streaming.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/pool.h"
#include "index/oracle.h"
#include "index/rows.h"
#include "tests/unit/subset.h"

/* Random shapes: views of odd lengths, groups, dtypes. */
static void make(struct past *past, size_t turn, uint64_t *random)
{
    static const size_t tokens[] = { 1, 7, 600, 9000 };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    *past = (struct past){ .kv_heads = turn % 2 + 1, .head_dim = turn % 3 == 0 ? 40 : 64,
                           .tokens = tokens[turn % 4], .queries = turn % 5 + 1,
                           .dtype = dtypes[turn % 3] };
    past->query_heads = past->kv_heads * (turn % 3 + 1);
    past_make(past, random);
    past_cut(past, 200, random);
}

static void choose_steady(const struct past *past, size_t i, const double *options, bool *chosen)
{
    double limit = (double)past->limits[i];
    for (size_t t = 0; t < past->tokens; t++)
        chosen[t] = (double)t < limit &&
                    ((double)t < options[STREAMING_SINKS] ||
                     (double)t >= limit - options[STREAMING_WINDOW]);
}

static void test_set(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const double settings[][STREAMING_OPTIONS] = {
        { 4, 512 }, { 0, 10 }, { 3, 0 }, { 0, 0 }, { 65536, 0 }, { 4, 100 } };
    for (size_t turn = 0; turn < 48; turn++) {
        struct past past;
        make(&past, turn, &random);
        const double *options = settings[turn % 6];
        struct pool *pool = NULL;
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        struct index_args args = { .attend = past_args(&past) };
        args.attend.pool = pool;
        struct reply reply;
        reply_init(&reply, &past);
        assert_int_equal(reply_ask(&streaming_type, NULL, &args, options, &reply), 0);
        bool *chosen = past_alloc(past.tokens, sizeof *chosen);
        uint64_t read = 0;
        for (size_t i = 0; i < past.queries; i++) {
            choose_steady(&past, i, options, chosen);
            size_t count = 0;
            for (size_t t = 0; t < past.tokens; t++) count += chosen[t];
            read += 2 * count * past.kv_heads;
            for (size_t h = 0; h < past.query_heads; h++) {
                size_t row = i * past.query_heads + h;
                assert_true(subset_equals(&past, &reply, i, h, chosen));
                float mass = reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
                float predicted = reply.quality.predicted_error[row];
                if (count == past.limits[i]) assert_true(mass == 1.0F && predicted == 0.0F);
                else assert_true(isnan(mass) && isnan(predicted));
                assert_false(reply.quality.limited[row]);
            }
        }
        assert_true(reply.quality.rows[INDEX_EXACT] == read);
        assert_true(reply.quality.bytes[INDEX_EXACT] ==
                    read * past.head_dim * dtype_bytes(past.dtype));
        assert_true(reply.quality.rows[INDEX_CLUSTERS] == 0);
        free(chosen);
        reply_fini(&reply);
        pool_close(pool);
        past_free(&past);
    }
}

/* Adds the best k tokens that are visible and not chosen yet; the mass of the chosen, of all. */
static double choose_best(const struct past *past, size_t i, size_t h, size_t k, bool *chosen)
{
    struct ranked *hits = past_alloc(past->tokens, sizeof *hits);
    size_t count = 0;
    double all = 0.0, some = 0.0;
    for (size_t t = 0; t < past->limits[i]; t++) {
        all += exp(past_score(past, i, h, t));
        if (!chosen[t]) hits[count++] = (struct ranked){ past_score(past, i, h, t), t };
    }
    qsort(hits, count, sizeof *hits, better_first);
    for (size_t j = 0; j < k && j < count; j++) chosen[hits[j].id] = true;
    for (size_t t = 0; t < past->limits[i]; t++)
        if (chosen[t]) some += exp(past_score(past, i, h, t));
    free(hits);
    return all > 0.0 ? some / all : 1.0;
}

static void test_oracle(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 24; turn++) {
        struct past past;
        make(&past, turn, &random);
        double options[ORACLE_OPTIONS] = { [ORACLE_K] = (double)(turn % 3 * 20 + 1),
                                           [ORACLE_SINKS] = 4, [ORACLE_WINDOW] = 50 };
        double steady[STREAMING_OPTIONS] = { 4, 50 };
        struct index_args args = { .attend = past_args(&past) };
        struct reply reply;
        reply_init(&reply, &past);
        assert_int_equal(reply_ask(&oracle_type, NULL, &args, options, &reply), 0);
        bool *chosen = past_alloc(past.tokens, sizeof *chosen);
        for (size_t row = 0; row < past.queries * past.query_heads; row++) {
            size_t i = row / past.query_heads, h = row % past.query_heads;
            choose_steady(&past, i, steady, chosen);
            double mass = choose_best(&past, i, h, (size_t)options[ORACLE_K], chosen);
            assert_true(subset_equals(&past, &reply, i, h, chosen));
            assert_true(fabs((double)reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] - mass) <
                        1e-5);
        }
        free(chosen);
        reply_fini(&reply);
        past_free(&past);
    }
}

static void test_search(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    make(&past, 7, &random);
    struct index_args args = { .attend = past_args(&past) };
    double steady[STREAMING_OPTIONS] = { 4, 50 }, best[ORACLE_OPTIONS] = { 5, 4, 50 };
    size_t rows = past.queries * past.query_heads, k = 70;
    struct index_quality quality = { 0 };
    struct index_found found = { { past_alloc(rows * k, 8), past_alloc(rows * k, 4), k },
                                 &quality };
    struct ranked *hits = past_alloc(past.tokens, sizeof *hits);
    bool *chosen = past_alloc(past.tokens, sizeof *chosen);
    for (size_t turn = 0; turn < 2; turn++) {
        const struct layer_index_type *type = turn == 0 ? &streaming_type : &oracle_type;
        struct arena arena;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(type->search(NULL, &args, turn == 0 ? steady : best, &arena, &found, NULL),
                         0);
        arena_fini(&arena);
        for (size_t row = 0; row < rows; row++) {
            size_t i = row / past.query_heads, count = 0;
            choose_steady(&past, i, steady, chosen);
            for (size_t t = 0; t < past.limits[i]; t++)
                if (chosen[t] || turn == 1)
                    hits[count++] =
                        (struct ranked){ past_score(&past, i, row % past.query_heads, t), t };
            qsort(hits, count, sizeof *hits, better_first);
            for (size_t j = 0; j < k; j++) {
                float score = found.hits.scores[row * k + j];
                if (j >= count) assert_true(found.hits.ids[row * k + j] == INDEX_NONE);
                else assert_true(fabs((double)score - hits[j].score) < 1e-5);
            }
        }
        assert_true(quality.rows[INDEX_EXACT] > 0);
    }
    free(hits);
    free(chosen);
    free(found.hits.ids);
    free(found.hits.scores);
    past_free(&past);
}

static void test_rope(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 4, .kv_heads = 2, .head_dim = 64, .tokens = 900,
                         .queries = 2, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    past_cut(&past, 300, &random);
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    struct index_args args = { .attend = past_args(&past) };
    args.attend.rope = &rope;
    double options[ORACLE_OPTIONS] = { 30, 4, 50 }, steady[STREAMING_OPTIONS] = { 4, 50 };
    struct reply reply;
    reply_init(&reply, &past);
    assert_int_equal(reply_ask(&oracle_type, NULL, &args, options, &reply), 0);
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t t = 0; t < past.kv_heads * past.tokens; t++) { /* the truth's keys */
        rope_angles(&rope, t % past.tokens, cos, sin);
        rope_apply(&rope, cos, sin, past.k + t * past.head_dim, 1);
    }
    for (size_t i = 0; i < past.queries; i++) {
        rope_angles(&rope, past.positions[i], cos, sin);
        rope_apply(&rope, cos, sin, past.q + i * 4 * 64, 4);
    }
    bool *chosen = past_alloc(past.tokens, sizeof *chosen);
    for (size_t row = 0; row < 8; row++) {
        choose_steady(&past, row / 4, steady, chosen);
        choose_best(&past, row / 4, row % 4, 30, chosen);
        assert_true(subset_equals(&past, &reply, row / 4, row % 4, chosen));
    }
    free(chosen);
    reply_fini(&reply);
    past_free(&past);
}

/* Keys at their place among the kept ones, in a copy that the truth reads. */
static void place_kept(struct past *past, const struct rope *rope, size_t i, const bool *chosen)
{
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    size_t before = 0, own = 0;
    for (size_t t = 0; t < past->tokens; t++) {
        if (t == past->positions[i]) own = before;
        if (!chosen[t]) continue;
        rope_angles(rope, before++, cos, sin);
        for (size_t g = 0; g < past->kv_heads; g++)
            rope_apply(rope, cos, sin, past->k + (g * past->tokens + t) * past->head_dim, 1);
    }
    uint64_t position = past->positions[i], limit = past->limits[i];
    if (position >= limit) own = before + (size_t)(position - limit);
    rope_angles(rope, own, cos, sin);
    rope_apply(rope, cos, sin, past->q + i * past->query_heads * past->head_dim,
               past->query_heads);
}

static void expect_placed(const struct past *past, const struct rope *rope, const double *options,
                          const struct reply *reply)
{
    size_t k_count = past->kv_heads * past->tokens * past->head_dim;
    size_t q_count = past->queries * past->query_heads * past->head_dim;
    struct past placed = *past;
    placed.k = past_alloc(k_count, sizeof *placed.k);
    placed.q = past_alloc(q_count, sizeof *placed.q);
    bool *chosen = past_alloc(past->tokens, sizeof *chosen);
    for (size_t i = 0; i < past->queries; i++) {
        memcpy(placed.k, past->k, k_count * sizeof *placed.k);
        memcpy(placed.q, past->q, q_count * sizeof *placed.q);
        choose_steady(past, i, options, chosen);
        place_kept(&placed, rope, i, chosen);
        for (size_t h = 0; h < past->query_heads; h++)
            assert_true(subset_equals(&placed, reply, i, h, chosen));
    }
    free(chosen);
    free(placed.k);
    free(placed.q);
}

/* Queries at the limit, as the last kept token, behind a window of the client, and among the
 * tokens that were left out. */
static void test_cache_index(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const double settings[][STREAMING_OPTIONS] = {
        { 4, 100 }, { 0, 10, 1 }, { 3, 0, 1 }, { 4, 65536 }, { 0, 0 } };
    static const int behind[] = { 0, -1, 40, -300 };
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    for (size_t turn = 0; turn < 20; turn++) {
        struct past past = { .query_heads = 4, .kv_heads = 2, .head_dim = 64,
                             .tokens = turn % 2 == 0 ? 900 : 30, .queries = 4,
                             .dtype = turn % 3 == 0 ? DTYPE_FP32 : DTYPE_BF16 };
        past_make(&past, &random);
        past_cut(&past, 300, &random);
        for (size_t i = 0; i < past.queries; i++) {
            int64_t position = (int64_t)past.limits[i] + behind[(i + turn) % 4];
            past.positions[i] = position < 0 ? 0 : (uint64_t)position;
        }
        struct index_args args = { .attend = past_args(&past) };
        args.attend.rope = &rope;
        struct reply reply;
        reply_init(&reply, &past);
        assert_int_equal(reply_ask(&streaming_type, NULL, &args, settings[turn % 5], &reply), 0);
        expect_placed(&past, &rope, settings[turn % 5], &reply);
        reply_fini(&reply);
        past_free(&past);
    }
}

static void test_positions_of_models(void **state)
{
    (void)state;
    struct error err = { 0 };
    static const double choices[][STREAMING_OPTIONS] = { { 4, 9, 0 }, { 4, 9, 1 }, { 4, 9, 2 } };
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(streaming_type.check(choices[i], true, &err), 0);
        assert_int_equal(streaming_type.check(choices[i], false, &err),
                         i == 1 ? MEMD_EUNSUPPORTED : 0);
    }
    assert_non_null(strstr(err.text, "streaming: positions is cache-index"));
}

static void test_stop_and_nothing(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 50,
                         .queries = 1, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct index_args args = { .attend = past_args(&past) };
    double options[ORACLE_OPTIONS] = { 5, 4, 10 };
    struct reply reply;
    reply_init(&reply, &past);
    args.attend.stop = past_refuse;
    assert_int_equal(reply_ask(&oracle_type, NULL, &args, options, &reply), MEMD_ECANCELLED);
    args.attend.stop = NULL;
    struct arena arena;
    struct error err = { 0 };
    arena_init(&arena, 16);
    assert_int_equal(oracle_type.attend(NULL, &args, options, &arena, &reply.answer, &err),
                     MEMD_ENOMEM);
    arena_fini(&arena);
    args.attend.view_count = 0;
    assert_int_equal(reply_ask(&oracle_type, NULL, &args, options, &reply), 0);
    for (size_t row = 0; row < 2; row++)
        assert_true(reply.answer.partial.lse[row] == -INFINITY);
    assert_true(reply.quality.rows[INDEX_EXACT] == 0);
    reply_fini(&reply);
    past_free(&past);
}

static void test_rows(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = 48, .tokens = 700,
                         .queries = 1, .dtype = DTYPE_BF16 };
    past_make(&past, &random);
    past_cut(&past, 90, &random);
    struct rows rows = { past.views, past.view_count, 48, NULL };
    assert_true(rows_tokens(&rows) == 700);
    float *got = past_alloc(700 * 48, sizeof *got);
    for (size_t turn = 0; turn < 50; turn++) {
        size_t begin = random_below(&random, 700), g = turn % 2;
        size_t count = random_below(&random, 700 - begin) + 1, at = (g * 700 + begin) * 48;
        const struct view *view = rows_view(&rows, g, begin);
        assert_true(view->position <= begin && begin < view->position + view->tokens);
        rows_keys(&rows, g, begin, count, got);
        assert_memory_equal(got, past.k + at, count * 48 * sizeof *got);
        rows_values(&rows, g, begin, count, got);
        assert_memory_equal(got, past.v + at, count * 48 * sizeof *got);
    }
    free(got);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_oracle),
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_cache_index),
        cmocka_unit_test(test_positions_of_models),
        cmocka_unit_test(test_stop_and_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
