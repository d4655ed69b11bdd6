/* SPDX-License-Identifier: Apache-2.0 */
/* test_loki.c — which tokens are selected, by products in r components in double; the two limits:
 * all components select the exact top k, all tokens are full attention. */
#include "memory/methods/methods.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/pool.h"
#include "tests/unit/asked.h"

enum { DIM = 64, TOKENS = 1500 };

/* What is uploaded: (G, D, D) and (G, D). */
struct upload {
    struct param items[2];
    struct params params;
    float *basis, variances[2 * DIM];
};

/* Orthonormal columns, Gram-Schmidt of random ones. */
static void make_upload(struct upload *upload, size_t kv_heads, uint64_t *random)
{
    float *p = upload->basis = past_alloc(kv_heads * DIM * DIM, sizeof *p);
    for (size_t g = 0; g < kv_heads; g++, p += (size_t)DIM * DIM)
        for (size_t c = 0; c < DIM; c++) {
            double column[DIM], length = 0.0;
            for (size_t d = 0; d < DIM; d++) column[d] = (double)random_float(random);
            for (size_t b = 0; b < c; b++) {
                double product = 0.0;
                for (size_t d = 0; d < DIM; d++) product += column[d] * (double)p[d * DIM + b];
                for (size_t d = 0; d < DIM; d++) column[d] -= product * (double)p[d * DIM + b];
            }
            for (size_t d = 0; d < DIM; d++) length += column[d] * column[d];
            for (size_t d = 0; d < DIM; d++) p[d * DIM + c] = (float)(column[d] / sqrt(length));
        }
    for (size_t i = 0; i < kv_heads * DIM; i++)
        upload->variances[i] = i % DIM < 10 ? 1.0F : 0.0F;
    upload->items[0] = (struct param){ "basis", 0, { upload->basis, DTYPE_FP32, 3,
                                                     { kv_heads, DIM, DIM } } };
    upload->items[1] = (struct param){ "variances", PARAM_ALL_LAYERS,
                                       { upload->variances, DTYPE_FP32, 2, { kv_heads, DIM } } };
    upload->params = (struct params){ upload->items, 2, 1 };
}

static void make(struct past *past, uint32_t dtype, uint64_t *random)
{
    *past = (struct past){ .query_heads = 4, .kv_heads = 2, .head_dim = DIM, .tokens = TOKENS,
                           .queries = 3, .dtype = dtype };
    past_make(past, random);
    past_cut(past, 200, random);
}

/* A past whose keys and queries are rotated, for the truth. */
static struct past rotated(const struct past *past, const struct rope *rope)
{
    struct past turned = *past;
    size_t rows = past->kv_heads * past->tokens, queries = past->queries * past->query_heads;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    turned.k = past_alloc(rows * DIM, sizeof *turned.k);
    turned.q = past_alloc(queries * DIM, sizeof *turned.q);
    memcpy(turned.k, past->k, rows * DIM * sizeof *turned.k);
    memcpy(turned.q, past->q, queries * DIM * sizeof *turned.q);
    for (size_t t = 0; rope != NULL && t < rows; t++) {
        rope_angles(rope, t % past->tokens, cos, sin);
        rope_apply(rope, cos, sin, turned.k + t * DIM, 1);
    }
    for (size_t i = 0; rope != NULL && i < past->queries; i++) {
        rope_angles(rope, past->positions[i], cos, sin);
        rope_apply(rope, cos, sin, turned.q + i * past->query_heads * DIM, past->query_heads);
    }
    return turned;
}

/* q·k of query i, head h, token t in the first r columns of the head's basis. */
static double few(const struct past *past, const struct upload *upload, size_t r, size_t i,
                  size_t h, size_t t)
{
    size_t g = h / (past->query_heads / past->kv_heads);
    const float *p = upload->basis + g * DIM * DIM, *q = past->q + (i * 4 + h) * DIM;
    const float *key = past->k + (g * past->tokens + t) * DIM;
    double sum = 0.0;
    for (size_t c = 0; c < r; c++) {
        double a = 0.0, b = 0.0;
        for (size_t d = 0; d < DIM; d++) {
            a += (double)q[d] * (double)p[d * DIM + c];
            b += (double)key[d] * (double)p[d * DIM + c];
        }
        sum += a * b;
    }
    return sum;
}

