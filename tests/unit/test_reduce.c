/* SPDX-License-Identifier: Apache-2.0 */
/* test_reduce.c — averages with zeros at both ends, and the rules over a group, by hand. */
#include "index/reduce.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void expect(const float *got, const float *wanted, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fabsf(got[i] - wanted[i]) > 1e-4F)
            fail_msg("%zu: %g, expected %g", i, (double)got[i], (double)wanted[i]);
}

/* The pooling of SnapKV: worked out by hand, the zeros of the padding counted. */
static void test_pool(void **state)
{
    (void)state;
    float scores[] = { .4F, 0, 0, .1F, .1F, .1F, 0, .3F };
    static const float pooled[] = { .1333F, .1333F, .0333F, .0667F, .1F, .0667F, .1333F, .1F };
    reduce_pool(scores, 8, 3);
    expect(scores, pooled, 8);
    float few[] = { 5, 10 };
    static const float wide[] = { 3, 3 };
    reduce_pool(few, 2, 5);
    expect(few, wide, 2);
    float same[] = { 1, 2, 3 };
    static const float unchanged[] = { 1, 2, 3 };
    reduce_pool(same, 3, 1);
    expect(same, unchanged, 3);
    float five[] = { 1, 2, 4, 8, 16, 32 };
    static const float averages[] = { 1.4F, 3, 6.2F, 12.4F, 12, 11.2F };
    reduce_pool(five, 6, 5);
    expect(five, averages, 6);
    reduce_pool(five, 0, 5);
}

static void test_group(void **state)
{
    (void)state;
    static const float scores[] = { 1, 2, 3, 5, -2, 3, 0, 6, 3 }; /* (3, 3) */
    static const float mean[] = { 2, 2, 3 }, most[] = { 5, 6, 3 }, sum[] = { 6, 6, 9 };
    float got[3];
    reduce_group(REDUCE_MEAN, scores, 3, 3, got);
    expect(got, mean, 3);
    reduce_group(REDUCE_MAX, scores, 3, 3, got);
    expect(got, most, 3);
    reduce_group(REDUCE_SUM, scores, 3, 3, got);
    expect(got, sum, 3);
    reduce_group(REDUCE_NONE, scores, 1, 3, got);
    expect(got, scores, 3);
    float own[] = { 1, 2, 3, 5, -2, 3, 0, 6, 3 };
    reduce_group(REDUCE_MEAN, own, 3, 3, own);
    expect(own, mean, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
