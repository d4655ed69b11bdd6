/* SPDX-License-Identifier: Apache-2.0 */
/* test_memorizing.c — the method `memorizing` on views: which tokens, and the softmax over them,
 * against a float64 choice and softmax written from the method's description. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/pool.h"
#include "index/norms.h"
#include "memory/methods/methods.h"
#include "tests/unit/subset.h"

enum { MEMORY, K, SEARCH, NORMALISE, ZERO_ROWS, POSITIONS };

struct asked {
    struct reading reading;
    struct reply reply;
    struct param items[2];
    struct params params;
    float scale[16], gate[16];
    double options[OPTIONS_MAX];
};

static const struct method *memorizing(void)
{
    return &method_memorizing;
}

/* Rows come in three pieces: it must not matter. */
static struct fold *fold_of(const struct past *past)
{
    struct fold_source source = { .rows = { past->views, past->view_count, past->head_dim, NULL },
                                  .kv_heads = past->kv_heads, .head_dim = past->head_dim };
    struct fold *fold = NULL;
    assert_int_equal(norms_fold.open(&source, &fold, NULL), 0);
    for (uint64_t end = past->tokens / 3; fold->tokens < past->tokens; end = past->tokens)
        assert_int_equal(norms_fold.advance(fold, &source, end, NULL), 0);
    return fold;
}

static void ask_init(struct asked *asked, const struct past *past, struct fold *fold)
{
    memset(asked, 0, sizeof *asked);
    assert_int_equal(method_parse(memorizing(), NULL, 0, asked->options, NULL), 0);
    for (size_t h = 0; h < past->query_heads; h++) {
        asked->scale[h] = h % 2 == 0 ? 5.0F + (float)h : -3.0F; /* its magnitude counts */
        asked->gate[h] = (float)h - 2.0F;
    }
    float *data[] = { asked->scale, asked->gate };
    static const char *const names[] = { "scale", "gate" };
    for (size_t i = 0; i < 2; i++) {
        asked->items[i] = (struct param){ .layer = PARAM_ALL_LAYERS, .value = {
            .data = data[i], .dtype = DTYPE_FP32, .dims = 1, .shape = { past->query_heads } } };
        snprintf(asked->items[i].name, PARAM_NAME_BYTES, "%s", names[i]);
    }
    asked->params = (struct params){ asked->items, 2, 1 };
    asked->reading = (struct reading){ .attend = past_args(past), .fold = fold, .layers = 1,
                                       .options = asked->options, .params = &asked->params,
                                       .tokens = past->tokens };
    reply_init(&asked->reply, past);
}

static int ask(struct asked *asked)
{
    struct arena arena;
    struct error err = { 0 };
    arena_init(&arena, (size_t)64 << 20);
    int rc = memorizing()->attend(memorizing(), &asked->reading, &arena, &asked->reply.answer,
                                  &err);
    assert_int_equal(rc, err.code);
    arena_fini(&arena);
    return rc;
}

/* The logit of a token, in double. */
static double logit(const struct asked *asked, const struct past *past, size_t i, size_t h,
                    size_t t)
{
    double score = past_score(past, i, h, t), q2 = 0.0, k2 = 0.0;
    if (asked->options[NORMALISE] == 0) return score;
    const float *q = past->q + (i * past->query_heads + h) * past->head_dim;
    size_t g = h / (past->query_heads / past->kv_heads);
    const float *k = past->k + (g * past->tokens + t) * past->head_dim;
    for (size_t d = 0; d < past->head_dim; d++) {
        q2 += (double)q[d] * (double)q[d];
        k2 += (double)k[d] * (double)k[d];
    }
    return score * sqrt((double)past->head_dim) / sqrt(q2 * k2) * fabs((double)asked->scale[h]);
}

/* Tokens found, best first; how many. */
static size_t find(const struct asked *asked, const struct past *past, size_t i, size_t h,
                   struct ranked *ret_hits)
{
    size_t k = (size_t)asked->options[K], limit = past->limits[i], count = 0;
    size_t memory = (size_t)asked->options[MEMORY], begin = limit > memory ? limit - memory : 0;
    for (size_t t = begin; t < limit; t++)
        ret_hits[count++] = (struct ranked){ logit(asked, past, i, h, t), t };
    qsort(ret_hits, count, sizeof *ret_hits, better_first);
    if (asked->options[SEARCH] == 1) return count < k ? count : k;
    size_t kept = 0;
    bool *taken = past_alloc(k, sizeof *taken); /* the first of a bucket is its best */
    for (size_t j = 0; j < count; j++) {
        size_t bucket = ret_hits[j].id % k;
        if (!taken[bucket]) ret_hits[kept++] = ret_hits[j];
        taken[bucket] = true;
    }
    free(taken);
    return kept;
}

