/* SPDX-License-Identifier: Apache-2.0 */
/* test_neurocache.c — the method `neurocache` on states in views: against float64 code that writes
 * a ring slot by slot, makes all keys and values, and views them as the published code does. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/pool.h"
#include "index/vectors.h"
#include "memory/methods/methods.h"
#include "tests/unit/subset.h"

enum {
    WIDTH,
    MEMORY,
    K,
    NEIGHBOURS,
    WINDOW,
    SEARCH,
    METRIC,
    EVICTION,
    CACHE_LAYER,
    HEAD_LAYOUT,
    ZERO_ROWS,
    NORM_EPS
};
enum { MOST = 2048 }; /* states of a query, and slots */

struct setting {
    struct past past;                   /* states: one head, W/2 */
    size_t heads, kv_heads, dim, width; /* H, G, D of the model; W */
    float *q;                           /* (n, H, D) */
    float *states;                      /* (n, W) */
    float *key, *value;                 /* (G, D, W) */
    struct param items[2];
    struct params params;
    double options[OPTIONS_MAX];
    struct fold *fold;
    struct reading reading;
    struct reply reply;
};

static const struct method *neurocache(void)
{
    return &method_neurocache;
}

static float *numbers(size_t count, float scale, uint64_t *random)
{
    float *values = past_alloc(count, sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = scale * random_float(random);
    return values;
}

/* The shapes and the options but the defaults' are given. */
static void set_up(struct setting *set, uint64_t *random)
{
    struct past *past = &set->past;
    past->query_heads = past->kv_heads = 1;
    past->head_dim = set->width / 2;
    past_make(past, random);
    past_cut(past, 90, random);
    size_t n = past->queries, project = set->kv_heads * set->dim * set->width;
    set->q = numbers(n * set->heads * set->dim, 2.0F, random);
    set->states = numbers(n * set->width, 2.0F, random);
    set->key = numbers(project, 0.3F, random);
    set->value = numbers(project, 0.3F, random);
    static const char *const names[] = { "key", "value" };
    for (size_t i = 0; i < 2; i++) {
        set->items[i] =
            (struct param){ .layer = 3,
                            .value = { .data = i == 0 ? set->key : set->value,
                                       .dtype = DTYPE_FP32,
                                       .dims = 3,
                                       .shape = { set->kv_heads, set->dim, set->width } } };
        snprintf(set->items[i].name, PARAM_NAME_BYTES, "%s", names[i]);
    }
    set->params = (struct params){ set->items, 2, 1 };
    set->options[WIDTH] = (double)set->width;
    struct fold_source source = { .rows = { past->views, past->view_count, past->head_dim, NULL },
                                  .options = set->options };
    assert_int_equal(neurocache()->fold->open(&source, &set->fold, NULL), 0);
    for (uint64_t end = past->tokens / 3; set->fold->tokens < past->tokens; end = past->tokens)
        assert_int_equal(neurocache()->fold->advance(set->fold, &source, end, NULL), 0);
    set->reading = (struct reading){ .attend = past_args(past),
                                     .fold = set->fold,
                                     .layer = 3,
                                     .layers = 4,
                                     .options = set->options,
                                     .params = &set->params,
                                     .tokens = past->tokens };
    set->reading.attend.q = (struct tensor){ set->q, DTYPE_FP32, 3, { n, set->heads, set->dim } };
    set->reading.attend.scale = 1.0F / sqrtf((float)set->dim);
    set->reading.states = (struct tensor){ set->states, DTYPE_FP32, 2, { n, set->width } };
    struct past answers = { .queries = n, .query_heads = set->heads, .head_dim = set->dim };
    reply_init(&set->reply, &answers);
}

static void take_down(struct setting *set)
{
    neurocache()->fold->free(set->fold);
    free(set->q);
    free(set->states);
    free(set->key);
    free(set->value);
    reply_fini(&set->reply);
    past_free(&set->past);
}

static int ask(struct setting *set, struct error *err)
{
    struct arena arena;
    arena_init(&arena, (size_t)128 << 20);
    int rc = neurocache()->attend(neurocache(), &set->reading, &arena, &set->reply.answer, err);
    arena_fini(&arena);
    return rc;
}

/* ---- the truth ---- */

static double element(const struct setting *set, uint64_t token, size_t i)
{
    size_t half = set->width / 2;
    if (token == INDEX_NONE) return 0.0;
    const float *rows = i < half ? set->past.k : set->past.v;
    return (double)rows[token * half + i % half];
}

/* What token i finds: k * neighbours tokens in order, INDEX_NONE for zeros; how many. */
static size_t find(const struct setting *set, size_t i, uint64_t *ret_found)
{
    size_t m = (size_t)set->options[MEMORY], k = (size_t)set->options[K];
    size_t width = (size_t)set->options[NEIGHBOURS], buckets = k > 512 ? k : 512;
    static uint64_t ring[MOST];
    static double scores[MOST];
    static bool gone[MOST];
    if (buckets > m) buckets = m;
    for (size_t s = 0; s < m; s++) ring[s] = INDEX_NONE;
    for (uint64_t t = 0; t < set->past.limits[i]; t++) ring[t % m] = t;
    for (size_t s = 0; s < m; s++) {
        double dot = 0.0, square = 0.0;
        for (size_t d = 0; d < set->width; d++) {
            dot += (double)set->states[i * set->width + d] * element(set, ring[s], d);
            square += element(set, ring[s], d) * element(set, ring[s], d);
        }
        scores[s] = set->options[METRIC] == VECTORS_L2 ? 2.0 * dot - square : dot;
        if (ring[s] == INDEX_NONE) scores[s] = -1e8;
        gone[s] = false;
    }
    for (size_t s = 0; s < m && set->options[SEARCH] == 0; s++)
        for (size_t o = s % buckets; o < m; o += buckets)
            if (scores[o] > scores[s] || (scores[o] == scores[s] && o < s)) gone[s] = true;
    for (size_t rank = 0; rank < k; rank++) {
        size_t best = MOST;
        for (size_t s = 0; s < m; s++)
            if (!gone[s] && (best == MOST || scores[s] > scores[best])) best = s;
        gone[best] = true;
        for (size_t j = 0; j < width; j++) {
            long slot = (long)best + (width == 1 ? 0 : (long)j - (long)width / 2 + 1);
            if (slot < 0) slot = 0;
            if (slot >= (long)m) slot = (long)m - 1;
            ret_found[rank * width + j] = ring[slot];
        }
    }
    return k * width;
}

/* A set of states as a head sees it. */
struct seen {
    const uint64_t *found;
    size_t count, head; /* KV head g */
};

/* Element d of row r of the projected states. */
static double projected(const struct setting *set, const float *project, const struct seen *seen,
                        size_t r, size_t d)
{
    size_t state = r, block = seen->head;
    if (set->options[HEAD_LAYOUT] == 0) { /* (count, G, D) viewed as (G, count, D) */
        size_t flat = (seen->head * seen->count + r) * set->dim + d;
        state = flat / (set->kv_heads * set->dim);
        block = flat / set->dim % set->kv_heads;
        d = flat % set->dim;
    }
    double sum = 0.0;
    for (size_t i = 0; i < set->width; i++)
        sum += (double)project[(block * set->dim + d) * set->width + i] *
               element(set, seen->found[state], i);
    return sum;
}

static void expect(const struct setting *set, size_t i, size_t h)
{
    static uint64_t found[MOST];
    size_t g = h / (set->heads / set->kv_heads), row = i * set->heads + h;
    double sum = 0.0, o[64] = { 0 };
    for (size_t t = 0; t < (size_t)set->options[WINDOW]; t++) {
        size_t back = (size_t)set->options[WINDOW] - 1 - t;
        size_t count = find(set, i < back ? 0 : i - back, found);
        struct seen seen = { found, count, g };
        for (size_t r = 0; r < count; r++) {
            size_t state = r;
            if (set->options[HEAD_LAYOUT] == 0) state = (g * count + r) / set->kv_heads;
            if (found[state] == INDEX_NONE && set->options[ZERO_ROWS] == 0) continue;
            double score = 0.0;
            for (size_t d = 0; d < set->dim; d++)
                score += (double)set->q[row * set->dim + d] * projected(set, set->key, &seen, r, d);
            double weight = exp(score / sqrt((double)set->dim));
            for (size_t d = 0; d < set->dim; d++)
                o[d] += weight * projected(set, set->value, &seen, r, d);
            sum += weight;
        }
    }
    const struct partial *got = &set->reply.answer.partial;
    if (set->past.limits[i] == 0)
        assert_true(got->lse[row] == -INFINITY);
    else if (sum > 0.0 && !(fabs((double)got->lse[row] - log(sum)) < 2e-5))
        fail_msg("query %zu head %zu: lse %.7g, not %.7g", i, h, (double)got->lse[row], log(sum));
    for (size_t d = 0; d < set->dim; d++) {
        double wanted = sum > 0.0 ? o[d] / sum : 0.0;
        if (!(fabs((double)got->o[row * set->dim + d] - wanted) < 2e-5))
            fail_msg("query %zu head %zu: o[%zu] %.7g, not %.7g", i, h, d,
                     (double)got->o[row * set->dim + d], wanted);
    }
}

static void test_answers(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const struct {
        size_t tokens;
        double memory, k, neighbours, window, search;
    } cases[] = { { 100, 32, 4, 2, 2, 0 },  { 100, 32, 4, 1, 1, 1 },   { 3, 16, 5, 2, 2, 0 },
                  { 3, 16, 5, 4, 3, 1 },    { 700, 1024, 8, 2, 1, 0 }, { 60, 1024, 3, 1, 4, 1 },
                  { 1500, 512, 6, 4, 2, 0 } };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 56; turn++) {
        size_t at = turn % 7;
        struct setting set = { .past = { .tokens = cases[at].tokens,
                                         .queries = turn % 4 + 1,
                                         .dtype = dtypes[turn % 3] },
                               .kv_heads = turn % 3 + 1,
                               .dim = turn % 2 == 0 ? 8 : 24,
                               .width = turn % 2 == 0 ? 16 : 48,
                               .options = { [MEMORY] = cases[at].memory,
                                            [K] = cases[at].k,
                                            [NEIGHBOURS] = cases[at].neighbours,
                                            [WINDOW] = cases[at].window,
                                            [SEARCH] = cases[at].search,
                                            [METRIC] = turn % 5 == 0 ? VECTORS_DOT : VECTORS_L2,
                                            [CACHE_LAYER] = -1,
                                            [HEAD_LAYOUT] = turn % 4 < 2,
                                            [ZERO_ROWS] = turn % 9 != 8 } };
        set.heads = set.kv_heads * (turn % 2 + 1);
        set_up(&set, &random);
        struct pool *pool = NULL;
        struct error err = { 0 };
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        set.reading.attend.pool = pool;
        if (ask(&set, &err) != 0) fail_msg("turn %zu: %s", turn, err.text);
        for (size_t row = 0; row < set.past.queries * set.heads; row++) {
            expect(&set, row / set.heads, row % set.heads);
            uint64_t limit = set.past.limits[row / set.heads];
            bool all = limit == 0 || (set.options[SEARCH] == 1 && (double)limit <= set.options[K]);
            float mass = set.reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
            assert_true(all ? mass == 1.0F : isnan(mass));
        }
        pool_close(pool);
        take_down(&set);
    }
}

