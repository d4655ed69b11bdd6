/* SPDX-License-Identifier: Apache-2.0 */
/* test_extended_mind.c — which keys each head chooses and where they stand, against the paper's
 * rule in double; the two cases that need no arithmetic: equal keys, a threshold that nothing
 * passes. */
#include "memory/methods/methods.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "tests/unit/asked.h"

struct setting {
    size_t k, window, memory;
    double threshold; /* above 1: not masked */
};

/* What the rule says, in a copy of the past that is placed as it says. */
struct truth {
    struct past placed;
    bool *chosen; /* (T) */
};

static void turn(const struct rope *rope, uint64_t position, float *rows, size_t count)
{
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    rope_angles(rope, position, cos, sin);
    rope_apply(rope, cos, sin, rows, count);
}

static void truth_begin(struct truth *truth, const struct past *past)
{
    size_t k_count = past->kv_heads * past->tokens * past->head_dim;
    size_t q_count = past->queries * past->query_heads * past->head_dim;
    truth->placed = *past;
    truth->placed.k = past_alloc(k_count, sizeof(float));
    truth->placed.q = past_alloc(q_count, sizeof(float));
    truth->chosen = past_alloc(past->tokens, sizeof(bool));
    memcpy(truth->placed.k, past->k, k_count * sizeof(float));
    memcpy(truth->placed.q, past->q, q_count * sizeof(float));
}

static void truth_end(struct truth *truth)
{
    free(truth->placed.k);
    free(truth->placed.q);
    free(truth->chosen);
}

/* The query of row i behind the memory, the window at its local places, the memory at 0. */
static void place(struct truth *truth, const struct rope *rope, const struct setting *setting,
                  size_t i)
{
    struct past *placed = &truth->placed;
    uint64_t limit = placed->limits[i], position = placed->positions[i];
    uint64_t end = limit > setting->window ? limit - setting->window : 0;
    turn(rope, position > end ? position - end : 0,
         placed->q + i * placed->query_heads * placed->head_dim, placed->query_heads);
    for (size_t g = 0; g < placed->kv_heads; g++)
        for (size_t t = 0; t < placed->tokens; t++)
            turn(rope, t < end ? 0 : t - end,
                 placed->k + (g * placed->tokens + t) * placed->head_dim, 1);
}

static double length(const float *x, size_t n)
{
    double sum = 0.0;
    for (size_t d = 0; d < n; d++) sum += (double)x[d] * (double)x[d];
    return sqrt(sum);
}

static double cosine(const struct past *past, size_t i, size_t h, size_t t)
{
    size_t dim = past->head_dim, g = h / (past->query_heads / past->kv_heads);
    return past_score(past, i, h, t) * sqrt((double)dim) /
           length(past->q + (i * past->query_heads + h) * dim, dim) /
           length(past->k + (g * past->tokens + t) * dim, dim);
}

/* Every 13th token is special in all tests. */
static bool special(size_t t)
{
    return t % 13 == 5;
}

static void choose(struct truth *truth, const struct setting *setting, size_t i, size_t h)
{
    const struct past *past = &truth->placed;
    size_t limit = (size_t)past->limits[i], count = 0;
    size_t end = limit > setting->window ? limit - setting->window : 0;
    size_t begin = end > setting->memory ? end - setting->memory : 0;
    struct ranked *hits = past_alloc(past->tokens, sizeof *hits);
    for (size_t t = begin; t < end; t++)
        if (!special(t)) hits[count++] = (struct ranked){ cosine(past, i, h, t), t };
    qsort(hits, count, sizeof *hits, better_first);
    for (size_t t = 0; t < past->tokens; t++) truth->chosen[t] = t >= end && t < limit;
    for (size_t j = 0; j < count && j < setting->k; j++)
        if (setting->threshold > 1 || hits[j].score > setting->threshold)
            truth->chosen[hits[j].id] = true;
    free(hits);
}

/* Mass of the chosen among all below the limit, at the same places. */
static double mass(const struct truth *truth, size_t i, size_t h)
{
    double all = 0.0, some = 0.0;
    for (size_t t = 0; t < truth->placed.limits[i]; t++) {
        double weight = exp(past_score(&truth->placed, i, h, t));
        all += weight;
        if (truth->chosen[t]) some += weight;
    }
    return all > 0.0 ? some / all : 1.0;
}