/* o (D) and the lse over the hits, and zero rows. */
static double truth(const struct asked *asked, const struct past *past, size_t h,
                    const struct ranked *hits, size_t count, double *ret_o)
{
    size_t g = h / (past->query_heads / past->kv_heads);
    double sum = 0.0, zeros = asked->options[ZERO_ROWS] == 1 ? asked->options[K] : 0.0;
    for (size_t d = 0; d < past->head_dim; d++) ret_o[d] = 0.0;
    for (size_t j = 0; j < count; j++) {
        double weight = exp(hits[j].score);
        const float *v = past->v + (g * past->tokens + hits[j].id) * past->head_dim;
        for (size_t d = 0; d < past->head_dim; d++) ret_o[d] += weight * (double)v[d];
        sum += weight;
    }
    if (count > 0 && zeros > (double)count) sum += zeros - (double)count;
    for (size_t d = 0; sum > 0.0 && d < past->head_dim; d++) ret_o[d] /= sum;
    return log(sum);
}

static void expect(const struct asked *asked, const struct past *past, size_t i, size_t h)
{
    struct ranked *hits = past_alloc(past->tokens, sizeof *hits);
    double *o = past_alloc(past->head_dim, sizeof *o);
    size_t count = find(asked, past, i, h, hits), row = i * past->query_heads + h;
    double lse = truth(asked, past, h, hits, count, o);
    const struct partial *got = &asked->reply.answer.partial;
    if (count == 0) assert_true(got->lse[row] == -INFINITY);
    else if (fabs((double)got->lse[row] - lse) > 2e-5 * fmax(1.0, fabs(lse)))
        fail_msg("query %zu head %zu: lse %g, not %g", i, h, (double)got->lse[row], lse);
    for (size_t d = 0; d < past->head_dim; d++)
        if (fabs((double)got->o[row * past->head_dim + d] - o[d]) > 2e-5)
            fail_msg("query %zu head %zu: o[%zu] %g, not %g", i, h, d,
                     (double)got->o[row * past->head_dim + d], o[d]);
    float mass = asked->reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
    bool all = asked->options[SEARCH] == 1 && count == past->limits[i];
    assert_true(past->limits[i] == 0 || all ? mass == 1.0F : isnan(mass));
    free(hits);
    free(o);
}

static void make(struct past *past, size_t turn, uint64_t *random)
{
    static const size_t tokens[] = { 1, 7, 600, 3000 };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    *past = (struct past){ .kv_heads = turn % 2 + 1, .head_dim = turn % 3 == 0 ? 40 : 64,
                           .tokens = tokens[turn % 4], .queries = turn % 5 + 1,
                           .dtype = dtypes[turn % 3] };
    past->query_heads = past->kv_heads * (turn % 3 + 1);
    past_make(past, random);
    past_cut(past, 200, random);
}

static void test_answers(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const double settings[][5] = { /* in the order of the options */
        { 512, 8, 0, 1, 1 }, { 512, 8, 1, 1, 0 },     { 64, 16, 0, 1, 0 }, { 100, 30, 1, 0, 1 },
        { 8, 8, 0, 0, 1 },   { 5000, 4000, 1, 1, 0 }, { 4096, 64, 0, 1, 1 } };
    for (size_t turn = 0; turn < 56; turn++) {
        struct past past;
        struct asked asked;
        make(&past, turn, &random);
        struct fold *fold = fold_of(&past);
        ask_init(&asked, &past, fold);
        memcpy(asked.options, settings[turn % 7], sizeof settings[0]);
        struct pool *pool = NULL;
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        asked.reading.attend.pool = pool;
        assert_int_equal(ask(&asked), 0);
        for (size_t row = 0; row < past.queries * past.query_heads; row++)
            expect(&asked, &past, row / past.query_heads, row % past.query_heads);
        pool_close(pool);
        reply_fini(&asked.reply);
        norms_fold.free(fold);
        past_free(&past);
    }
}