/* The trap: two states of two blocks each; head 0 sees both blocks of the first, or the first of
 * both. */
static void test_head_layouts(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (int layout = 0; layout < 2; layout++) {
        struct setting set = { .past = { .tokens = 2, .queries = 1, .dtype = DTYPE_FP32 },
                               .heads = 2,
                               .kv_heads = 2,
                               .dim = 8,
                               .width = 16,
                               .options = { [MEMORY] = 2,
                                            [K] = 2,
                                            [NEIGHBOURS] = 1,
                                            [WINDOW] = 1,
                                            [SEARCH] = 1,
                                            [METRIC] = VECTORS_DOT,
                                            [HEAD_LAYOUT] = layout,
                                            [CACHE_LAYER] = -1 } };
        set_up(&set, &random);
        /* state a = (1, 0, …), b = (0, 1, …); values a0 = 1, a1 = 10, b0 = 100, b1 = 1000 */
        memset(set.past.k_rows, 0, 2 * 8 * sizeof(float));
        memset(set.past.v_rows, 0, 2 * 8 * sizeof(float));
        ((float *)(void *)set.past.k_rows)[0] = ((float *)(void *)set.past.k_rows)[9] = 1.0F;
        memset(set.key, 0, 2 * 8 * 16 * sizeof(float));
        memset(set.value, 0, 2 * 8 * 16 * sizeof(float));
        set.states[0] = 2.0F; /* a is found first */
        set.states[1] = 1.0F;
        set.value[0] = 1.0F;
        set.value[8 * 16] = 10.0F;
        set.value[1] = 100.0F;
        set.value[8 * 16 + 1] = 1000.0F;
        struct error err = { 0 };
        assert_int_equal(ask(&set, &err), 0);
        const float *o = set.reply.answer.partial.o;
        assert_true(fabs((double)o[0] - (layout == 0 ? 5.5 : 50.5)) < 1e-3);
        assert_true(fabs((double)o[8] - (layout == 0 ? 550.0 : 505.0)) < 1e-3);
        take_down(&set);
    }
}