/* How a round is asked. */
struct round {
    const char *components, *k, *rotary;
    size_t r, count; /* what those mean; count 0: a quarter of the limit */
    bool rotates;
    uint32_t dtype;
};

/* The truth of `seen` ranks, attention is of `turned`. */
static void expect(struct asked *asked, const struct past *seen, const struct past *turned,
                   const struct upload *upload, const struct round *round)
{
    bool *chosen = past_alloc(TOKENS, sizeof *chosen);
    struct ranked *hits = past_alloc(TOKENS, sizeof *hits);
    for (size_t row = 0; row < turned->queries * 4; row++) {
        size_t i = row / 4, h = row % 4, limit = (size_t)turned->limits[i];
        size_t count = round->count > 0 ? round->count : limit / 4;
        if (count == 0) count = 1;
        for (size_t t = 0; t < limit; t++)
            hits[t] = (struct ranked){ few(seen, upload, round->r, i, h, t), t };
        qsort(hits, limit, sizeof *hits, better_first);
        memset(chosen, 0, TOKENS * sizeof *chosen);
        for (size_t j = 0; j < count && j < limit; j++) chosen[hits[j].id] = true;
        if (round->dtype != DTYPE_FP32 && limit > count) { /* ranked in fp16: ties are near */
            const uint64_t *ids = asked->hits.ids + row * asked->hits.k;
            double worst = hits[count - 1].score - 0.02;
            memset(chosen, 0, TOKENS * sizeof *chosen);
            for (size_t j = 0; j < count; j++) {
                assert_true(few(seen, upload, round->r, i, h, ids[j]) > worst);
                chosen[ids[j]] = true;
            }
        }
        assert_true(subset_equals(turned, &asked->reply, i, h, chosen));
        assert_true(asked_found(asked, i, h, chosen));
        float predicted = asked->reply.quality.predicted_error[row];
        assert_true(count < limit ? isnan(predicted) : predicted == 0.0F);
    }
    free(chosen);
    free(hits);
}

static void test_selection(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const struct round rounds[] = {
        { "16", "0.25", "post", 16, 0, false, DTYPE_FP32 },
        { "11", "100", "post", 11, 100, true, DTYPE_FP32 },
        { "16", "100", "pre", 16, 100, true, DTYPE_FP32 },
        { "0", "0.25", "pre", 16, 0, true, DTYPE_FP16 },
        { "0.95", "50", "post", 10, 50, true, DTYPE_BF16 },
        { "64", "30", "post", 64, 30, true, DTYPE_FP32 }, /* the exact top k */
        { "1", "30", "pre", 1, 30, false, DTYPE_FP32 },
        { "24", "1100", "post", 24, 1100, true, DTYPE_FP32 },
        { "16", "1", "post", 16, TOKENS, true, DTYPE_FP16 }, /* everything */
    };
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, DIM, &rope, NULL), 0);
    for (size_t turn = 0; turn < sizeof rounds / sizeof rounds[0]; turn++) {
        const struct round *round = &rounds[turn];
        const struct rope *turn_by = round->rotates ? &rope : NULL;
        struct past past;
        struct upload upload;
        make(&past, round->dtype, &random);
        make_upload(&upload, 2, &random);
        const char *parameters[] = { "components", round->components, "k", round->k, "rotary",
                                     round->rotary, "calibration", "0", NULL };
        struct asked asked;
        asked_begin(&asked, &past, &method_loki, parameters);
        asked.reading.params = &upload.params;
        asked.reading.attend.rope = turn_by;
        assert_int_equal(asked_attend(&asked), 0);
        assert_int_equal(asked_search(&asked, TOKENS), 0);
        struct past turned = rotated(&past, turn_by);
        bool pre = strcmp(round->rotary, "pre") == 0;
        expect(&asked, pre ? &past : &turned, &turned, &upload, round);
        free(turned.k);
        free(turned.q);
        free(upload.basis);
        asked_end(&asked);
        past_free(&past);
    }
}

