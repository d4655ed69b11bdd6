/* SPDX-License-Identifier: Apache-2.0 */
/* test_context.c — one context: what goes in comes out, whatever happens in between. */
#include "tests/unit/store_fixture.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

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

/* Double sums over rows that are computed again from where they stand: nothing of memd but the
 * rounding of the stored values (which is none, see store_fixture.h). */
static void oracle(const struct fixture *fx, uint32_t layer, uint64_t tokens, struct answer *answer)
{
    size_t heads = fx->model.query_heads, dim = fx->model.head_dim,
           share = heads / fx->model.kv_heads;
    for (size_t h = 0; h < heads; h++) {
        double sum = 0, o[64] = { 0 };
        for (uint64_t t = 0; t < tokens; t++) {
            double score = 0;
            for (size_t d = 0; d < dim; d++)
                score += 2.0 * (double)fixture_value(77, layer, 5, h * dim + d) *
                         (double)fixture_value(fx->salt, layer, t, h / share * dim + d);
            double weight = exp(score * fx->model.attention_scale);
            sum += weight;
            for (size_t d = 0; d < dim; d++)
                o[d] += weight *
                        (double)fixture_value(fx->salt, layer, t, 100000 + h / share * dim + d);
        }
        answer->lse[h] = tokens == 0 ? -INFINITY : (float)log(sum);
        for (size_t d = 0; d < dim; d++)
            answer->o[h * dim + d] = tokens == 0 ? 0 : (float)(o[d] / sum);
    }
}

static void expect_answer(struct fixture *fx, struct context *context, uint32_t layer,
                          uint64_t limit, uint64_t seen)
{
    struct answer answer, expected;
    struct error err = { 0 };
    ASSERT_OK(fixture_attend(fx, context, layer, limit, &answer, &err), err);
    oracle(fx, layer, seen, &expected);
    for (size_t h = 0; h < fx->model.query_heads; h++) {
        if (seen == 0 ? answer.lse[h] != -INFINITY : fabsf(answer.lse[h] - expected.lse[h]) > 2e-3f)
            fail_msg("limit %llu head %zu: lse %f, expected %f", (unsigned long long)limit, h,
                     (double)answer.lse[h], (double)expected.lse[h]);
        for (size_t d = 0; d < fx->model.head_dim; d++) {
            float a = answer.o[h * fx->model.head_dim + d],
                  b = expected.o[h * fx->model.head_dim + d];
            if (fabsf(a - b) > 2e-3f)
                fail_msg("limit %llu head %zu dim %zu: %f, expected %f", (unsigned long long)limit,
                         h, d, (double)a, (double)b);
        }
    }
}

static void test_attend_is_exact(void **state)
{
    (void)state;
    static const uint64_t limits[] = { 0, 1, 700, 1023, 1024, 1025, 2048, 2100, 2149 };
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    expect_answer(&fx, context, 0, UINT64_MAX, 0);
    fixture_append(&fx, context, 0, 2150);
    for (int committed = 0; committed < 3; committed++) {
        for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
            expect_answer(&fx, context, 1, limits[i], limits[i]);
        expect_answer(&fx, context, 1, 99999, 2150);
        expect_answer(&fx, context, 0, UINT64_MAX, 2150);
        struct error err = { 0 };
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        if (committed == 1) fixture_restart(&fx);
        context = fixture_context(&fx, "book");
    }
    fixture_end(&fx);
}

/* One append or hundreds: the same bytes come back, and the same answer to the last bit. */
static void test_split_appends(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct error err = { 0 };
    fixture_append(&fx, fixture_context(&fx, "whole"), 0, 3000);
    uint64_t position = 0;
    for (size_t count = 1; position < 3000; count = count * 7 % 61) {
        if (count > 3000 - position) count = (size_t)(3000 - position);
        fixture_append(&fx, fixture_context(&fx, "parts"), position, count);
        position += count;
        if (count % 5 == 0) ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    }
    struct answer whole, parts;
    fixture_expect(&fx, fixture_context(&fx, "parts"), 1, 0, 3000);
    ASSERT_OK(fixture_attend(&fx, fixture_context(&fx, "whole"), 1, UINT64_MAX, &whole, &err), err);
    ASSERT_OK(fixture_attend(&fx, fixture_context(&fx, "parts"), 1, UINT64_MAX, &parts, &err), err);
    assert_memory_equal(whole.o, parts.o, 4 * 16 * sizeof(float));
    assert_memory_equal(whole.lse, parts.lse, 4 * sizeof(float));
    fixture_end(&fx);
}