static void test_search_and_plan(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 6; turn++) {
        struct setting set = {
            .past = { .tokens = turn == 0 ? 3 : 300, .queries = 3, .dtype = DTYPE_FP16 },
            .heads = 2,
            .kv_heads = 1,
            .dim = 8,
            .width = 32,
            .options = { [MEMORY] = 64,
                         [K] = 5,
                         [NEIGHBOURS] = 2,
                         [WINDOW] = 2,
                         [SEARCH] = (double)(turn % 2),
                         [CACHE_LAYER] = -1,
                         [ZERO_ROWS] = 1 }
        };
        set_up(&set, &random);
        size_t k = turn == 5 ? 4 : 12, rows = 6;
        struct index_hits hits = { past_alloc(rows * k, 8), past_alloc(rows * k, 4), k };
        struct arena arena;
        struct plan plan;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(neurocache()->search(neurocache(), &set.reading, &arena, &hits,
                                              &set.reply.quality, NULL),
                         0);
        assert_int_equal(plan_init(&plan, &arena, NULL), 0);
        set.reading.plan = &plan;
        assert_int_equal(
            neurocache()->attend(neurocache(), &set.reading, &arena, &set.reply.answer, NULL), 0);
        uint64_t found[10], read = 0, planned = 0;
        for (size_t row = 0; row < rows; row++) {
            size_t count = find(&set, row / 2, found), at = 0;
            for (size_t j = 0; j < count; j++)
                if (found[j] != INDEX_NONE && at < k)
                    assert_true(hits.ids[row * k + at++] == found[j]);
            for (; at < k; at++) assert_true(hits.ids[row * k + at] == INDEX_NONE);
        }
        for (size_t i = 0; i < 3; i++) /* query 0 reads its own set twice, others the one before */
            for (size_t t = 0; t < 2; t++) {
                size_t count = find(&set, i - (t == 0 && i > 0), found);
                for (size_t j = 0; j < count; j++) read += found[j] != INDEX_NONE;
            }
        for (size_t i = 0; i < plan.run_count; i++) {
            planned += plan.runs[i].count;
            assert_true(plan.groups[plan.runs[i].group].merge == PLAN_SEPARATE);
        }
        assert_true(planned == read);
        arena_fini(&arena);
        free(hits.ids);
        free(hits.scores);
        take_down(&set);
    }
}

