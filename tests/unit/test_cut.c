/* SPDX-License-Identifier: Apache-2.0 */
/* test_cut.c — what is above the cut, against a sort. */
#include "index/cut.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/random.h"
#include "tests/ranked.h"

static void expect(const float *scores, size_t n, size_t k)
{
    struct ranked *sorted = malloc((n + 1) * sizeof *sorted);
    bool *wanted = calloc(n + 1, sizeof *wanted);
    assert_true(sorted != NULL && wanted != NULL);
    for (size_t i = 0; i < n; i++) sorted[i] = (struct ranked){ scores[i], i };
    qsort(sorted, n, sizeof *sorted, better_first);
    for (size_t i = 0; i < n && i < k; i++) wanted[sorted[i].id] = true;
    struct cut cut = cut_largest(scores, n, k);
    for (size_t i = 0; i < n; i++)
        if (cut_takes(&cut, scores[i]) != wanted[i])
            fail_msg("n %zu, k %zu: score %zu, %.9g, is %s", n, k, i, (double)scores[i],
                     wanted[i] ? "not taken" : "taken");
    free(sorted);
    free(wanted);
}

/* Few different values, many, both signs, the ends of what a float can be. */
static void test_against_sort(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const float odd[] = { 0.0F, -0.0F, INFINITY, -INFINITY, 1e-45F, -1e-45F, 3e38F, -3e38F };
    for (size_t turn = 0; turn < 200; turn++) {
        size_t n = random_below(&random, 400) + 1;
        float *scores = malloc(n * sizeof *scores);
        assert_non_null(scores);
        for (size_t i = 0; i < n; i++) {
            if (turn % 4 == 0) scores[i] = (float)random_below(&random, 5) - 2.0F;
            else if (turn % 4 == 1) scores[i] = odd[random_below(&random, 8)];
            else scores[i] = random_float(&random) * (turn % 4 == 2 ? 1.0F : 1e-3F) + 1.0F;
        }
        for (size_t k = 0; k <= n + 1; k += n / 7 + 1) expect(scores, n, k);
        free(scores);
    }
}

static void test_by_hand(void **state)
{
    (void)state;
    static const float scores[] = { 3, 1, 3, 2, 3, -1 };
    static const bool taken[] = { true, false, true, false, false, false };
    struct cut cut = cut_largest(scores, 6, 2);
    for (size_t i = 0; i < 6; i++) assert_int_equal(cut_takes(&cut, scores[i]), taken[i]);
    cut = cut_largest(scores, 0, 3);
    assert_int_equal(cut.equals, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_against_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
