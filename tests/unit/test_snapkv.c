/* SPDX-License-Identifier: Apache-2.0 */
/* test_snapkv.c — what snapkv and pyramidkv keep and what their queries then read, against the
 * published steps in double. */
#include "memory/methods/methods.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "index/budget.h"
#include "tests/unit/asked.h"

enum { WINDOW = 8, KERNEL = 5 };

/* Pooled votes of the past of a prompt by head h: query rows 0 … WINDOW-1 are of its end. */
static void pooled_votes(const struct past *past, size_t tokens, size_t h, double *ret_votes)
{
    size_t n = tokens - WINDOW;
    double *weights = past_alloc(tokens, sizeof *weights), *votes = past_alloc(n, sizeof *votes);
    for (size_t i = 0; i < WINDOW; i++) {
        double sum = 0.0;
        for (size_t t = 0; t <= n + i; t++) sum += weights[t] = exp(past_score(past, i, h, t));
        for (size_t t = 0; t < n; t++) votes[t] += weights[t] / sum;
    }
    for (size_t t = 0; t < n; t++) {
        ret_votes[t] = 0.0;
        for (size_t j = t < KERNEL / 2 ? 0 : t - KERNEL / 2; j <= t + KERNEL / 2 && j < n; j++)
            ret_votes[t] += votes[j] / KERNEL;
    }
    free(weights);
    free(votes);
}

/* Votes of head h, joined with those of its group as `rule` says. */
static void reduce(const struct past *past, size_t tokens, size_t h, const char *rule,
                   double *ret_votes)
{
    size_t group = past->query_heads / past->kv_heads, n = tokens - WINDOW;
    pooled_votes(past, tokens, h, ret_votes);
    if (strcmp(rule, "none") == 0) return;
    double *more = past_alloc(n, sizeof *more);
    for (size_t other = h / group * group; other < (h / group + 1) * group; other++) {
        if (other == h) continue;
        pooled_votes(past, tokens, other, more);
        for (size_t t = 0; t < n; t++)
            ret_votes[t] = strcmp(rule, "max") == 0 ? fmax(ret_votes[t], more[t])
                                                    : ret_votes[t] + more[t];
    }
    free(more);
}

/* Has the selection token t for head h? */
static bool is_kept(const struct asked *asked, size_t h, size_t t)
{
    const struct selection *selection = asked->selection;
    if (selection == NULL) return true;
    size_t kept = h * selection->heads / asked->past->query_heads;
    for (uint64_t i = selection->first[kept]; i < selection->first[kept + 1]; i++)
        if (selection->ids[i] == t) return true;
    return false;
}

/* Tokens that head h keeps of a prompt, and all behind it. Votes are sums of fp32 numbers: which of
 * those that are as good as equal to the last one is kept, `selection` says. */
static void choose(const struct asked *asked, size_t tokens, size_t h, const char *rule,
                   size_t kept, bool *ret_chosen)
{
    const struct past *past = asked->past;
    size_t n = tokens - WINDOW, left = kept < n ? kept : n;
    double *votes = past_alloc(n, sizeof *votes);
    struct ranked *hits = past_alloc(n, sizeof *hits);
    reduce(past, tokens, h, rule, votes);
    for (size_t t = 0; t < n; t++) hits[t] = (struct ranked){ votes[t], t };
    qsort(hits, n, sizeof *hits, better_first);
    double last = left > 0 ? hits[left - 1].score : INFINITY;
    for (size_t t = 0; t < past->tokens; t++) {
        bool even = t < n && fabs(votes[t] - last) <= 1e-5 * last;
        ret_chosen[t] = t >= n || (even ? is_kept(asked, h, t) : votes[t] > last);
        left -= t < n && ret_chosen[t];
    }
    assert_int_equal(left, 0);
    free(votes);
    free(hits);
}

/* Below the limit of query i. */
static bool clip(const struct past *past, size_t i, size_t tokens, bool *chosen)
{
    bool dropped = false;
    for (size_t t = 0; t < past->tokens; t++) {
        chosen[t] = chosen[t] && t < past->limits[i];
        dropped |= t < tokens && t < past->limits[i] && !chosen[t];
    }
    return dropped;
}