static void test_positions(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    struct progress progress = { 0 };
    fixture_append(&fx, context, 0, 1500);
    ASSERT_CODE(MEMD_EPOSITION,
                fixture_append_layer(&fx, context, (struct place){ 0, 1501 }, 1, &progress, &err),
                err);
    /* A retry, whole and with more behind it; before and after sealing. */
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(
            fixture_append_layer(&fx, context, (struct place){ 0, 900 }, 300, &progress, &err),
            err);
        assert_int_equal(progress.tokens, 1500 + 100 * i);
        ASSERT_OK(fixture_append_layer(&fx, context, (struct place){ 0, 1000 },
                                       (size_t)(600 + 100 * i), &progress, &err),
                  err);
        assert_int_equal(progress.tokens, 1600 + 100 * i);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    }
    fx.salt = 2;
    ASSERT_CODE(MEMD_EPOSITION,
                fixture_append_layer(&fx, context, (struct place){ 0, 10 }, 5, &progress, &err),
                err);
    ASSERT_CODE(MEMD_EPOSITION,
                fixture_append_layer(&fx, context, (struct place){ 0, 1690 }, 50, &progress, &err),
                err);
    fx.salt = 1;
    assert_int_equal(context_layer_tokens(context, 0), 1700);
    fixture_expect(&fx, context, 0, 0, 1700);
    ASSERT_CODE(MEMD_EINVAL,
                fixture_append_layer(&fx, context, (struct place){ 2, 0 }, 1, &progress, &err),
                err);
    ASSERT_CODE(MEMD_EPOSITION, context_truncate(context, 1501, &err),
                err); /* layer 1 holds 1,500 */
    fixture_end(&fx);
}

/* Layer 0 is fine, layer 1 is not: nothing is taken. */
static void test_all_or_nothing(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    struct progress progress;
    uint16_t *bad = fixture_rows(&fx, 1, 0, 4, 1);
    void *good = fixture_rows(&fx, 0, 0, 4, 0);
    bad[2 * 32 + 16 + 3] = 0x7C00; /* +inf in v of token 2, head 1, dimension 3 */
    struct append_layer parts[2] = {
        { .layer = 0, .k = fixture_tensor(&fx, good, 4), .v = fixture_tensor(&fx, good, 4) },
        { .layer = 1, .k = fixture_tensor(&fx, good, 4), .v = fixture_tensor(&fx, bad, 4) },
    };
    ASSERT_CODE(MEMD_ENONFINITE, context_append(context, parts, 2, &progress, &err), err);
    if (strstr(err.text, "layer 1 v at position 2 head 1 dimension 3") == NULL)
        fail_msg("%s", err.text);
    assert_int_equal(context_layer_tokens(context, 0), 0);
    struct catalog_stats stats;
    catalog_get_stats(fx.catalog, &stats);
    assert_int_equal(stats.nonfinite_rejected_total, 1);
    assert_int_equal(stats.tail_bytes, 0);
    parts[1].layer = 0;
    parts[1].v = parts[1].k;
    ASSERT_CODE(MEMD_EINVAL, context_append(context, parts, 2, &progress, &err), err);
    parts[1].layer = 1;
    ASSERT_OK(context_append(context, parts, 2, &progress, &err), err);
    assert_int_equal(progress.tokens, 4);
    free(bad);
    free(good);
    fixture_end(&fx);
}

static void test_fetch_rules(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    struct progress progress;
    fixture_append(&fx, context, 0, 1100);
    uint64_t ids[] = { 1099, 0, 1099, 1023, 1024 }, absent = 1100;
    uint16_t k[5 * 32], v[5 * 32];
    uint32_t token_ids[5];
    struct fetch_out out = { .k = k, .v = v, .token_ids = token_ids };
    ASSERT_CODE(MEMD_ENOROW, context_fetch(context, 0, &absent, 1, &out, &err), err);
    ASSERT_CODE(MEMD_EINVAL, context_fetch(context, 2, ids, 1, &out, &err), err);
    ASSERT_OK(context_fetch(context, 0, ids, 5, &out, &err), err);
    assert_true(out.has_ids);
    for (size_t i = 0; i < 5; i++) assert_int_equal(token_ids[i], ids[i] * 3 + 1);
    assert_memory_equal(k, k + 2 * 32, 64);
    void *row = fixture_rows(&fx, 0, 1024, 1, 1);
    assert_memory_equal(v + 4 * 32, row, 64);
    /* A token without id, and the segment around it has none. */
    struct append_layer part = { .layer = 0,
                                 .position = 1100,
                                 .k = fixture_tensor(&fx, row, 1),
                                 .v = fixture_tensor(&fx, row, 1) };
    ASSERT_OK(context_append(context, &part, 1, &progress, &err), err);
    ASSERT_OK(context_fetch(context, 0, ids, 5, &out, &err), err);
    assert_false(out.has_ids);
    ASSERT_OK(context_fetch(context, 0, ids + 1, 1, &out, &err), err);
    assert_true(out.has_ids);
    free(row);
    fixture_end(&fx);
}

