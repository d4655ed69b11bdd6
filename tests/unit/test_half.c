/* SPDX-License-Identifier: Apache-2.0 */
/* test_half.c — all 65,536 patterns of both types, against the definition by sign, exponent and
 * fraction.
 *
 * The definition is evaluated with ldexp in double, which shares nothing with the code under test.
 * Rounding is tested where it is decided: at, just below and just above the midpoint of each two
 * neighbours.
 */
#include "base/half.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/tensor.h"

struct type {
    int exponent_bits, fraction_bits;
    float (*from)(uint16_t bits);
    uint16_t (*to)(float value);
};

static const struct type fp16 = { 5, 10, half_from_fp16, half_to_fp16 };
static const struct type bf16 = { 8, 7, half_from_bf16, half_to_bf16 };

/* IEEE 754: what the pattern means. NaN for all NaNs. */
static double define(const struct type *type, unsigned bits)
{
    int bias = (1 << (type->exponent_bits - 1)) - 1;
    unsigned fraction = bits & ((1u << type->fraction_bits) - 1);
    int exponent = (int)(bits >> type->fraction_bits) & ((1 << type->exponent_bits) - 1);
    double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == (1 << type->exponent_bits) - 1)
        return fraction == 0 ? sign * HUGE_VAL : (double)NAN;
    if (exponent == 0) return sign * ldexp(fraction, 1 - bias - type->fraction_bits);
    fraction += 1u << type->fraction_bits;
    return sign * ldexp(fraction, exponent - bias - type->fraction_bits);
}

static void check_patterns(const struct type *type)
{
    for (unsigned bits = 0; bits < 65536; bits++) {
        double want = define(type, bits);
        float got = type->from((uint16_t)bits);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_true(isnan(type->from(type->to(got)))); /* a NaN stays one */
        } else {
            if ((double)got != want || !!signbit(got) != !!signbit(want))
                fail_msg("pattern %04x is %g, not %g", bits, want, (double)got);
            assert_int_equal(type->to(got), bits);
        }
    }
}

static void check_rounding(const struct type *type)
{
    unsigned infinity = ((1u << type->exponent_bits) - 1) << type->fraction_bits;
    for (unsigned low = 0; low + 1 < infinity; low++) {
        float middle = (float)((define(type, low) + define(type, low + 1)) / 2);
        unsigned even = low & 1 ? low + 1 : low;
        assert_int_equal(type->to(middle), even);
        assert_int_equal(type->to(nextafterf(middle, 0.0F)), low);
        assert_int_equal(type->to(nextafterf(middle, INFINITY)), low + 1);
        assert_int_equal(type->to(-middle), even | 0x8000);
    }
    /* The largest finite value and half a step more is the first that becomes infinite. */
    double largest = define(type, infinity - 1), step = largest - define(type, infinity - 2);
    float edge = (float)(largest + step / 2);
    assert_int_equal(type->to(edge), infinity);
    assert_int_equal(type->to(nextafterf(edge, 0.0F)), infinity - 1);
    assert_int_equal(type->to(INFINITY), infinity);
    assert_int_equal(type->to(-INFINITY), infinity | 0x8000);
}

static void fp16_is_ieee(void **state)
{
    (void)state;
    check_patterns(&fp16);
    check_rounding(&fp16);
}

static void bf16_is_ieee(void **state)
{
    (void)state;
    check_patterns(&bf16);
    check_rounding(&bf16);
}

static void arrays_need_no_alignment(void **state)
{
    (void)state;
    const float values[] = { 0.0F, -1.5F, 65504.0F, 0.25F, 3.0F };
    const uint32_t types[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    enum { COUNT = sizeof values / sizeof values[0] };
    for (size_t t = 0; t < 3; t++) {
        unsigned char data[4 * COUNT + 2];
        float back[COUNT];
        memset(data, 0xEE, sizeof data);
        half_store(values, COUNT, types[t], data + 1);
        assert_int_equal(data[0], 0xEE);
        assert_int_equal(data[1 + COUNT * dtype_bytes(types[t])], 0xEE);
        half_load(data + 1, types[t], COUNT, back);
        for (size_t i = 0; i < COUNT; i++) {
            float want = values[i];
            if (types[t] == DTYPE_BF16) want = half_from_bf16(half_to_bf16(want));
            assert_true(back[i] == want);
        }
    }
}

/* A row of the largest finite number with bad elements at the given places. */
static void check_scan(uint32_t dtype, size_t count, const size_t *bad, size_t bad_count)
{
    float *values = calloc(count + 1, sizeof *values);
    void *data = malloc(count * dtype_bytes(dtype) + 1);
    assert_true(values != NULL && data != NULL);
    float largest = dtype == DTYPE_FP32 ? FLT_MAX : dtype == DTYPE_BF16 ? 0x1.FEp127F : 65504.0F;
    for (size_t i = 0; i < count; i++) values[i] = largest;
    for (size_t i = 0; i < bad_count; i++)
        values[bad[i]] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    half_store(values, count, dtype, data);
    size_t found = 999, first = half_find_nonfinite(data, dtype, count, &found);
    assert_int_equal(found, bad_count);
    assert_int_equal(first, bad_count == 0 ? count : bad[0]);
    free(values);
    free(data);
}

static void bad_elements_are_found_and_counted(void **state)
{
    (void)state;
    const uint32_t types[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    const size_t counts[] = { 0, 1, 7, 1023, 1024, 1025, 5000 };
    for (size_t t = 0; t < 3; t++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            size_t count = counts[c];
            check_scan(types[t], count, NULL, 0);
            if (count > 0) check_scan(types[t], count, &(size_t){ count - 1 }, 1);
            if (count > 0) check_scan(types[t], count, &(size_t){ 0 }, 1);
        }
        check_scan(types[t], 5000, (const size_t[]){ 1024, 1025, 2047, 4999 }, 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp16_is_ieee),
        cmocka_unit_test(bf16_is_ieee),
        cmocka_unit_test(arrays_need_no_alignment),
        cmocka_unit_test(bad_elements_are_found_and_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