/* Unrotated keys: the answer does not know of a rope. */
static void test_positions(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct rope rope;
    struct rope_config config = { .theta = 1e4, .scaling = ROPE_SCALE_YARN, .factor = 4,
                                  .original_context = 64 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    struct past past;
    make(&past, 2, &random);
    struct fold *fold = fold_of(&past);
    struct asked asked;
    ask_init(&asked, &past, fold);
    asked.options[SEARCH] = 1;
    asked.reading.attend.rope = &rope;
    assert_int_equal(ask(&asked), 0);
    for (size_t h = 0; h < past.query_heads; h++) expect(&asked, &past, 0, h);
    /* at original positions lengths stay 1, whatever the rope's magnitude is */
    asked.options[POSITIONS] = 2;
    asked.options[K] = 1; /* then lse is the logit: the scale, if YaRN does not lift it */
    assert_true(rope.magnitude > 1.1);
    memcpy(past.q, past.k, past.head_dim * sizeof *past.q); /* token 0's own key */
    past.positions[0] = 0;
    past.limits[0] = 1;
    asked.options[ZERO_ROWS] = 0;
    assert_int_equal(ask(&asked), 0);
    assert_true(fabs((double)asked.reply.answer.partial.lse[0] - (double)asked.scale[0]) < 1e-4);
    reply_fini(&asked.reply);
    norms_fold.free(fold);
    past_free(&past);
}

static void test_search_and_plan(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    make(&past, 15, &random);
    struct fold *fold = fold_of(&past);
    struct asked asked;
    ask_init(&asked, &past, fold);
    asked.options[MEMORY] = 512;
    asked.options[K] = 16;
    size_t k = 20, rows = past.queries * past.query_heads;
    struct index_hits hits = { past_alloc(rows * k, 8), past_alloc(rows * k, 4), k };
    struct ranked *wanted = past_alloc(past.tokens, sizeof *wanted);
    struct arena arena;
    struct plan plan;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(plan_init(&plan, &arena, NULL), 0);
    asked.reading.plan = &plan;
    assert_int_equal(memorizing()->search(memorizing(), &asked.reading, &arena, &hits,
                                          &asked.reply.quality, NULL), 0);
    size_t at = 0;
    for (size_t row = 0; row < rows; row++) {
        size_t count = find(&asked, &past, row / past.query_heads, row % past.query_heads, wanted);
        for (size_t j = 0; j < k; j++)
            assert_true(hits.ids[row * k + j] == (j < count ? wanted[j].id : INDEX_NONE));
    }
    for (size_t i = 0; i < plan.run_count; i++) {
        assert_true(plan.groups[plan.runs[i].group].merge == PLAN_SEPARATE);
        at += plan.runs[i].count;
    }
    assert_true(at > 0 && plan.group == 0);
    arena_fini(&arena);
    free(hits.ids);
    free(hits.scores);
    free(wanted);
    reply_fini(&asked.reply);
    norms_fold.free(fold);
    past_free(&past);
}

static void test_join(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 4, .kv_heads = 2, .head_dim = 8, .tokens = 3, .queries = 2,
                         .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    struct asked asked;
    ask_init(&asked, &past, NULL);
    struct reply local;
    reply_init(&local, &past);
    const struct partial *window = &local.answer.partial, *answer = &asked.reply.answer.partial;
    for (size_t i = 0; i < 64; i++) {
        window->o[i] = 1.0F;
        answer->o[i] = 3.0F;
    }
    asked.gate[1] = -INFINITY; /* the window alone */
    assert_int_equal(memorizing()->join(memorizing(), &asked.reading, window, answer, NULL), 0);
    for (size_t i = 0; i < 64; i++) {
        double share = 1.0 / (1.0 + exp(-(double)asked.gate[i / 8 % 4]));
        assert_true(fabs((double)answer->o[i] - (1.0 - share + 3.0 * share)) < 1e-6);
        assert_true(i / 8 % 4 != 1 || answer->o[i] == 1.0F);
    }
    asked.params.count = 1; /* no gate: halves */
    answer->o[0] = 2.0F;
    assert_int_equal(memorizing()->join(memorizing(), &asked.reading, window, answer, NULL), 0);
    assert_true(answer->o[0] == 1.5F);
    reply_fini(&local);
    reply_fini(&asked.reply);
    past_free(&past);
}

static void test_refused(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    make(&past, 2, &random);
    struct asked asked;
    ask_init(&asked, &past, NULL);
    asked.params.count = 0;
    assert_int_equal(ask(&asked), MEMD_EUNSUPPORTED);
    struct model model = { .layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 64,
                           .dtype = DTYPE_FP16 };
    struct error err = { 0 };
    assert_int_equal(method_check(memorizing(), &model, asked.options, &err), 0);
    asked.options[K] = 100;
    assert_int_equal(method_check(memorizing(), &model, asked.options, &err), MEMD_EINVAL);
    asked.options[SEARCH] = 1;
    assert_int_equal(method_check(memorizing(), &model, asked.options, &err), 0);
    asked.options[POSITIONS] = 1;
    assert_int_equal(method_check(memorizing(), &model, asked.options, &err), MEMD_EUNSUPPORTED);
    reply_fini(&asked.reply);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers), cmocka_unit_test(test_positions),
        cmocka_unit_test(test_search_and_plan), cmocka_unit_test(test_join),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