/* Finite numbers whose products are none: nothing is found, whatever the search. (Sketches of no
 * numbers at all, which an earlier daemon would have allowed as little, are an exact search.) */
static void test_too_large(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t search = 0; search < 4; search++) {
        struct setting set = {
            .past = { .tokens = 300, .queries = 1, .dtype = DTYPE_FP16 },
            .heads = 2,
            .kv_heads = 1,
            .dim = 8,
            .width = 32,
            .options = { [MEMORY] = 64, [K] = 5, [NEIGHBOURS] = 2, [WINDOW] = 2,
                         [SEARCH] = (double)search, [CACHE_LAYER] = -1, [ZERO_ROWS] = 1 }
        };
        set_up(&set, &random);
        for (size_t i = 0; i < set.width; i++) set.states[i] = i % 2 == 0 ? 3e38F : -3e38F;
        struct index_hits hits = { past_alloc(2 * 5, 8), past_alloc(2 * 5, 4), 5 };
        struct arena arena;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(neurocache()->search(neurocache(), &set.reading, &arena, &hits,
                                              &set.reply.quality, NULL),
                         0);
        assert_int_equal(ask(&set, NULL), 0);
        for (size_t i = 0; i < 10; i++)
            assert_true(hits.ids[i] < 300 || hits.ids[i] == INDEX_NONE);
        arena_fini(&arena);
        free(hits.ids);
        free(hits.scores);
        take_down(&set);
    }
}

