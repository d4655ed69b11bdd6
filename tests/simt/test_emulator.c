/* SPDX-License-Identifier: Apache-2.0 */
/* test_emulator.c — the emulator runs right kernels right, and wrong ones are seen to be wrong.
 *
 * The kernels here are the smallest that can have each mistake: a sum over a block through shared
 * memory and shuffles, and the same sum with a barrier left out, a store one too far, a barrier
 * that half of the threads skip, a shuffle in half a warp.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "attention/cuda/simt.h"
#include "tests/random.h"
#include "tests/simt/emulator.h"

enum { BLOCKS = 3, THREADS = 96, WARPS = THREADS / SIMT_WARP };

enum mistake {
    RIGHT,
    NO_BARRIER,      /* between storing and reading */
    ONE_TOO_FAR,     /* a store */
    ONE_TOO_EARLY,   /* a store */
    ONE_NEVER,       /* a store that is missing */
    HALF_A_BARRIER,  /* only the first half of the threads arrives */
    HALF_A_WARP,     /* only its first lanes take part in a shuffle */
    MISTAKES,
};

struct sum_launch {
    const float *values; /* (BLOCKS * THREADS) */
    float *sums;         /* (BLOCKS) */
    enum mistake mistake;
};

/* Every thread reads its neighbour's value from shared memory; warps sum, thread 0 adds them up. */
SIMT_KERNEL(sum, struct sum_launch)
{
    SIMT_SHARED(float, shared); /* (THREADS) values, (WARPS) sums */
    unsigned me = threadIdx.x, at = me;
    float *sums = shared + THREADS;
    if (args.mistake == ONE_TOO_FAR && me == THREADS - 1) shared[THREADS + WARPS] = 0.0F;
    if (args.mistake == ONE_TOO_EARLY && me == 0) shared[-1] = 0.0F;
    if (args.mistake != ONE_NEVER || me != 0)
        shared[at] = args.values[blockIdx.x * blockDim.x + at];
    if (args.mistake != NO_BARRIER) __syncthreads();
    float value = shared[(me + 1) % THREADS];
    if (args.mistake == HALF_A_BARRIER && me < THREADS / 2) __syncthreads();
    if (args.mistake != HALF_A_WARP || me % SIMT_WARP < SIMT_WARP / 2)
        value = simt_warp_sum(value);
    if (me % SIMT_WARP == 0) sums[me / SIMT_WARP] = value;
    __syncthreads();
    if (me != 0) return;
    float total = 0.0F;
    for (unsigned i = 0; i < WARPS; i++) total += sums[i];
    args.sums[blockIdx.x] = total;
}

struct outcome {
    int rc;
    unsigned wrong; /* sums, of the three */
    char failure[160];
};

static struct outcome run(enum mistake mistake, enum simt_order order)
{
    float values[BLOCKS * THREADS], sums[BLOCKS] = { 0 };
    float truth[BLOCKS] = { 0 };
    for (unsigned i = 0; i < BLOCKS * THREADS; i++) {
        values[i] = (float)(i % 17);
        truth[i / THREADS] += values[i];
    }
    struct sum_launch args = { values, sums, mistake };
    simt_set_order(order, 7);
    struct outcome outcome = {
        .rc = SIMT_LAUNCH(sum, BLOCKS, THREADS, (THREADS + WARPS) * sizeof(float), NULL, args),
    };
    const char *failure = simt_take_failure();
    if (failure != NULL) snprintf(outcome.failure, sizeof outcome.failure, "%s", failure);
    for (unsigned i = 0; i < BLOCKS; i++) outcome.wrong += !(sums[i] == truth[i]);
    return outcome;
}

static void test_right(void **state)
{
    (void)state;
    uint64_t before = simt_launches();
    for (int order = 0; order < SIMT_ORDERS; order++) {
        struct outcome outcome = run(RIGHT, (enum simt_order)order);
        assert_string_equal(outcome.failure, "");
        assert_int_equal(outcome.rc, 0);
        assert_int_equal(outcome.wrong, 0);
    }
    assert_int_equal(simt_launches(), before + SIMT_ORDERS);
    int lines[4];
    assert_int_equal(simt_take_barriers(lines, 4), 2);
    assert_true(lines[0] < lines[1]);
}

/* The emulator itself objects, in every order. */
static void refused(enum mistake mistake, const char *words)
{
    for (int order = 0; order < SIMT_ORDERS; order++) {
        struct outcome outcome = run(mistake, (enum simt_order)order);
        assert_int_equal(outcome.rc, MEMD_EDEVICE);
        if (strstr(outcome.failure, words) == NULL) fail_msg("\"%s\"", outcome.failure);
    }
}

static void test_refused(void **state)
{
    (void)state;
    refused(ONE_TOO_FAR, "a write behind the 396 bytes");
    refused(ONE_TOO_EARLY, "a write before the 396 bytes");
    refused(HALF_A_BARRIER, "barrier");
    refused(HALF_A_WARP, "48 threads wait at a barrier and 48 in a shuffle");
}

/* The results are wrong, at least in one order. */
static void seen(enum mistake mistake)
{
    unsigned wrong = 0;
    for (int order = 0; order < SIMT_ORDERS; order++)
        wrong += run(mistake, (enum simt_order)order).wrong;
    assert_true(wrong > 0);
}

static void test_seen(void **state)
{
    (void)state;
    seen(NO_BARRIER);
    seen(ONE_NEVER);
}

/* The same by leaving out a barrier from outside, as the tests of real kernels do. */
static void test_left_out(void **state)
{
    (void)state;
    int lines[4];
    simt_take_barriers(lines, 4); /* of other tests */
    run(RIGHT, SIMT_UP);
    unsigned count = simt_take_barriers(lines, 4);
    assert_int_equal(count, 2);
    for (unsigned i = 0; i < count; i++) {
        simt_leave_out_barrier(lines[i]);
        seen(RIGHT);
    }
    simt_leave_out_barrier(0);
    assert_int_equal(run(RIGHT, SIMT_UP).wrong, 0);
}

static void test_words(void **state)
{
    (void)state;
    assert_int_equal(__dp4a(0x01FF027F, (int)0xFF02817FU, 5), 5 - 1 - 2 - 2 * 127 + 127 * 127);
    assert_true(simt_from_fp16(0x3C00) == 1.0F);
    assert_true(simt_from_fp16(0x8001) == -0x1p-24F);
    assert_true(simt_from_fp16(0xFC00) == -INFINITY);
    assert_true(isnan(simt_from_fp16(0x7E00)));
    assert_true(simt_from_bf16(0xC049) == -3.140625F);
    unsigned long long sum = 3;
    assert_int_equal(atomicAdd(&sum, 4), 3);
    assert_int_equal(sum, 7);
    float s, c;
    sincospif(0.25F, &s, &c);
    assert_true(fabsf(s - sqrtf(0.5F)) < 1e-7F && fabsf(c - sqrtf(0.5F)) < 1e-7F);
}

int main(void)
{
    random_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_seen),     cmocka_unit_test(test_left_out),
        cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