static void expect_row(struct asked *asked, const struct truth *truth,
                       const struct setting *setting, size_t i, size_t h)
{
    assert_true(subset_equals(&truth->placed, &asked->reply, i, h, truth->chosen));
    assert_true(asked_found(asked, i, h, truth->chosen));
    size_t row = i * truth->placed.query_heads + h, count = 0;
    for (size_t t = 0; t < truth->placed.tokens; t++) count += truth->chosen[t];
    uint64_t limit = truth->placed.limits[i];
    float read = asked->reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
    float predicted = asked->reply.quality.predicted_error[row];
    assert_true(count == limit ? predicted == 0.0F : isnan(predicted));
    if (limit > setting->window + setting->memory) assert_true(isnan(read));
    else assert_true(fabs((double)read - mass(truth, i, h)) < 1e-5);
}

static const struct setting settings[] = {
    { 10, 0, 100000, 2 }, { 10, 0, 100000, 0.1 }, { 3, 40, 100000, 2 },    { 5, 40, 200, 0.05 },
    { 1, 0, 1, 2 },       { 65536, 7, 100000, 2 }, { 65536, 0, 90, -1.0 }, { 4, 100000, 10, 2 },
};

static void begin(struct asked *asked, struct past *past, const struct setting *setting)
{
    static char text[4][32];
    snprintf(text[0], sizeof text[0], "%zu", setting->k);
    snprintf(text[1], sizeof text[1], "%zu", setting->window);
    snprintf(text[2], sizeof text[2], "%zu", setting->memory);
    snprintf(text[3], sizeof text[3], "%g", setting->threshold > 1 ? 0 : setting->threshold);
    const char *parameters[] = { "k",         text[0], "window", text[1], "memory", text[2],
                                 "threshold", text[3], "mask_by_similarity",
                                 setting->threshold > 1 ? "0" : "1", NULL };
    asked_begin(asked, past, &method_extended_mind, parameters);
    for (size_t t = 0; t < past->tokens; t++)
        if (special(t)) asked_mark(asked, t, MARK_SPECIAL);
        else if (t % 3 == 0) asked_mark(asked, t, MARK_LANDMARK);
}

/* With and without memd's rotation, YaRN's magnitude among it. */
static void test_rule(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    static const size_t tokens[] = { 600, 9, 3000, 14 };
    for (size_t round = 0; round < 24; round++) {
        const struct setting *setting = &settings[round % 8];
        struct past past = { .query_heads = 4, .kv_heads = round % 2 + 1, .head_dim = 64,
                             .tokens = tokens[round % 4], .queries = 3,
                             .dtype = dtypes[round % 3] };
        past_make(&past, &random);
        past_cut(&past, 200, &random);
        past.positions[1] = past.limits[1] / 2; /* a query among the stored tokens */
        struct rope rope;
        struct rope_config config = { .theta = 1e4, .scaling = round % 5 == 4 ? ROPE_SCALE_YARN : 0,
                                      .factor = 4, .original_context = 100, .beta_fast = 32,
                                      .beta_slow = 1 };
        assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
        struct asked asked;
        begin(&asked, &past, setting);
        bool rotates = round % 3 != 2;
        if (rotates) asked.reading.attend.rope = &rope;
        assert_int_equal(asked_attend(&asked), 0);
        assert_int_equal(asked_search(&asked, past.tokens), 0);
        for (size_t i = 0; i < past.queries; i++) {
            struct truth truth;
            truth_begin(&truth, &past);
            if (rotates) place(&truth, &rope, setting, i);
            for (size_t h = 0; h < past.query_heads; h++) {
                choose(&truth, setting, i, h);
                expect_row(&asked, &truth, setting, i, h);
            }
            truth_end(&truth);
        }
        asked_end(&asked);
        past_free(&past);
    }
}

