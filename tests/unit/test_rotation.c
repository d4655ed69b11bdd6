/* SPDX-License-Identifier: Apache-2.0 */
/* test_rotation.c — against the dense matrix in double, made from the definition in rotation.h. */
#include "index/rotation.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/random.h"

enum { DIM_MAX = 1024, ROWS = 3 };

static const size_t dims[] = { 8, 16, 24, 40, 64, 80, 96, 128, 192, 200, 256, 512, 576, 1024 };

static double sign_of(int pass, size_t dimension)
{
    uint64_t state = ((uint64_t)pass << 32) + dimension; /* random_u64 is splitmix64 */
    return random_u64(&state) >> 63 != 0 ? -1.0 : 1.0;
}

/* y = H S x / √size; H has a minus where row and column share an odd number of bits. */
static void dense_pass(int pass, size_t size, double *x)
{
    double y[DIM_MAX];
    for (size_t row = 0; row < size; row++) {
        y[row] = 0.0;
        for (size_t column = 0; column < size; column++) {
            double sign = __builtin_popcountll(row & column) % 2 == 1 ? -1.0 : 1.0;
            y[row] += sign * sign_of(pass, column) * x[column];
        }
    }
    for (size_t row = 0; row < size; row++) x[row] = y[row] / sqrt((double)size);
}

static void dense(size_t head_dim, double *x)
{
    size_t size = 1;
    while (2 * size <= head_dim) size *= 2;
    dense_pass(0, size, x);
    if (size < head_dim) dense_pass(1, size, x + head_dim - size);
}

static double norm(const float *x, size_t head_dim)
{
    double sum = 0.0;
    for (size_t d = 0; d < head_dim; d++) sum += (double)x[d] * (double)x[d];
    return sqrt(sum);
}

static void test_dense(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        float rows[ROWS * DIM_MAX], kept[ROWS * DIM_MAX];
        for (size_t at = 0; at < ROWS * dims[i]; at++) kept[at] = rows[at] = random_float(&random);
        rotation_apply(rows, ROWS, dims[i]);
        for (size_t row = 0; row < ROWS; row++) {
            double truth[DIM_MAX];
            for (size_t d = 0; d < dims[i]; d++) truth[d] = (double)kept[row * dims[i] + d];
            dense(dims[i], truth);
            for (size_t d = 0; d < dims[i]; d++)
                if (!(fabs((double)rows[row * dims[i] + d] - truth[d]) < 4e-6))
                    fail_msg("D %zu row %zu dimension %zu: %.8f, not %.8f", dims[i], row, d,
                             (double)rows[row * dims[i] + d], truth[d]);
            double before = norm(kept + row * dims[i], dims[i]);
            double after = norm(rows + row * dims[i], dims[i]);
            assert_true(fabs(after - before) < 1e-5 * before);
        }
        rotation_invert(rows, ROWS, dims[i]);
        for (size_t at = 0; at < ROWS * dims[i]; at++)
            if (!(fabsf(rows[at] - kept[at]) < 4e-6F))
                fail_msg("D %zu element %zu does not come back: %.8f, not %.8f", dims[i], at,
                         (double)rows[at], (double)kept[at]);
    }
}

/* One channel alone reaches every dimension (of its pass), equally for powers of two. */
static void test_outlier_spreads(void **state)
{
    (void)state;
    float x[128] = { 0 };
    x[77] = 1e4F;
    rotation_apply(x, 1, 128);
    for (size_t d = 0; d < 128; d++)
        assert_true(fabs(fabs((double)x[d]) - 1e4 / sqrt(128.0)) < 1e-2);
    float y[96] = { 0 };
    y[3] = 1.0F;
    rotation_apply(y, 1, 96);
    for (size_t d = 0; d < 96; d++) assert_true(fabsf(y[d]) <= 0.2F);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_outlier_spreads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