static void test_search_finds_the_best(void **state)
{
    (void)state;
    enum { K = 5 };
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    fixture_append(&fx, context, 0, 1300);
    float q[4 * 16];
    for (size_t i = 0; i < 64; i++)
        q[i] = fixture_value(fx.salt, 0, 1200, i % 16 + i / 32 * 16) * 8;
    uint64_t position = 1300, ids[4 * K];
    float scores[4 * K];
    struct query query = {
        .layer = 0,
        .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { 1, 4, 16 } },
        .positions = &position
    };
    struct index_hits hits = { .ids = ids, .scores = scores, .k = K };
    struct quality quality;
    ASSERT_OK(context_search(context, &query, &fx.arena, &hits, &quality, &err), err);
    for (size_t h = 0; h < 4; h++) {
        assert_int_equal(ids[h * K], 1200); /* a query that is a key finds it */
        for (size_t i = 1; i < K; i++) assert_true(scores[h * K + i - 1] >= scores[h * K + i]);
    }
    assert_true(quality.exact);
    assert_int_equal(quality.tokens, 1300);
    fixture_end(&fx);
}

/* 70 MiB at once: more than a transaction takes, so the commit is a round of several. */
static void test_long_prefill(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.model = (struct model){
        .layers = 8, .query_heads = 8, .kv_heads = 8, .head_dim = 128, .dtype = DTYPE_FP16
    };
    struct error err = { 0 };
    ASSERT_OK(model_check(&fx.model, &err), err);
    struct context *context = fixture_context(&fx, "book");
    struct append_layer parts[8];
    for (uint32_t i = 0; i < 8; i++) {
        parts[i] = (struct append_layer){ .layer = i };
        parts[i].k = fixture_tensor(&fx, fixture_rows(&fx, i, 0, 2200, 0), 2200);
        parts[i].v = fixture_tensor(&fx, fixture_rows(&fx, i, 0, 2200, 1), 2200);
    }
    struct progress progress = { 0 };
    ASSERT_OK(context_append(context, parts, 8, &progress, &err), err);
    assert_int_equal(fixture_reach(&fx, context, progress.sequence, DURABLE_COMMITTED, &err), 1);
    struct catalog_stats stats;
    catalog_get_stats(fx.catalog, &stats);
    assert_true(stats.commits_total >= 4);
    assert_int_equal(stats.tail_bytes, 0);
    for (uint32_t i = 0; i < 8; i++) {
        parts[i].layer = 7 - i; /* other bytes */
        ASSERT_CODE(MEMD_EPOSITION, context_append(context, &parts[i], 1, &progress, &err), err);
        parts[i].layer = i;
    }
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    assert_int_equal(context_tokens(context), 2200);
    ASSERT_OK(context_append(context, parts, 8, &progress, &err),
              err); /* a retry: equal to the last byte */
    assert_int_equal(progress.tokens, 2200);
    for (uint32_t i = 0; i < 8; i++) {
        free((void *)(uintptr_t)parts[i].k.data);
        free((void *)(uintptr_t)parts[i].v.data);
    }
    fixture_end(&fx);
}

struct reader {
    struct fixture *fx;
    struct context *context;
    atomic_bool stop;
    atomic_ulong answers;
};

/* Every answer must be that of a prefix: its lse never falls while tokens only come. */
static void *read_on(void *arg)
{
    struct reader *reader = arg;
    struct fixture mine = *reader->fx;
    arena_init(&mine.arena, (size_t)64 << 20);
    float before = -INFINITY;
    struct error err = { 0 };
    while (!atomic_load(&reader->stop)) {
        struct answer answer;
        if (fixture_attend(&mine, reader->context, 0, UINT64_MAX, &answer, &err) < 0) break;
        arena_reset(&mine.arena);
        if (answer.lse[0] < before - 1e-4f) break;
        before = answer.lse[0];
        atomic_fetch_add(&reader->answers, 1);
    }
    arena_fini(&mine.arena);
    return atomic_load(&reader->stop) ? NULL : arg;
}

static void test_reading_while_appending(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct reader reader = { .fx = &fx, .context = context };
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &reader), 0);
    uint64_t position = 0;
    while (position < 6000 || atomic_load(&reader.answers) < 20) {
        size_t count = 1 + position % 97;
        fixture_append(&fx, context, position, count);
        position += count;
        if (position > 200000) break;
    }
    atomic_store(&reader.stop, true);
    for (size_t i = 0; i < 2; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    fixture_expect(&fx, context, 0, 0, 6000);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_fetch),
        cmocka_unit_test(test_restart),
        cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_attend_is_exact),
        cmocka_unit_test(test_split_appends),
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_all_or_nothing),
        cmocka_unit_test(test_fetch_rules),
        cmocka_unit_test(test_search_finds_the_best),
        cmocka_unit_test(test_long_prefill),
        cmocka_unit_test(test_reading_while_appending),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