/* Equal keys: ties go to the lower positions, and the answer is the mean of their values. */
static void test_equal_keys(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 50,
                         .queries = 1, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    for (size_t t = 1; t < 50; t++) memcpy(past.k + t * 64, past.k, 64 * sizeof(float));
    memcpy(past.k_rows, past.k, (size_t)50 * 64 * sizeof(float));
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    struct asked asked;
    begin(&asked, &past, &settings[0]);
    asked.reading.attend.rope = &rope;
    assert_int_equal(asked_attend(&asked), 0);
    assert_int_equal(asked_search(&asked, 12), 0);
    float mean[64] = { 0 };
    for (size_t t = 0; t < 11; t++) /* token 5 is special */
        for (size_t d = 0; t != 5 && d < 64; d++) mean[d] += past.v[t * 64 + d] / 10;
    for (size_t h = 0; h < 2; h++) {
        for (size_t d = 0; d < 64; d++)
            assert_true(fabsf(asked.reply.answer.partial.o[h * 64 + d] - mean[d]) < 1e-6F);
        for (size_t j = 0; j < 12; j++)
            assert_true(asked.hits.ids[h * 12 + j] == (j < 10 ? j + (j >= 5) : INDEX_NONE));
    }
    asked_end(&asked);
    past_free(&past);
}

/* Threshold 1: nothing is similar enough, only the window is left; without one, nothing. */
static void test_threshold_of_one(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = 64, .tokens = 80,
                         .queries = 2, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    static const struct setting alone[] = { { 10, 0, 1000, 1 }, { 10, 20, 1000, 1 } };
    bool *chosen = past_alloc(past.tokens, sizeof *chosen);
    for (size_t round = 0; round < 2; round++) {
        struct asked asked;
        begin(&asked, &past, &alone[round]);
        assert_int_equal(asked_attend(&asked), 0);
        for (size_t i = 0; i < 2; i++) {
            size_t limit = (size_t)past.limits[i], window = round == 0 ? 0 : 20;
            for (size_t t = 0; t < 80; t++) chosen[t] = t < limit && t + window >= limit;
            for (size_t h = 0; h < 2; h++)
                assert_true(subset_equals(&past, &asked.reply, i, h, chosen));
        }
        asked_end(&asked);
    }
    free(chosen);
    past_free(&past);
}

/* The reading plan has the places that were read. */
static void test_plan(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 100,
                         .queries = 1, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    past.positions[0] = 105;
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    static const struct setting setting = { 3, 20, 1000, 2 };
    struct asked asked;
    struct plan plan;
    struct arena arena;
    arena_init(&arena, (size_t)32 << 20);
    assert_int_equal(plan_init(&plan, &arena, NULL), 0);
    begin(&asked, &past, &setting);
    asked.reading.attend.rope = &rope;
    asked.reading.plan = &plan;
    assert_int_equal(asked_attend(&asked), 0);
    uint64_t window = 0, chosen = 0;
    for (size_t i = 0; i < plan.run_count; i++) {
        const struct plan_run *run = &plan.runs[i];
        assert_true(run->query_placed == 25 && run->kind == PLAN_TOKENS);
        if (run->first >= 80) {
            assert_true(run->placed == run->first - 80 && run->heads == 2);
            window += run->count;
        } else {
            assert_true(run->placed == 0 && run->heads == 1 && !special(run->first));
            chosen += run->count;
        }
    }
    assert_int_equal(window, 20);
    assert_int_equal(chosen, 6);
    asked_end(&asked);
    arena_fini(&arena);
    past_free(&past);
}

static void test_check(void **state)
{
    (void)state;
    struct error err = { 0 };
    struct model model = { .layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 64,
                           .dtype = DTYPE_FP16, .has_rope = true, .rope = { .theta = 1e4 } };
    struct parameter zero = { "positions", "zero" }, original = { "positions", "original" };
    double options[OPTIONS_MAX];
    const struct method *method = &method_extended_mind;
    for (size_t i = 0; i < 6; i++) {
        model.rotated = i >= 3;
        assert_int_equal(method_parse(method, i % 3 == 1 ? &zero : &original, i % 3 != 0, options,
                                      &err), 0);
        assert_int_equal(method_check(method, &model, options, &err),
                         i == 4 ? MEMD_EUNSUPPORTED : 0);
    }
    assert_non_null(strstr(err.text, "extended-mind: positions is zero"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_equal_keys),
        cmocka_unit_test(test_threshold_of_one),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