/* kept: of the past, by KV head */
static void expect_heads(struct asked *asked, size_t tokens, const char *rule, const size_t *kept)
{
    struct past *past = asked->past;
    bool *chosen = past_alloc(past->tokens, sizeof *chosen);
    assert_int_equal(asked_attend(asked), 0);
    assert_int_equal(asked_search(asked, past->tokens), 0);
    for (size_t i = 0; i < past->queries; i++)
        for (size_t h = 0; h < past->query_heads; h++) {
            size_t row = i * past->query_heads + h;
            choose(asked, tokens, h, rule, kept[h / (past->query_heads / past->kv_heads)], chosen);
            bool dropped = clip(past, i, tokens, chosen);
            assert_true(subset_equals(past, &asked->reply, i, h, chosen));
            assert_true(asked_found(asked, i, h, chosen));
            float mass = asked->reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT];
            assert_true(dropped ? isnan(mass) : mass == 1.0F);
        }
    free(chosen);
}

static void expect(struct asked *asked, size_t tokens, const char *rule, size_t kept)
{
    expect_heads(asked, tokens, rule, (size_t[]){ kept, kept });
}

static void make(struct past *past, size_t turn, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    *past = (struct past){ .query_heads = 4, .kv_heads = turn % 2 + 1, .head_dim = 40,
                           .tokens = 700, .queries = WINDOW + 1, .dtype = dtypes[turn % 3] };
    past_make(past, random);
    past_cut(past, 200, random);
}

/* Behind the first token that a head lacks: others may have all below. */
static uint64_t first_gap(const struct selection *selection)
{
    uint64_t gap = selection->tokens;
    for (uint32_t h = 0; h < selection->heads; h++) {
        uint64_t i = 0;
        while (selection->ids[selection->first[h] + i] == i) i++;
        if (i < gap) gap = i;
    }
    return gap + 1;
}

static void test_snapkv(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const char *const rules[] = { "mean", "max", "sum", "none" };
    static const char *const capacities[] = { "40", "9", "590" };
    for (size_t turn = 0; turn < 12; turn++) {
        struct past past;
        struct asked asked;
        struct error err = { 0 };
        make(&past, turn, &random);
        const char *parameters[] = { "capacity", capacities[turn % 3], "window", "8",
                                     "gqa_reduce", rules[turn / 3], NULL };
        asked_begin(&asked, &past, &method_snapkv, parameters);
        assert_int_equal(asked_compress(&asked, 600, past.q, WINDOW, &err), 0);
        assert_non_null(asked.selection);
        assert_int_equal(asked.selection->heads, turn / 3 == 3 ? 4 : past.kv_heads);
        past.limits[1] = first_gap(asked.selection);
        expect(&asked, 600, rules[turn / 3], strtoul(capacities[turn % 3], NULL, 10) - WINDOW);
        asked_end(&asked);
        past_free(&past);
    }
}

static void test_pyramid(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    make(&past, 1, &random);
    static const char *const parameters[] = { "capacity", "64", "window", "8", NULL };
    uint64_t before = UINT64_MAX;
    for (uint32_t layer = 0; layer < 6; layer++) {
        struct asked asked;
        struct error err = { 0 };
        struct budget budget = { 64, WINDOW, 20, 6 };
        uint64_t kept = budget_pyramid(&budget, layer, 600);
        asked_begin(&asked, &past, &method_pyramidkv, parameters);
        asked.reading.layer = layer;
        asked.reading.layers = 6;
        assert_int_equal(asked_compress(&asked, 600, past.q, WINDOW, &err), 0);
        assert_true(kept < before && asked.selection->first[1] == kept + WINDOW);
        expect(&asked, 600, "mean", (size_t)kept);
        before = kept;
        asked_end(&asked);
    }
    past_free(&past);
}

/* Head 0 keeps its window and no more, head 1 much or all; a tensor of the layer is stronger than
 * one of all layers, and that than the parameters. */
static void test_capacities_of_heads(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const char *const parameters[] = { "capacity", "40", "window", "8", NULL };
    static const char *const apart[] = {
        "capacity", "40", "window", "8", "gqa_reduce", "none", NULL
    };
    float everywhere[2] = { 100, 100 }, here[2] = { 8, 8 };
    const struct param items[] = {
        { "capacity", PARAM_ALL_LAYERS, { everywhere, DTYPE_FP32, 1, { 2 } } },
        { "capacity", 3, { here, DTYPE_FP32, 1, { 2 } } },
    };
    const struct params params = { items, 2, 1 };
    static const float second[] = { 9, 77, 600, 601, 0x1p24F };
    struct past past;
    make(&past, 1, &random);
    for (size_t i = 0; i < 10; i++) {
        struct asked asked;
        struct error err = { 0 };
        const struct method *method = i % 2 == 0 ? &method_snapkv : &method_pyramidkv;
        asked_begin(&asked, &past, method, i % 4 < 2 ? parameters : apart);
        asked.reading.params = &params;
        asked.reading.layers = 6;
        asked.reading.layer = 3;
        here[1] = second[i / 2];
        assert_int_equal(asked_compress(&asked, 600, past.q, WINDOW, &err), 0);
        size_t kept[] = { 0, here[1] < 600 ? (size_t)here[1] - WINDOW : 592 };
        expect_heads(&asked, 600, i % 4 < 2 ? "mean" : "none", kept);
        asked.reading.layer = 2;
        assert_int_equal(asked_compress(&asked, 600, past.q, WINDOW, &err), 0);
        expect(&asked, 600, i % 4 < 2 ? "mean" : "none", 92);
        asked_end(&asked);
    }
    past_free(&past);
}

