/* SPDX-License-Identifier: Apache-2.0 */
/* test_subspace.c — samples of a rank that is known: its directions are found, all rows are at
 * right angles, and products of vectors that the sample knows nothing of are right on average. */
#include "index/subspace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/random.h"

enum { W = 96, N = 700, LEADING = 16, RANDOM = 24, ROWS = LEADING + RANDOM };

static float rows[ROWS * W], again[ROWS * W], sample[N * W], directions[LEADING * W];

static double dot(const float *a, const float *b)
{
    double sum = 0.0;
    for (size_t i = 0; i < W; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Mixtures of `rank` directions, the r-th of size 1 / (1 + r), and a little noise. */
static void draw(size_t rank, uint64_t *random)
{
    for (size_t i = 0; i < rank * W; i++) directions[i] = random_float(random);
    for (size_t t = 0; t < N; t++) {
        float *x = sample + t * W;
        for (size_t i = 0; i < W; i++) x[i] = 1e-4F * random_float(random);
        for (size_t r = 0; r < rank; r++) {
            float far = random_float(random) / (float)(1 + r);
            for (size_t i = 0; i < W; i++) x[i] += far * directions[r * W + i];
        }
    }
}

/* Leading rows beyond the sample's own directions may be zero. */
static void expect_angles(size_t rank)
{
    for (size_t a = 0; a < ROWS; a++)
        for (size_t b = 0; b <= a; b++) {
            double length = a != b ? 0.0 : a < LEADING ? 1.0 : (double)(W - LEADING) / RANDOM;
            double product = dot(rows + a * W, rows + b * W);
            if (a == b && a >= rank && a < LEADING && product == 0.0) continue;
            if (fabs(product - length) > 1e-4) fail_msg("row %zu · row %zu is %g", a, b, product);
        }
}

/* The share of the sample's squares that lies along the leading rows. */
static double held(void)
{
    double inside = 0.0, all = 0.0;
    for (size_t t = 0; t < N; t++) {
        all += dot(sample + t * W, sample + t * W);
        for (size_t r = 0; r < LEADING; r++) inside += pow(dot(sample + t * W, rows + r * W), 2);
    }
    return inside / all;
}

static void test_directions(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    draw(LEADING, &random);
    struct subspace_sample given = { sample, N, W };
    assert_int_equal(subspace_find(&given, LEADING, RANDOM, rows, NULL), 0);
    expect_angles(LEADING);
    if (held() < 0.9999) fail_msg("%g of the sample lie along its directions", held());
    assert_int_equal(subspace_find(&given, LEADING, RANDOM, again, NULL), 0);
    assert_memory_equal(rows, again, sizeof rows);
}

/* Half as many directions as are asked for: those beyond are noise or nothing. */
static void test_low_rank(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    draw(LEADING / 2, &random);
    assert_int_equal(subspace_find(&(struct subspace_sample){ sample, N, W }, LEADING, RANDOM, rows,
                                   NULL), 0);
    expect_angles(LEADING / 2);
    assert_true(held() > 0.9999);
}

/* Nothing at all: no leading rows, and the others without them. */
static void test_empty(void **state)
{
    (void)state;
    memset(sample, 0, sizeof sample);
    assert_int_equal(subspace_find(&(struct subspace_sample){ sample, N, W }, LEADING, RANDOM, rows,
                                   NULL), 0);
    for (size_t i = 0; i < LEADING * W; i++) assert_true(rows[i] == 0.0F);
    for (size_t a = LEADING; a < ROWS; a++) assert_true(dot(rows + a * W, rows + a * W) > 1.0);
}

/* Vectors that lie anywhere: the error of a product has no direction of its own, and its size is
 * that of |x| |y| / sqrt(RANDOM) or less. */
static void test_strangers(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    draw(LEADING, &random);
    assert_int_equal(subspace_find(&(struct subspace_sample){ sample, N, W }, LEADING, RANDOM, rows,
                                   NULL), 0);
    enum { PAIRS = 2000 };
    double bias = 0.0, square = 0.0;
    for (size_t pair = 0; pair < PAIRS; pair++) {
        float x[W], y[W];
        for (size_t i = 0; i < W; i++) x[i] = random_float(&random);
        for (size_t i = 0; i < W; i++) y[i] = 0.5F * x[i] + random_float(&random);
        double guess = 0.0;
        for (size_t r = 0; r < ROWS; r++) guess += dot(x, rows + r * W) * dot(y, rows + r * W);
        double error = (guess - dot(x, y)) / sqrt(dot(x, x) * dot(y, y) / RANDOM);
        bias += error / PAIRS;
        square += error * error / PAIRS;
    }
    if (fabs(bias) > 0.15 || square > 1.2 || square < 0.2)
        fail_msg("products are off by %g, their square by %g", bias, square);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_directions),
        cmocka_unit_test(test_low_rank),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_strangers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
