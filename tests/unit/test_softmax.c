/* SPDX-License-Identifier: Apache-2.0 */
/* test_softmax.c — the algebra of partials: identity, order, any partition, no NaN from two empty
 * sets. */
#include "attention/softmax.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/random.h"

enum { D = 8, TOKENS = 100, ROUNDS = 200 };

struct one {
    float o[D];
    float lse;
};

static struct partial as_partial(struct one *one)
{
    return (struct partial){ .o = one->o, .lse = &one->lse, .rows = 1, .head_dim = D };
}

static void merge(struct one *into, struct one part)
{
    struct partial a = as_partial(into), b = as_partial(&part);
    partial_merge(&a, &b);
}

static void assert_close(double value, double truth, double tolerance)
{
    if (!(value == truth || fabs(value - truth) <= tolerance))
        fail_msg("%.9g differs from %.9g by more than %g", value, truth, tolerance);
}

static void assert_same(const struct one *a, const struct one *b, double tolerance)
{
    assert_close((double)a->lse, (double)b->lse, tolerance);
    for (size_t d = 0; d < D; d++) assert_close((double)a->o[d], (double)b->o[d], tolerance);
}

/* The partial over one token: o = v, lse = score. */
static struct one token(float score, float value)
{
    struct one one = { .lse = score };
    for (size_t d = 0; d < D; d++) one.o[d] = value + (float)d;
    return one;
}

static struct one empty(void)
{
    struct one one;
    struct partial partial = as_partial(&one);
    memset(&one, 0xFF, sizeof one);
    partial_clear(&partial);
    return one;
}

static void test_empty(void **state)
{
    (void)state;
    struct one a = empty(), zero = { .lse = -INFINITY };
    assert_same(&a, &zero, 0.0);
    merge(&a, empty());
    assert_same(&a, &zero, 0.0); /* not NaN */
    struct one b = token(3.0F, 2.0F), same = b;
    merge(&b, empty());
    assert_same(&b, &same, 0.0);
    merge(&a, b);
    assert_same(&a, &same, 0.0);
}

static void test_two_tokens(void **state)
{
    (void)state;
    struct one a = token(0.0F, 1.0F);
    merge(&a, token((float)log(3.0), 5.0F)); /* weights 1/4 and 3/4 */
    assert_close((double)a.lse, log(4.0), 1e-6);
    for (size_t d = 0; d < D; d++) assert_close((double)a.o[d], 4.0 + (double)d, 2e-6);
}

static void test_extremes(void **state)
{
    (void)state;
    struct one a = token(FLT_MAX, 1.0F), b = token(-FLT_MAX, 9.0F);
    merge(&a, b);
    assert_close((double)a.lse, (double)FLT_MAX, 0.0);
    assert_close((double)a.o[0], 1.0, 0.0);
    a = token(FLT_MAX, 1.0F);
    merge(&b, a);
    assert_close((double)b.o[0], 1.0, 0.0);
    merge(&a, token(FLT_MAX, 3.0F));
    assert_close((double)a.o[0], 2.0, 1e-6);
}

/* softmax over all tokens in double */
static struct one truth(const float *scores, const float *values)
{
    double max = -INFINITY, sum = 0.0, mean = 0.0;
    for (size_t t = 0; t < TOKENS; t++) max = fmax(max, (double)scores[t]);
    for (size_t t = 0; t < TOKENS; t++) {
        double weight = exp((double)scores[t] - max);
        sum += weight;
        mean += weight * (double)values[t];
    }
    return token((float)(max + log(sum)), (float)(mean / sum));
}

/* Deal the tokens to a random number of sets, merge each set, then the sets in random order. */
static void test_any_partition(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (int round = 0; round < ROUNDS; round++) {
        float scores[TOKENS], values[TOKENS];
        struct one sets[TOKENS], all = empty();
        size_t set_count = (size_t)random_below(&random, TOKENS) + 1;
        for (size_t i = 0; i < set_count; i++) sets[i] = empty();
        for (size_t t = 0; t < TOKENS; t++) {
            scores[t] = 20.0F * random_float(&random);
            values[t] = random_float(&random);
            merge(&sets[random_below(&random, set_count)], token(scores[t], values[t]));
        }
        for (size_t left = set_count; left > 0; left--) {
            size_t pick = (size_t)random_below(&random, left);
            merge(&all, sets[pick]);
            sets[pick] = sets[left - 1];
        }
        struct one expected = truth(scores, values);
        assert_same(&all, &expected, 1e-5);
    }
}

static void test_finish(void **state)
{
    (void)state;
    float o[2 * D], lse[2];
    float max[2] = { 5.0F, -INFINITY }, sum[2] = { 2.0F, 0.0F };
    for (size_t i = 0; i < 2 * D; i++) o[i] = i < D ? 6.0F : 0.0F;
    struct partial partial = { .o = o, .lse = lse, .rows = 2, .head_dim = D };
    partial_finish(max, sum, &partial);
    assert_close((double)o[0], 3.0, 0.0);
    assert_close((double)lse[0], 5.0 + log(2.0), 1e-6);
    assert_close((double)o[D], 0.0, 0.0);
    assert_true(lse[1] == -INFINITY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),         cmocka_unit_test(test_two_tokens),
        cmocka_unit_test(test_extremes),      cmocka_unit_test(test_any_partition),
        cmocka_unit_test(test_finish),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