/* Read exactly until the tokens for a basis are there; then all components: the exact top k. */
static void test_calibration(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct pool *pool = NULL;
    assert_int_equal(pool_open(2, &pool, NULL), 0);
    static const char *const calibrations[] = { "1501", "1500", "300" };
    for (size_t turn = 0; turn < 3; turn++) {
        struct past past;
        make(&past, DTYPE_FP32, &random);
        const char *parameters[] = { "components", "64", "k", "40", "calibration",
                                     calibrations[turn], NULL };
        struct asked asked;
        asked_begin(&asked, &past, &method_loki, parameters);
        asked.reading.attend.pool = pool;
        assert_int_equal(asked_attend(&asked), 0);
        assert_int_equal(asked_search(&asked, TOKENS), 0);
        assert_int_equal(asked.fold->tokens, turn == 0 ? 0 : TOKENS);
        bool *chosen = past_alloc(TOKENS, sizeof *chosen);
        struct ranked *hits = past_alloc(TOKENS, sizeof *hits);
        for (size_t row = 0; row < past.queries * 4; row++) {
            size_t limit = (size_t)past.limits[row / 4], count = turn == 0 ? TOKENS : 40;
            for (size_t t = 0; t < limit; t++)
                hits[t] = (struct ranked){ past_score(&past, row / 4, row % 4, t), t };
            qsort(hits, limit, sizeof *hits, better_first);
            memset(chosen, 0, TOKENS * sizeof *chosen);
            for (size_t j = 0; j < count && j < limit; j++) chosen[hits[j].id] = true;
            assert_true(subset_equals(&past, &asked.reply, row / 4, row % 4, chosen));
            assert_true(asked_found(&asked, row / 4, row % 4, chosen));
        }
        if (turn > 0) {
            struct fold_fact facts[FOLD_FACTS_MAX];
            assert_int_equal(asked.fold->type->describe(asked.fold, facts), 2);
            assert_string_equal(facts[0].name, "components");
            assert_true(facts[0].value == 64 && facts[1].value == TOKENS);
        }
        free(chosen);
        free(hits);
        asked_end(&asked);
        past_free(&past);
    }
    pool_close(pool);
}

static void test_refused(void **state)
{
    (void)state;
    struct error err = { 0 };
    double options[OPTIONS_MAX];
    struct model model = { .layers = 1, .query_heads = 4, .kv_heads = 2, .head_dim = DIM,
                           .dtype = DTYPE_FP16, .has_rope = true, .rotated = true };
    static const struct parameter wrong[] = { { "components", "65" }, { "components", "1.5" },
                                              { "k", "2.5" }, { "rotary", "pre" } };
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(method_parse(&method_loki, &wrong[i], 1, options, &err), 0);
        assert_int_equal(method_check(&method_loki, &model, options, &err),
                         i == 3 ? MEMD_EUNSUPPORTED : MEMD_EINVAL);
    }
    model.rotated = false;
    assert_int_equal(method_check(&method_loki, &model, options, &err), 0);
    uint64_t random = random_seed();
    struct past past;
    struct asked asked;
    static const char *const parameters[] = { "calibration", "0", NULL };
    make(&past, DTYPE_FP16, &random);
    asked_begin(&asked, &past, &method_loki, parameters);
    assert_int_equal(asked_fold(&asked, &err), MEMD_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "no tensor \"basis\""));
    asked_end(&asked);
    past_free(&past);
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    struct asked asked;
    struct error err = { 0 };
    make(&past, DTYPE_FP16, &random);
    asked_begin(&asked, &past, &method_loki, NULL);
    assert_int_equal(asked_fold(&asked, &err), 0);
    asked.reading.attend.stop = past_refuse;
    assert_int_equal(asked_attend(&asked), MEMD_ECANCELLED);
    asked_end(&asked);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_calibration),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
