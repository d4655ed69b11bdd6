/* SPDX-License-Identifier: Apache-2.0 */
/* test_l2norm.c — which keys are kept of a prompt, by their lengths in double; the case that is in
 * the paper's code: lengths 3, 1, 2, half of them kept. */
#include "memory/methods/methods.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/pool.h"
#include "tests/unit/asked.h"

static double length(const struct past *past, size_t g, size_t t)
{
    double sum = 0.0;
    const float *key = past->k + (g * past->tokens + t) * past->head_dim;
    for (size_t d = 0; d < past->head_dim; d++) sum += (double)key[d] * (double)key[d];
    return sqrt(sum);
}

static void choose(const struct past *past, size_t g, size_t tokens, size_t kept, bool *ret_chosen)
{
    struct ranked *hits = past_alloc(tokens, sizeof *hits);
    for (size_t t = 0; t < tokens; t++) hits[t] = (struct ranked){ -length(past, g, t), t };
    qsort(hits, tokens, sizeof *hits, better_first);
    for (size_t t = 0; t < past->tokens; t++) ret_chosen[t] = t >= tokens;
    for (size_t j = 0; j < kept; j++) ret_chosen[hits[j].id] = true;
    free(hits);
}

static void expect(struct asked *asked, size_t tokens, size_t kept)
{
    struct past *past = asked->past;
    bool *chosen = past_alloc(past->tokens, sizeof *chosen);
    assert_int_equal(asked_attend(asked), 0);
    assert_int_equal(asked_search(asked, past->tokens), 0);
    for (size_t i = 0; i < past->queries; i++)
        for (size_t h = 0; h < past->query_heads; h++) {
            choose(past, h / (past->query_heads / past->kv_heads), tokens, kept, chosen);
            size_t limit = (size_t)past->limits[i], read = 0, row = i * past->query_heads + h;
            for (size_t t = 0; t < past->tokens; t++) chosen[t] = chosen[t] && t < limit;
            for (size_t t = 0; t < past->tokens; t++) read += chosen[t];
            assert_true(subset_equals(past, &asked->reply, i, h, chosen));
            assert_true(asked_found(asked, i, h, chosen));
            float predicted = asked->reply.quality.predicted_error[row];
            assert_true(read == limit ? predicted == 0.0F : isnan(predicted));
        }
    free(chosen);
}

static void test_three_keys(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = 8, .tokens = 3,
                         .queries = 1, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    static const float lengths[] = { 3, 1, 2 };
    memset(past.k, 0, (size_t)24 * sizeof *past.k);
    for (size_t t = 0; t < 3; t++) past.k[t * 8 + t] = lengths[t];
    memcpy(past.k_rows, past.k, (size_t)24 * sizeof *past.k);
    static const char *const parameters[] = { "prune_after", "3", "skip_layers", "0", NULL };
    struct asked asked;
    asked_begin(&asked, &past, &method_l2norm, parameters);
    assert_int_equal(asked_compress(&asked, 3, NULL, 0, NULL), 0);
    assert_int_equal(asked.selection->first[1], 2); /* ⌈1.5⌉ */
    assert_int_equal(asked.selection->ids[0], 1);
    assert_int_equal(asked.selection->ids[1], 2);
    asked_end(&asked);
    past_free(&past);
}

static void test_against_lengths(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    static const char *const ratios[] = { "0.5", "0.1", "1", "0.001", "0" };
    static const size_t kept[] = { 250, 50, 500, 1, 0 };
    for (size_t turn = 0; turn < 15; turn++) {
        struct past past = { .query_heads = 4, .kv_heads = turn % 2 + 1, .head_dim = 40,
                             .tokens = 600, .queries = 3, .dtype = dtypes[turn % 3] };
        past_make(&past, &random);
        for (size_t t = 100; t < 300 && turn < 5; t++) /* many equal ones */
            memcpy(past.k + t * 40, past.k + (size_t)4000, 40 * sizeof *past.k);
        half_store(past.k, past.kv_heads * 600 * 40, past.dtype, past.k_rows);
        past_cut(&past, 200, &random);
        struct pool *pool = NULL;
        assert_int_equal(pool_open(2, &pool, NULL), 0);
        const char *parameters[] = { "ratio", ratios[turn % 5], "prune_after", "500", NULL };
        struct asked asked;
        asked_begin(&asked, &past, &method_l2norm, parameters);
        asked.reading.attend.pool = pool;
        asked.reading.layer = 2;
        assert_int_equal(asked_compress(&asked, 500, NULL, 0, NULL), 0);
        expect(&asked, 500, kept[turn % 5]);
        asked_end(&asked);
        pool_close(pool);
        past_free(&past);
    }
}

static void test_left_alone(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 40, .tokens = 600,
                         .queries = 3, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct asked asked;
    static const char *const parameters[] = { "prune_after", "500", NULL };
    asked_begin(&asked, &past, &method_l2norm, parameters);
    for (uint32_t layer = 0; layer < 4; layer++) {
        asked.reading.layer = layer;
        assert_int_equal(asked_compress(&asked, 499, NULL, 0, NULL), 0);
        assert_null(asked.selection);
        expect(&asked, 499, 499);
        assert_int_equal(asked_compress(&asked, 500, NULL, 0, NULL), 0);
        assert_true((asked.selection == NULL) == (layer < 2));
    }
    asked.reading.attend.stop = past_refuse;
    assert_int_equal(asked_compress(&asked, 500, NULL, 0, NULL), MEMD_ECANCELLED);
    assert_null(asked.selection);
    asked_end(&asked);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_keys),
        cmocka_unit_test(test_against_lengths),
        cmocka_unit_test(test_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
