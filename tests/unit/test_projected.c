/* SPDX-License-Identifier: Apache-2.0 */
/* test_projected.c — projected keys against products in double, with a basis that was uploaded and
 * with one that the keys give by themselves. */
#include "index/projected.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/error.h"
#include "base/pool.h"
#include "tests/unit/past.h"

static const struct fold_type type; /* a fold without a method */

static struct fold_source source_of(const struct past *past)
{
    return (struct fold_source){ .rows = { past->views, past->view_count, past->head_dim, NULL },
                                 .kv_heads = past->kv_heads, .query_heads = past->query_heads,
                                 .head_dim = past->head_dim, .scale = 1, .layers = 1 };
}

static struct projected *open_fold(const struct fold_source *source)
{
    struct fold *fold = NULL;
    assert_int_equal(projected_open(&type, source, &fold, NULL), 0);
    return (struct projected *)(void *)fold;
}

/* Product of query and key of token t in the columns 0 … r-1 of p (D, D). */
static double true_score(const struct past *past, size_t g, size_t t, const float *q,
                         const float *p, size_t r)
{
    size_t dim = past->head_dim;
    const float *key = past->k + (g * past->tokens + t) * dim;
    double sum = 0.0;
    for (size_t c = 0; c < r; c++) {
        double a = 0.0, b = 0.0;
        for (size_t d = 0; d < dim; d++) {
            a += (double)q[d] * (double)p[d * dim + c];
            b += (double)key[d] * (double)p[d * dim + c];
        }
        sum += a * b;
    }
    return sum;
}

/* Any matrix is a basis; folded in steps of any size. */
static void test_uploaded(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 6; turn++) {
        struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = turn % 2 ? 64 : 40,
                             .tokens = 2500, .queries = 1, .dtype = dtypes[turn % 3] };
        past_make(&past, &random);
        past_cut(&past, 200, &random);
        size_t dim = past.head_dim, r = turn % 2 ? 16 : 11;
        float *p = past_alloc(2 * dim * dim, sizeof *p);
        for (size_t i = 0; i < 2 * dim * dim; i++) p[i] = random_float(&random) / 4;
        struct tensor basis = { p, DTYPE_FP32, 3, { 2, dim, dim } };
        struct fold_source source = source_of(&past);
        struct projected *projected = open_fold(&source);
        struct projected_wish wish = { .components = r };
        assert_int_equal(projected_take(projected, &basis, NULL, &wish, NULL), 0);
        assert_int_equal(projected->width, 16);
        while (projected->base.tokens < past.tokens) {
            uint64_t end = projected->base.tokens + random_below(&random, 900);
            if (end > past.tokens) end = past.tokens;
            assert_int_equal(projected_advance(projected, &source, false, end, NULL), 0);
        }
        assert_int_equal(projected->dtype, turn % 3 == 0 ? DTYPE_FP32 : DTYPE_FP16);
        assert_true(projected->base.bytes > past.tokens * 2 * 16 * (turn % 3 == 0 ? 4 : 2));
        float q[64], scores[2500];
        for (size_t g = 0; g < 2; g++) {
            const float *query = past.q + g * dim;
            projected_query(projected, g, query, q);
            projected_scores(projected, g, q, 3, past.tokens - 3, scores);
            for (size_t t = 3; t < past.tokens; t++) {
                double wanted = true_score(&past, g, t, query, p + g * dim * dim, r);
                if (fabs((double)scores[t - 3] - wanted) > (turn % 3 == 0 ? 1e-4 : 3e-2))
                    fail_msg("head %zu token %zu: %g, expected %g", g, t,
                             (double)scores[t - 3], wanted);
            }
        }
        projected_free(&projected->base);
        free(p);
        past_free(&past);
    }
}

/* Keys of three directions, others in each head: by themselves the first three components, in which
 * products are whole. */
static void plant(struct past *past, uint64_t *random)
{
    size_t dim = past->head_dim;
    float *directions = past_alloc(past->kv_heads * 3 * dim, sizeof *directions);
    for (size_t i = 0; i < past->kv_heads * 3 * dim; i++) directions[i] = random_float(random);
    memset(past->k, 0, past->kv_heads * past->tokens * dim * sizeof *past->k);
    for (size_t t = 0; t < past->kv_heads * past->tokens; t++)
        for (size_t c = 0; c < 3; c++) {
            const float *direction = directions + (t / past->tokens * 3 + c) * dim;
            float weight = random_float(random) * (c == 2 ? 0.1F : 1.0F);
            for (size_t d = 0; d < dim; d++) past->k[t * dim + d] += weight * direction[d];
        }
    memcpy(past->k_rows, past->k, past->kv_heads * past->tokens * dim * sizeof *past->k);
    free(directions);
}

static void test_calibrated(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct pool *pool = NULL;
    assert_int_equal(pool_open(2, &pool, NULL), 0);
    for (size_t turn = 0; turn < 4; turn++) {
        struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = 40, .tokens = 900,
                             .queries = 1, .dtype = DTYPE_FP32 };
        past_make(&past, &random);
        plant(&past, &random);
        past_cut(&past, 200, &random);
        struct fold_source source = source_of(&past);
        source.pool = turn % 2 == 0 ? pool : NULL;
        struct projected *projected = open_fold(&source);
        struct projected_wish wish = { .components = turn < 2 ? 3 : 0, .share = 0.9999999 };
        assert_int_equal(projected_calibrate(projected, &source, false, 400, &wish, NULL), 0);
        assert_int_equal(projected->components, 3);
        assert_int_equal(projected_advance(projected, &source, false, 900, NULL), 0);
        float q[8], scores[900];
        for (size_t g = 0; g < 2; g++) {
            projected_query(projected, g, past.q + g * 40, q);
            projected_scores(projected, g, q, 0, 900, scores);
            for (size_t t = 0; t < 900; t++) {
                double wanted = past_score(&past, 0, g, t) * sqrt(40.0);
                assert_true(fabs((double)scores[t] - wanted) < 1e-4);
            }
        }
        projected_free(&projected->base);
        past_free(&past);
    }
    pool_close(pool);
}

