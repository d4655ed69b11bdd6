/* SPDX-License-Identifier: Apache-2.0 */
/* test_params.c — what may be uploaded, and which tensor a layer gets. */
#include "index/params.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/error.h"

static const struct param_spec specs[] = {
    { "basis", "GDD", "directions" },
    { "encode", "Wh", "projection" },
};
static const struct param_table table = { specs, 2 };
static const struct param_sizes sizes = { .query_heads = 4, .kv_heads = 2, .head_dim = 8,
                                          .state_width = 16 };

static int check(const char *name, struct tensor value, struct error *err)
{
    return params_check(&table, &sizes, name, &value, err);
}

static void test_shapes(void **state)
{
    (void)state;
    float data[16 * 40] = { 0 };
    struct error err = { 0 };
    struct tensor basis = { data, DTYPE_FP32, 3, { 2, 8, 8 } };
    assert_int_equal(check("basis", basis, &err), 0);
    basis.shape[1] = 4;
    assert_int_equal(check("basis", basis, &err), MEMD_ESHAPE);
    assert_string_equal(err.text, "basis has the shape ( 2 4 8 ), it must be ( 2 8 8 )");
    basis.dims = 2;
    assert_int_equal(check("basis", basis, &err), MEMD_ESHAPE);
    struct tensor encode = { data, DTYPE_FP32, 2, { 16, 40 } };
    assert_int_equal(check("encode", encode, &err), 0); /* h is any */
    encode.shape[1] = 0;
    assert_int_equal(check("encode", encode, &err), MEMD_ESHAPE);
    assert_string_equal(err.text, "encode has the shape ( 16 0 ), it must be ( 16 h )");
    assert_int_equal(check("gate", encode, &err), MEMD_EINVAL);
    assert_int_equal(params_check(NULL, &sizes, "gate", &encode, &err), MEMD_EINVAL);
}

static void test_finite(void **state)
{
    (void)state;
    float data[128] = { 0 };
    struct error err = { 0 };
    struct tensor basis = { data, DTYPE_FP32, 3, { 2, 8, 8 } };
    data[77] = INFINITY;
    assert_int_equal(check("basis", basis, &err), MEMD_ENONFINITE);
    assert_string_equal(err.text, "basis: number 77 is NaN or infinite, 1 such numbers");
}

static void test_find(void **state)
{
    (void)state;
    static const struct param items[] = {
        { .name = "basis", .layer = 3, .value.dims = 3 },
        { .name = "basis", .layer = PARAM_ALL_LAYERS, .value.dims = 3 },
        { .name = "encode", .layer = 0, .value.dims = 2 },
    };
    struct params params = { items, 3, 1 };
    assert_ptr_equal(params_find(&params, "basis", 3), &items[0].value);
    assert_ptr_equal(params_find(&params, "basis", 4), &items[1].value);
    assert_ptr_equal(params_find(&params, "encode", 0), &items[2].value);
    assert_null(params_find(&params, "encode", 1));
    assert_null(params_find(NULL, "basis", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_finite),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
