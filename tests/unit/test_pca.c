/* SPDX-License-Identifier: Apache-2.0 */
/* test_pca.c — eigenvalues that are known from mathematics, and for random keys the definition
 * itself: orthonormal rows, A v = λ v, in order. */
#include "index/pca.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/random.h"

/* What was solved, and the matrix it was solved for. */
struct solved {
    size_t dim;
    double *matrix, *rows, *values; /* (D, D), (D, D), (D) */
};

static struct solved solve(const double *matrix, size_t dim)
{
    struct solved solved = { .dim = dim, .matrix = malloc(dim * dim * sizeof(double)),
                             .rows = malloc(dim * dim * sizeof(double)),
                             .values = malloc(dim * sizeof(double)) };
    double *scratch = malloc(dim * (dim + 3) * sizeof *scratch);
    assert_true(solved.matrix != NULL && solved.rows != NULL && solved.values != NULL);
    assert_non_null(scratch);
    memcpy(solved.matrix, matrix, dim * dim * sizeof *matrix);
    memcpy(solved.rows, matrix, dim * dim * sizeof *matrix);
    for (size_t i = 0; i < dim; i++) /* only the upper half is looked at */
        for (size_t j = 0; j < i; j++) solved.rows[i * dim + j] = NAN;
    pca_solve(solved.rows, dim, solved.values, scratch);
    free(scratch);
    return solved;
}

static void solved_free(struct solved *solved)
{
    free(solved->matrix);
    free(solved->rows);
    free(solved->values);
}

/* The definition, to `tolerance` of the largest value. */
static void expect_definition(const struct solved *solved, double tolerance)
{
    size_t dim = solved->dim;
    double size = fabs(solved->values[0]) + fabs(solved->values[dim - 1]) + 1e-300;
    for (size_t i = 0; i < dim; i++) {
        const double *v = solved->rows + i * dim;
        if (i > 0) assert_true(solved->values[i] <= solved->values[i - 1]);
        for (size_t j = 0; j <= i; j++) {
            double product = 0.0;
            for (size_t c = 0; c < dim; c++) product += v[c] * solved->rows[j * dim + c];
            if (fabs(product - (i == j)) > 1e-12)
                fail_msg("rows %zu and %zu of %zu: product %.17g", i, j, dim, product);
        }
        for (size_t c = 0; c < dim; c++) {
            double sum = 0.0;
            for (size_t j = 0; j < dim; j++) sum += solved->matrix[c * dim + j] * v[j];
            if (fabs(sum - solved->values[i] * v[c]) > tolerance * size)
                fail_msg("vector %zu of %zu: (A v)[%zu] = %g, λ v = %g", i, dim, c, sum,
                         solved->values[i] * v[c]);
        }
    }
}

/* 2 on the diagonal, -1 beside it: 2 - 2 cos(kπ / (D + 1)). */
static void test_known_values(void **state)
{
    (void)state;
    static const size_t dims[] = { 1, 2, 3, 8, 40 };
    for (size_t turn = 0; turn < 5; turn++) {
        size_t dim = dims[turn];
        double *matrix = calloc(dim * dim, sizeof *matrix);
        assert_non_null(matrix);
        for (size_t i = 0; i < dim; i++) {
            matrix[i * dim + i] = 2.0;
            if (i > 0) matrix[i * dim + i - 1] = matrix[(i - 1) * dim + i] = -1.0;
        }
        struct solved solved = solve(matrix, dim);
        expect_definition(&solved, 1e-13);
        for (size_t i = 0; i < dim; i++) {
            double angle = (double)(dim - i) * acos(-1.0) / (double)(dim + 1);
            assert_true(fabs(solved.values[i] - (2.0 - 2.0 * cos(angle))) < 1e-13);
        }
        solved_free(&solved);
        free(matrix);
    }
}

/* Diagonal, all equal, of rank one, nothing at all, huge and tiny. */
static void test_odd_matrices(void **state)
{
    (void)state;
    enum { DIM = 6 };
    double matrix[DIM * DIM] = { 0 };
    struct solved solved = solve(matrix, DIM);
    expect_definition(&solved, 1e-13);
    solved_free(&solved);
    for (size_t i = 0; i < DIM; i++) matrix[i * DIM + i] = (double)(i * 2 % 7);
    solved = solve(matrix, DIM);
    expect_definition(&solved, 1e-13);
    static const double wanted[] = { 6, 4, 3, 2, 1, 0 }; /* 0 2 4 6 1 3 */
    for (size_t i = 0; i < DIM; i++) assert_true(fabs(solved.values[i] - wanted[i]) < 1e-13);
    solved_free(&solved);
    static const double scales[] = { 1.0, 1e70, 1e-70 };
    for (size_t turn = 0; turn < 3; turn++) {
        for (size_t i = 0; i < DIM; i++)
            for (size_t j = 0; j < DIM; j++)
                matrix[i * DIM + j] = scales[turn] * (double)(i + 1) * (double)(j + 1);
        solved = solve(matrix, DIM); /* x xᵀ with |x|² = 91 */
        expect_definition(&solved, 1e-13);
        assert_true(fabs(solved.values[0] / scales[turn] - 91.0) < 1e-11);
        assert_true(fabs(solved.values[1] / scales[turn]) < 1e-11);
        solved_free(&solved);
    }
}

/* Moments of random keys, some directions much stronger than others. */
static void test_keys(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t dims[] = { 8, 64, 128, 40 };
    for (size_t turn = 0; turn < 4; turn++) {
        size_t dim = dims[turn], n = turn == 3 ? 10 : 500; /* fewer keys than dimensions */
        float *keys = malloc(n * dim * sizeof *keys);
        double *moments = calloc(dim * dim, sizeof *moments);
        assert_true(keys != NULL && moments != NULL);
        for (size_t i = 0; i < n * dim; i++)
            keys[i] = random_float(&random) * powf(0.9F, (float)(i % dim)) + 0.3F;
        pca_add(keys, n / 2, dim, moments);
        pca_add(keys + n / 2 * dim, n - n / 2, dim, moments);
        for (size_t i = 0; i < dim; i++)
            for (size_t j = i; j < dim; j++) {
                double sum = 0.0;
                for (size_t t = 0; t < n; t++)
                    sum += (double)keys[t * dim + i] * (double)keys[t * dim + j];
                assert_true(fabs(sum - moments[i * dim + j]) < 1e-9);
                moments[j * dim + i] = moments[i * dim + j];
            }
        struct solved solved = solve(moments, dim);
        expect_definition(&solved, 1e-12);
        struct solved again = solve(moments, dim);
        assert_memory_equal(solved.rows, again.rows, dim * dim * sizeof(double));
        if (turn == 3) assert_true(fabs(solved.values[10]) < 1e-10 * solved.values[0]);
        solved_free(&solved);
        solved_free(&again);
        free(keys);
        free(moments);
    }
}

static void test_count(void **state)
{
    (void)state;
    static const double values[] = { 5, 3, 1, 1 };
    assert_int_equal(pca_count(values, 4, 0.4), 1);
    assert_int_equal(pca_count(values, 4, 0.5), 1);
    assert_int_equal(pca_count(values, 4, 0.51), 2);
    assert_int_equal(pca_count(values, 4, 0.85), 3);
    assert_int_equal(pca_count(values, 4, 1.0), 4);
    static const double none[] = { 0, 0 };
    assert_int_equal(pca_count(none, 2, 0.9), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_odd_matrices),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