static void test_capacities_that_are_none(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    struct asked asked;
    struct error err = { 0 };
    make(&past, 1, &random);
    float given[2] = { 40, 40 };
    const struct param item = { "capacity", PARAM_ALL_LAYERS, { given, DTYPE_FP32, 1, { 2 } } };
    const struct params params = { &item, 1, 1 };
    static const char *const parameters[] = { "capacity", "40", "window", "8", NULL };
    asked_begin(&asked, &past, &method_snapkv, parameters);
    asked.reading.params = &params;
    static const float wrong[] = { 7, 40.5F, -1, 0 };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        given[1] = wrong[i];
        assert_int_equal(asked_compress(&asked, 600, past.q, WINDOW, &err), MEMD_EINVAL);
        assert_non_null(strstr(err.text, "capacity of KV head 1"));
        assert_null(asked.selection);
    }
    given[0] = given[1] = 601; /* more than there is: nothing to choose, no queries needed */
    assert_int_equal(asked_compress(&asked, 600, NULL, 0, &err), 0);
    assert_null(asked.selection);
    asked_end(&asked);
    past_free(&past);
}

/* Shorter than the capacity: nothing to keep, no queries needed, and everything is read. */
static void test_short_prompts(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    make(&past, 0, &random);
    static const char *const parameters[] = { "capacity", "601", "window", "8", NULL };
    for (size_t turn = 0; turn < 2; turn++) {
        struct asked asked;
        struct error err = { 0 };
        asked_begin(&asked, &past, turn == 0 ? &method_snapkv : &method_pyramidkv, parameters);
        assert_int_equal(asked_compress(&asked, 600, NULL, 0, &err), 0);
        assert_null(asked.selection);
        expect(&asked, 600, "mean", 600);
        assert_int_equal(asked_compress(&asked, 601, NULL, 0, &err), MEMD_EINVAL);
        assert_non_null(strstr(err.text, "last 8 tokens are needed, 0 came"));
        assert_int_equal(asked_compress(&asked, 601, past.q, 7, &err), MEMD_EINVAL);
        /* capacity = n: compressed, and everything kept */
        assert_int_equal(asked_compress(&asked, 601, past.q, 8, &err), 0);
        assert_non_null(asked.selection);
        expect(&asked, 601, "mean", 593);
        asked_end(&asked);
    }
    past_free(&past);
}

static void test_check(void **state)
{
    (void)state;
    struct error err = { 0 };
    double options[OPTIONS_MAX];
    struct model model = { .layers = 1 };
    static const struct parameter wrong[][2] = { { { "capacity", "32" }, { "window", "32" } },
                                                 { { "kernel", "4" }, { "window", "3" } } };
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(method_parse(&method_pyramidkv, wrong[i], 2, options, &err), 0);
        assert_int_equal(method_check(&method_pyramidkv, &model, options, &err), MEMD_EINVAL);
    }
    assert_non_null(strstr(err.text, "kernel is 4 and has to be odd"));
    assert_int_equal(method_parse(&method_snapkv, NULL, 0, options, &err), 0);
    assert_int_equal(method_check(&method_snapkv, &model, options, &err), 0);
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past;
    struct asked asked;
    struct error err = { 0 };
    make(&past, 0, &random);
    static const char *const parameters[] = { "capacity", "40", "window", "8", NULL };
    asked_begin(&asked, &past, &method_snapkv, parameters);
    asked.reading.attend.stop = past_refuse;
    assert_int_equal(asked_compress(&asked, 600, past.q, WINDOW, &err), MEMD_ECANCELLED);
    assert_null(asked.selection);
    asked_end(&asked);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapkv),
        cmocka_unit_test(test_pyramid),
        cmocka_unit_test(test_short_prompts),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_capacities_of_heads),
        cmocka_unit_test(test_capacities_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
