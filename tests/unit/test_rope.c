/* SPDX-License-Identifier: Apache-2.0 */
/* test_rope.c — rotations: lengths, relative positions, untouched dimensions, refused
 * parameters. The frequencies of every scaling are compared with NumPy in tests/golden/attention.
 */
#include "attention/rope.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "tests/random.h"

enum { D = 16 };

static struct rope make(enum rope_pairing pairing, uint32_t rotary_dims)
{
    struct rope rope;
    struct rope_config config = { .theta = 10000.0, .pairing = (uint32_t)pairing,
                                  .rotary_dims = rotary_dims };
    assert_int_equal(rope_init(&config, D, &rope, NULL), 0);
    return rope;
}

static void rotate(const struct rope *rope, uint64_t position, float *x)
{
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    rope_angles(rope, position, cos, sin);
    rope_apply(rope, cos, sin, x, 1);
}

static double dot(const float *a, const float *b)
{
    double sum = 0.0;
    for (size_t d = 0; d < D; d++) sum += (double)a[d] * (double)b[d];
    return sum;
}

static void assert_close(double value, double truth, double tolerance)
{
    if (!(fabs(value - truth) <= tolerance))
        fail_msg("%.9g differs from %.9g by more than %g", value, truth, tolerance);
}

static void test_pairs(void **state)
{
    (void)state;
    struct rope half = make(ROPE_PAIR_HALF, 0), woven = make(ROPE_PAIR_INTERLEAVED, 0);
    float x[D] = { 1.0F }, y[D] = { 1.0F };
    rotate(&half, 1, x); /* pair 0 turns by 1 rad */
    assert_close((double)x[0], cos(1.0), 1e-7);
    assert_close((double)x[D / 2], sin(1.0), 1e-7);
    rotate(&woven, 1, y);
    assert_close((double)y[0], cos(1.0), 1e-7);
    assert_close((double)y[1], sin(1.0), 1e-7);
}

static void test_partial_rotation(void **state)
{
    (void)state;
    struct rope rope = make(ROPE_PAIR_HALF, 4);
    float x[D];
    for (size_t d = 0; d < D; d++) x[d] = 1.0F;
    rotate(&rope, 3, x);
    assert_close((double)x[0], cos(3.0) - sin(3.0), 1e-6);
    assert_close((double)x[2], cos(3.0) + sin(3.0), 1e-6);
    for (size_t d = 4; d < D; d++) assert_close((double)x[d], 1.0, 0.0);
}

/* q at p and k at t meet as q at p + s and k at t + s do, also a million tokens later. */
static void test_only_distance_counts(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (int pairing = 0; pairing < 2; pairing++) {
        struct rope rope = make((enum rope_pairing)pairing, 0);
        float q[D], k[D], q_later[D], k_later[D];
        for (size_t d = 0; d < D; d++) {
            q[d] = q_later[d] = random_float(&random);
            k[d] = k_later[d] = random_float(&random);
        }
        double length = dot(q, q);
        rotate(&rope, 50, q);
        rotate(&rope, 13, k);
        rotate(&rope, 1000050, q_later);
        rotate(&rope, 1000013, k_later);
        assert_close(dot(q_later, k_later), dot(q, k), 1e-5);
        assert_close(dot(q, q), length, 1e-5);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    const struct rope_config llama3 = { .theta = 5e5, .scaling = ROPE_SCALE_LLAMA3, .factor = 8.0,
                                        .low_freq_factor = 1.0, .high_freq_factor = 4.0,
                                        .original_context = 8192 };
    const struct rope_config yarn = { .theta = 1e4, .scaling = ROPE_SCALE_YARN, .factor = 4.0,
                                      .original_context = 4096 };
    struct rope_config bad[16];
    size_t count = 0;
    bad[count++] = (struct rope_config){ .theta = 0.0 };
    bad[count++] = (struct rope_config){ .theta = (double)NAN };
    bad[count++] = (struct rope_config){ .theta = (double)INFINITY };
    bad[count++] = (struct rope_config){ .theta = 1e4, .pairing = 2 };
    bad[count++] = (struct rope_config){ .theta = 1e4, .scaling = 4 };
    bad[count++] = (struct rope_config){ .theta = 1e4, .rotary_dims = 3 };
    bad[count++] = (struct rope_config){ .theta = 1e4, .rotary_dims = D + 2 };
    bad[count++] = (struct rope_config){ .theta = 1e4, .scaling = ROPE_SCALE_LINEAR };
    for (; count < 16; count++) bad[count] = count < 12 ? llama3 : yarn;
    bad[8].factor = (double)NAN;
    bad[9].original_context = 0;
    bad[10].low_freq_factor = 0.0;
    bad[11].high_freq_factor = 1.0;
    bad[12].original_context = UINT64_MAX;
    bad[13].beta_fast = 0.5;
    bad[14].attention_factor = -1.0;
    bad[15].factor = 0.5;
    for (size_t i = 0; i < count; i++) {
        struct rope rope = { .head_dim = 12345 };
        struct error err = { 0 };
        int rc = rope_init(&bad[i], D, &rope, &err);
        if (rc != MEMD_EINVAL) fail_msg("config %zu gave %d", i, rc);
        assert_int_equal(err.code, MEMD_EINVAL);
        assert_true(strlen(err.text) > 0);
        assert_int_equal(rope.head_dim, 12345); /* untouched */
    }
    struct rope rope;
    assert_int_equal(rope_init(&llama3, D, &rope, NULL), 0);
    assert_int_equal(rope_init(&yarn, D, &rope, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_partial_rotation),
        cmocka_unit_test(test_only_distance_counts),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