/* Hidden states become LayerNorm(W_p h). */
static void test_encode(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    enum { HIDDEN = 40, W = 32, N = 3 };
    float *project = numbers(W * HIDDEN, 1.0F, &random), *h = numbers(N * HIDDEN, 3.0F, &random);
    float *weight = numbers(W, 2.0F, &random), *bias = numbers(W, 1.0F, &random), got[N * W];
    struct param items[] = { { "encode", 2, { project, DTYPE_FP32, 2, { W, HIDDEN } } },
                             { "norm_weight", 2, { weight, DTYPE_FP32, 1, { W } } },
                             { "norm_bias", 2, { bias, DTYPE_FP32, 1, { W } } } };
    struct params params = { items, 3, 1 };
    double options[OPTIONS_MAX] = { [WIDTH] = W, [NORM_EPS] = 1e-5 };
    struct encoding encoding = { { h, DTYPE_FP32, 2, { N, HIDDEN } }, &params, options, 2 };
    struct error err = { 0 };
    struct arena arena;
    arena_init(&arena, 1 << 20);
    assert_int_equal(neurocache()->encode(&encoding, &arena, got, &err), 0);
    for (size_t n = 0; n < N; n++) {
        double c[W], mean = 0.0, variance = 0.0;
        for (size_t i = 0; i < W; i++) {
            c[i] = 0.0;
            for (size_t j = 0; j < HIDDEN; j++)
                c[i] += (double)project[i * HIDDEN + j] * (double)h[n * HIDDEN + j];
            mean += c[i] / W;
        }
        for (size_t i = 0; i < W; i++) variance += (c[i] - mean) * (c[i] - mean) / W;
        for (size_t i = 0; i < W; i++) {
            double wanted = (c[i] - mean) / sqrt(variance + 1e-5) * (double)weight[i] +
                            (double)bias[i];
            assert_true(fabs((double)got[n * W + i] - wanted) < 1e-4);
        }
    }
    encoding.given.shape[1] = 39;
    assert_int_equal(neurocache()->encode(&encoding, &arena, got, &err), MEMD_ESHAPE);
    params.count = 0;
    assert_int_equal(neurocache()->encode(&encoding, &arena, got, &err), MEMD_ESHAPE);
    arena_fini(&arena);
    free(project);
    free(h);
    free(weight);
    free(bias);
}

static void test_refused(void **state)
{
    (void)state;
    struct model model = {
        .layers = 4, .query_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_FP16
    };
    double options[OPTIONS_MAX];
    struct error err = { 0 };
    assert_int_equal(method_parse(neurocache(), NULL, 0, options, &err), 0);
    assert_int_equal(method_check(neurocache(), &model, options, &err), 0);
    options[MEMORY] = 1000; /* by default nothing depends on what divides it */
    assert_int_equal(method_check(neurocache(), &model, options, &err), 0);
    options[MEMORY] = 16384;
    options[SEARCH] = 0;
    static const struct {
        size_t option;
        double value;
        int code;
    } wrong[] = { { EVICTION, 1, 0 },                 { MEMORY, 1000, MEMD_EINVAL },
                  { NEIGHBOURS, 3, MEMD_EINVAL },     { CACHE_LAYER, 4, MEMD_EINVAL },
                  { WIDTH, 1000, MEMD_EINVAL },       { MEMORY, 8, MEMD_EINVAL } };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        double before = options[wrong[i].option];
        options[wrong[i].option] = wrong[i].value;
        assert_int_equal(method_check(neurocache(), &model, options, &err), wrong[i].code);
        options[wrong[i].option] = before;
    }
    options[EVICTION] = 1; /* stored whole, read one by one */
    assert_true(neurocache()->ring(options) == 16384);
    options[MEMORY] = 131072;
    assert_int_equal(method_check(neurocache(), &model, options, &err), MEMD_EINVAL);
    options[MEMORY] = 16384;
    options[SEARCH] = 2;
    assert_int_equal(method_check(neurocache(), &model, options, &err), MEMD_EINVAL);
    options[EVICTION] = options[SEARCH] = 0;
    assert_true(neurocache()->ring(options) == 0);
    assert_true(neurocache()->rows_layer(options, 2) == 2);
    options[CACHE_LAYER] = 1;
    assert_true(neurocache()->rows_layer(options, 2) == 1);
    uint64_t random = random_seed();
    struct setting set = {
        .past = { .tokens = 9, .queries = 1, .dtype = DTYPE_FP32 },
        .heads = 1,
        .kv_heads = 1,
        .dim = 8,
        .width = 16,
        .options = { [MEMORY] = 8, [K] = 1, [NEIGHBOURS] = 1, [WINDOW] = 1, [SEARCH] = 1 }
    };
    set_up(&set, &random);
    set.reading.states.dims = 0;
    assert_int_equal(ask(&set, &err), MEMD_EINVAL);
    set.params.count = 1;
    assert_int_equal(ask(&set, &err), MEMD_EUNSUPPORTED);
    take_down(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),         cmocka_unit_test(test_head_layouts),
        cmocka_unit_test(test_search_and_plan), cmocka_unit_test(test_encode),
        cmocka_unit_test(test_refused),         cmocka_unit_test(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
