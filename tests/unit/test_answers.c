/* SPDX-License-Identifier: Apache-2.0 */
/* test_answers.c — what is counted where, and that nothing a method says can spoil the sums. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/answers.h"
#include "memory/context.h"

static const struct answers_histogram *histogram(const struct answers *answers, uint32_t layer,
                                                 enum answers_kind kind)
{
    return &answers->layers[layer][kind];
}

static uint64_t total(const struct answers_histogram *histogram)
{
    uint64_t sum = 0;
    for (size_t i = 0; i <= ANSWERS_BOUNDS; i++) sum += atomic_load(&histogram->counts[i]);
    return sum;
}

/* The bucket whose upper bound is `bound` must hold `count`. */
static void expect(const struct answers_histogram *histogram, const double *bounds, double bound,
                   uint64_t count)
{
    size_t i = 0;
    while (i < ANSWERS_BOUNDS && bounds[i] != bound) i++;
    assert_true(i < ANSWERS_BOUNDS || isinf(bound));
    assert_int_equal(atomic_load(&histogram->counts[i]), count);
}

static void test_exact_answers_need_no_arrays(void **state)
{
    (void)state;
    struct answers *answers = NULL;
    assert_int_equal(answers_new(&answers, NULL), 0);
    const struct quality exact = { .method = "full", .exact = true, .bytes_read = 640,
                                   .bytes_exact = 640, .level_bytes = { 0, 0, 0, 640 } };
    answers_record(answers, 3, &exact, 12);
    assert_int_equal(atomic_load(&answers->layer_limit), 4);
    const double *errors = answers_bounds(ANSWERS_PREDICTED_ERROR);
    expect(histogram(answers, 3, ANSWERS_PREDICTED_ERROR), errors, errors[0], 12);
    assert_int_equal(total(histogram(answers, 3, ANSWERS_PREDICTED_ERROR)), 12);
    expect(histogram(answers, 3, ANSWERS_EXACT_MASS), answers_bounds(ANSWERS_EXACT_MASS), INFINITY,
           12);
    assert_int_equal(atomic_load(&histogram(answers, 3, ANSWERS_EXACT_MASS)->sum_ppb),
                     UINT64_C(12000000000));
    /* One reading of the layer, all of it. */
    assert_int_equal(total(histogram(answers, 3, ANSWERS_BYTES_SHARE)), 1);
    expect(histogram(answers, 3, ANSWERS_BYTES_SHARE), answers_bounds(ANSWERS_BYTES_SHARE),
           INFINITY, 1);
    assert_int_equal(total(histogram(answers, 2, ANSWERS_BYTES_SHARE)), 0);
    assert_int_equal(atomic_load(&answers->level_bytes[INDEX_EXACT]), 640);
    assert_int_equal(atomic_load(&answers->unpredicted), 0);
    answers_free(answers);
}

static void test_levels(void **state)
{
    (void)state;
    struct answers *answers = NULL;
    assert_int_equal(answers_new(&answers, NULL), 0);
    float errors[4] = { 0.004F, 0.015F, NAN, INFINITY };
    float mass[4] = { 0.25F, 0.05F, 0.95F, 1.0F };
    bool limited[4] = { false, true, true, false };
    const struct quality quality = { .method = "x", .predicted_error = errors, .mass = mass,
                                     .limited = limited, .bytes_read = 120, .bytes_exact = 1000,
                                     .level_bytes = { 10, 50, 0, 60 } };
    answers_record(answers, 0, &quality, 4);
    const struct answers_histogram *error = histogram(answers, 0, ANSWERS_PREDICTED_ERROR);
    expect(error, answers_bounds(ANSWERS_PREDICTED_ERROR), 0.005, 1);
    expect(error, answers_bounds(ANSWERS_PREDICTED_ERROR), 0.02, 1);
    expect(error, answers_bounds(ANSWERS_PREDICTED_ERROR), INFINITY, 1);
    assert_int_equal(total(error), 3); /* who cannot tell is counted apart */
    assert_int_equal(atomic_load(&answers->unpredicted), 1);
    assert_int_equal(atomic_load(&answers->limited), 2);
    uint64_t sum = atomic_load(&error->sum_ppb); /* infinity is in no sum */
    assert_true(sum > 18990000 && sum < 19010000); /* 0.004 + 0.015 */
    expect(histogram(answers, 0, ANSWERS_EXACT_MASS), answers_bounds(ANSWERS_EXACT_MASS), 0.3, 1);
    expect(histogram(answers, 0, ANSWERS_BYTES_SHARE), answers_bounds(ANSWERS_BYTES_SHARE), 0.15,
           1);
    assert_int_equal(atomic_load(&answers->level_bytes[INDEX_HI]), 50);
    errors[2] = errors[3] = 0.001F;
    answers_record(answers, 0, &quality, 4);
    sum = atomic_load(&error->sum_ppb);
    assert_true(sum > 39990000 && sum < 40010000); /* and 0.004 + 0.015 + 0.001 + 0.001 */
    answers_free(answers);
}

static void *record_many(void *arg)
{
    const struct quality exact = { .method = "full", .bytes_exact = 1, .bytes_read = 1 };
    for (uint32_t i = 0; i < 1000; i++) answers_record(arg, i % LIMIT_LAYERS, &exact, 2);
    return NULL;
}

static void test_any_thread(void **state)
{
    (void)state;
    struct answers *answers = NULL;
    assert_int_equal(answers_new(&answers, NULL), 0);
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, record_many, answers), 0);
    for (size_t i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    uint64_t counted = 0;
    for (uint32_t layer = 0; layer < LIMIT_LAYERS; layer++)
        counted += total(histogram(answers, layer, ANSWERS_EXACT_MASS));
    assert_int_equal(counted, 8000);
    assert_int_equal(atomic_load(&answers->layer_limit), 1000);
    answers_free(answers);
    answers_free(NULL);
}

static void test_bounds_ascend(void **state)
{
    (void)state;
    for (enum answers_kind kind = 0; kind < ANSWERS_KINDS; kind++) {
        const double *bounds = answers_bounds(kind);
        for (size_t i = 1; i < ANSWERS_BOUNDS; i++) assert_true(bounds[i] > bounds[i - 1]);
        assert_non_null(answers_kind_name(kind));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_answers_need_no_arrays),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_any_thread),
        cmocka_unit_test(test_bounds_ascend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
