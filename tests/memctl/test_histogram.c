/* SPDX-License-Identifier: Apache-2.0 */
/* test_histogram.c — quantiles by hand: empty, one bucket, borders, the open last bucket,
 * differences, a restart in between. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "clients/memctl/histogram.h"

static const double bounds[] = { 1.0, 2.0, 4.0 };

static struct memd_histogram make(const uint64_t counts[4])
{
    return (struct memd_histogram){ .name = "h", .bounds = bounds, .counts = counts,
                                    .bound_count = 3 };
}

static void expect(double value, double wanted)
{
    if (!(fabs(value - wanted) <= 1e-12)) fail_msg("%.15g, wanted %.15g", value, wanted);
}

static void test_quantile(void **state)
{
    (void)state;
    const struct memd_histogram h = make((const uint64_t[]){ 10, 0, 10, 0 });
    assert_int_equal(histogram_count(&h), 20);
    expect(histogram_quantile(&h, NULL, 0.25), 0.5);
    expect(histogram_quantile(&h, NULL, 0.5), 1.0);
    expect(histogram_quantile(&h, NULL, 0.75), 3.0);
    expect(histogram_quantile(&h, NULL, 1.0), 4.0);
    expect(histogram_quantile(&h, NULL, 0.0), 0.0);
    const struct memd_histogram open = make((const uint64_t[]){ 1, 0, 0, 9 });
    expect(histogram_quantile(&open, NULL, 0.99), 4.0);
}

static void test_empty(void **state)
{
    (void)state;
    const struct memd_histogram h = make((const uint64_t[]){ 0, 0, 0, 0 });
    assert_true(isnan(histogram_quantile(&h, NULL, 0.5)));
    const struct memd_histogram full = make((const uint64_t[]){ 3, 1, 0, 0 });
    assert_true(isnan(histogram_quantile(&full, &full, 0.5)));
}

static void test_difference(void **state)
{
    (void)state;
    const struct memd_histogram before = make((const uint64_t[]){ 100, 0, 0, 0 });
    const struct memd_histogram now = make((const uint64_t[]){ 100, 4, 0, 0 });
    expect(histogram_quantile(&now, &before, 0.5), 1.5);
    /* Counts that fell: the daemon was restarted, all of them are new. */
    const struct memd_histogram restarted = make((const uint64_t[]){ 2, 8, 0, 0 });
    expect(histogram_quantile(&restarted, &before, 0.6), 1.5);
}

static void test_find(void **state)
{
    (void)state;
    const struct memd_histogram list[] = { make((const uint64_t[]){ 0, 0, 0, 0 }) };
    const struct memd_stats stats = { .histograms = list, .histogram_count = 1 };
    assert_ptr_equal(histogram_find(&stats, "h"), list);
    assert_null(histogram_find(&stats, "H"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantile),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_difference),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
