/* SPDX-License-Identifier: Apache-2.0 */
/* test_norms.c — lengths of keys against double arithmetic, however the fold came to its end; and
 * the chunks that they stand in. */
#include "index/norms.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/backend.h"
#include "base/error.h"
#include "base/pool.h"
#include "tests/unit/past.h"

static void test_grown(void **state)
{
    (void)state;
    struct grown grown;
    grown_init(&grown, 3, 6);
    size_t some = 0;
    for (uint64_t tokens = 1; tokens < 2000; tokens = tokens * 2 + 1) {
        assert_int_equal(grown_reserve(&grown, tokens, NULL), 0);
        for (size_t head = 0; head < 3; head++) { /* the newest row only: the others stay */
            unsigned char *row = grown_rows(&grown, head, tokens - 1, 1, &some);
            assert_int_equal(some, 1);
            memset(row, (int)(tokens % 200 + head), 6);
        }
    }
    for (uint64_t tokens = 1; tokens < 2000; tokens = tokens * 2 + 1)
        for (size_t head = 0; head < 3; head++) {
            const unsigned char *row = grown_rows(&grown, head, tokens - 1, 9999, &some);
            assert_true(row[0] == tokens % 200 + head && row[5] == tokens % 200 + head);
            assert_int_equal(some, GROWN_CHUNK - (tokens - 1) % GROWN_CHUNK);
        }
    assert_true(grown_bytes(&grown) >= (size_t)3 * 6 * 1023);
    assert_ptr_equal((uintptr_t)grown_rows(&grown, 0, 256, 1, &some) % 64, 0);
    grown_fini(&grown);
}

static double true_length(const struct past *past, size_t g, size_t t)
{
    double sum = 0.0;
    const float *key = past->k + (g * past->tokens + t) * past->head_dim;
    for (size_t d = 0; d < past->head_dim; d++) sum += (double)key[d] * (double)key[d];
    return sqrt(sum);
}

static struct fold_source source_of(const struct past *past, struct pool *pool)
{
    return (struct fold_source){ .rows = { past->views, past->view_count, past->head_dim, NULL },
                                 .kv_heads = past->kv_heads, .query_heads = past->query_heads,
                                 .head_dim = past->head_dim, .scale = 1, .pool = pool,
                                 .layers = 1 };
}

/* Folded in steps of any size, and at once. */
static void test_fold(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 6; turn++) {
        struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = turn % 2 ? 64 : 40,
                             .tokens = turn < 3 ? 5000 : 300, .queries = 1,
                             .dtype = dtypes[turn % 3] };
        past_make(&past, &random);
        past_cut(&past, 200, &random);
        struct pool *pool = NULL;
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        struct fold_source source = source_of(&past, pool);
        struct fold *fold = NULL;
        assert_int_equal(norms_fold.open(&source, &fold, NULL), 0);
        while (fold->tokens < past.tokens) {
            uint64_t left = past.tokens - fold->tokens;
            uint64_t step = random_below(&random, turn % 2 ? 400 : 9000) + 1;
            uint64_t end = norms_fold.reach(NULL, fold->tokens + (step < left ? step : left));
            assert_int_equal(norms_fold.advance(fold, &source, end, NULL), 0);
            assert_int_equal(fold->tokens, end);
        }
        assert_true(fold->bytes >= past.kv_heads * past.tokens * sizeof(float));
        for (size_t g = 0; g < past.kv_heads; g++) {
            size_t some = 0;
            for (size_t t = 0; t < past.tokens; t += some) {
                const float *lengths = norms_run(norms_of(fold), g, t, 100, &some);
                for (size_t i = 0; i < some; i++)
                    assert_true(fabs((double)lengths[i] - true_length(&past, g, t + i)) <
                                1e-6 * (double)lengths[i]);
            }
        }
        norms_fold.free(fold);
        pool_close(pool);
        past_free(&past);
    }
}

/* A key without length among others, a query without length. */
static void test_cosines(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = 64, .tokens = 700,
                         .queries = 1, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    memset(past.k + (size_t)300 * 64, 0, 64 * sizeof *past.k);
    memcpy(past.k_rows, past.k, (size_t)700 * 64 * sizeof *past.k);
    struct fold_source source = source_of(&past, NULL);
    struct fold *fold = NULL;
    assert_int_equal(norms_fold.open(&source, &fold, NULL), 0);
    assert_int_equal(norms_fold.advance(fold, &source, 700, NULL), 0);
    float scores[700];
    backend_get()->score(&(struct score_args){
        .q = past.q, .queries = 1, .head_dim = 64, .k = past.k_rows,
        .k_stride_bytes = 64 * sizeof(float), .tokens = 700, .dtype = DTYPE_FP32,
        .scores = scores });
    double length = norms_length(past.q, 64);
    norms_cosines(norms_of(fold), 0, 0, 250, length, scores);
    norms_cosines(norms_of(fold), 0, 250, 450, length, scores + 250);
    for (size_t t = 0; t < 700; t++) {
        double dot = past_score(&past, 0, 0, t) * sqrt(64.0);
        double expected = t == 300 ? 0.0 : dot / length / true_length(&past, 0, t);
        if (fabs((double)scores[t] - expected) > 1e-6)
            fail_msg("cosine of token %zu: %g, expected %g", t, (double)scores[t], expected);
    }
    norms_cosines(norms_of(fold), 0, 0, 700, 0.0, scores);
    for (size_t t = 0; t < 700; t++) assert_true(scores[t] == 0.0F);
    norms_fold.free(fold);
    past_free(&past);
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = 64, .tokens = 700,
                         .queries = 1, .dtype = DTYPE_BF16 };
    past_make(&past, &random);
    struct fold_source source = source_of(&past, NULL);
    struct fold *fold = NULL;
    struct error err = { 0 };
    assert_int_equal(norms_fold.open(&source, &fold, NULL), 0);
    source.stop = past_refuse;
    assert_int_equal(norms_fold.advance(fold, &source, 700, &err), MEMD_ECANCELLED);
    assert_int_equal(fold->tokens, 0);
    source.stop = NULL;
    assert_int_equal(norms_fold.advance(fold, &source, 700, &err), 0);
    assert_int_equal(norms_fold.advance(fold, &source, 700, &err), 0);
    assert_int_equal(fold->tokens, 700);
    norms_fold.free(fold);
    norms_fold.free(NULL);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grown),
        cmocka_unit_test(test_fold),
        cmocka_unit_test(test_cosines),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