/* Of rotated keys, or of those before rotation. */
static void test_rotation(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = 64, .tokens = 300,
                         .queries = 1, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 64, &rope, NULL), 0);
    float *p = past_alloc((size_t)64 * 64, sizeof *p), q[8], scores[300];
    for (size_t i = 0; i < 64; i++) p[i * 64 + i] = 1.0F;
    struct tensor basis = { p, DTYPE_FP32, 3, { 1, 64, 64 } };
    struct projected_wish wish = { .components = 5 };
    for (size_t unrotated = 0; unrotated < 2; unrotated++) {
        struct fold_source source = source_of(&past);
        source.rows.rope = &rope;
        struct projected *projected = open_fold(&source);
        assert_int_equal(projected_take(projected, &basis, NULL, &wish, NULL), 0);
        assert_int_equal(projected_advance(projected, &source, unrotated == 1, 300, NULL), 0);
        projected_query(projected, 0, past.q, q);
        projected_scores(projected, 0, q, 0, 300, scores);
        for (size_t t = 0; t < 300; t++) {
            float key[64], cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
            double wanted = 0.0;
            memcpy(key, past.k + t * 64, sizeof key);
            rope_angles(&rope, t, cos, sin);
            if (unrotated == 0) rope_apply(&rope, cos, sin, key, 1);
            for (size_t d = 0; d < 5; d++) wanted += (double)past.q[d] * (double)key[d];
            assert_true(fabs((double)scores[t] - wanted) < 1e-4);
        }
        projected_free(&projected->base);
    }
    free(p);
    past_free(&past);
}

/* The most that any head needs; what is missing for a share; keys beyond fp16. */
static void test_edges(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 2, .head_dim = 8, .tokens = 20,
                         .queries = 1, .dtype = DTYPE_BF16 };
    past_make(&past, &random);
    for (size_t i = 0; i < (size_t)2 * 20 * 8; i++) past.k[i] = i % 8 == 0 ? 1e6F : -1e6F;
    half_store(past.k, (size_t)2 * 20 * 8, DTYPE_BF16, past.k_rows);
    struct fold_source source = source_of(&past);
    struct projected *projected = open_fold(&source);
    float p[2 * 64] = { 0 };
    for (size_t i = 0; i < 8; i++) p[i * 8 + i] = p[64 + i * 8 + i] = 1.0F;
    static const float spread[] = { 5, 3, 1, 1, 0, 0, 0, 0, 9, 1, 0, 0, 0, 0, 0, 0 };
    struct tensor basis = { p, DTYPE_FP32, 3, { 2, 8, 8 } };
    struct tensor variances = { spread, DTYPE_FP32, 2, { 2, 8 } };
    struct projected_wish wish = { .share = 0.85 };
    struct error err = { 0 };
    assert_int_equal(projected_take(projected, &basis, NULL, &wish, &err), MEMD_EUNSUPPORTED);
    assert_int_equal(projected_take(projected, &basis, &variances, &wish, &err), 0);
    assert_int_equal(projected->components, 3);
    assert_int_equal(projected_advance(projected, &source, false, 20, &err), 0);
    float q[8], scores[20];
    projected_query(projected, 1, past.q, q);
    projected_scores(projected, 1, q, 0, 20, scores);
    for (size_t t = 0; t < 20; t++) assert_true(isfinite(scores[t]));
    projected_free(&projected->base);
    projected_free(NULL);
    past_free(&past);
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = 8, .tokens = 300,
                         .queries = 1, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct fold_source source = source_of(&past);
    struct projected *projected = open_fold(&source);
    struct projected_wish wish = { .components = 8 };
    source.stop = past_refuse;
    assert_int_equal(projected_calibrate(projected, &source, false, 300, &wish, NULL),
                     MEMD_ECANCELLED);
    assert_int_equal(projected->width, 0);
    source.stop = NULL;
    assert_int_equal(projected_calibrate(projected, &source, false, 300, &wish, NULL), 0);
    source.stop = past_refuse;
    assert_int_equal(projected_advance(projected, &source, false, 300, NULL), MEMD_ECANCELLED);
    assert_int_equal(projected->base.tokens, 0);
    assert_int_equal(projected->width, 0);
    source.stop = NULL;
    past_fill(&past, past.k, &random); /* a truncate, and other keys */
    past_round(&past);
    struct projected *fresh = open_fold(&source), *both[] = { projected, fresh };
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(projected_calibrate(both[i], &source, false, 300, &wish, NULL), 0);
        assert_int_equal(projected_advance(both[i], &source, false, 300, NULL), 0);
        assert_int_equal(both[i]->base.tokens, 300);
    }
    assert_memory_equal(projected->basis, fresh->basis, 8 * 8 * sizeof(float));
    assert_int_equal(projected->base.bytes, fresh->base.bytes);
    projected_free(&projected->base);
    projected_free(&fresh->base);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uploaded), cmocka_unit_test(test_calibrated),
        cmocka_unit_test(test_rotation), cmocka_unit_test(test_edges),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
