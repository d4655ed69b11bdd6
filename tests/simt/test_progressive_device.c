/* SPDX-License-Identifier: Apache-2.0 */
/* test_progressive_device.c — progressive attention with planes on a fake device, against float64
 * over all rows and against the CPU's own exact attention.
 *
 * A past has three segments with planes and an open tail; KV heads have 1 to 11 query rows, so that
 * one chunk and two are there. Payloads have checksums, which here are any numbers that differ:
 * that is what they are known by.
 */
#include "tests/unit/coded.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "attention/cuda/accelerator.h"
#include "attention/cuda/accelerator_state.h"
#include "attention/rope.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/progressive_device.h"
#include "tests/simt/emulator.h"
#include "tests/simt/fake_device.h"

enum { D = 64, G = 2, SEGMENTS = 3, TAIL = 70, TOKENS = SEGMENTS * PLANES_TOKENS + TAIL };
enum { ROWS_MAX = 32 };

struct fixture {
    struct coded coded;
    struct accelerator *accelerator;
    struct progressive_args args;
    struct attend_device device;
    struct arena arena;
    size_t rows;
    float o[ROWS_MAX * D], lse[ROWS_MAX];
    float predicted[ROWS_MAX], mass[ROWS_MAX * INDEX_LEVELS];
    bool limited[ROWS_MAX];
    struct index_quality quality;
    struct index_answer answer;
};

static uint64_t random_state;

static struct accelerator_config fake_config(uint64_t planes_bytes, uint32_t window_tokens)
{
    return (struct accelerator_config){ .ordinal = -1, .travel_bytes = 4 << 20,
                                        .planes_bytes = planes_bytes, .sink_tokens = 4,
                                        .window_tokens = window_tokens,
                                        .window_bytes = 16 << 20 };
}

static struct accelerator *open_config(const struct accelerator_config *config)
{
    struct accelerator *accelerator = NULL;
    struct error err = { 0 };
    fake_device_lose(0);
    fake_device_limit(UINT64_C(1) << 30);
    if (accelerator_open(&fake_device_table, config, &accelerator, &err) < 0)
        fail_msg("%s", err.text);
    return accelerator;
}

static struct accelerator *open_fake(uint64_t planes_bytes)
{
    struct accelerator_config config = fake_config(planes_bytes, 64);
    return open_config(&config);
}

static struct accelerator *open_fake_window(uint32_t window_tokens)
{
    struct accelerator_config config = fake_config(UINT64_C(64) << 20, window_tokens);
    return open_config(&config);
}

/* Payloads are known by checksums: these are from the next seed. */
static void put_checks(struct coded *coded, uint64_t *random)
{
    struct planes_layout layout;
    planes_layout_init(D, &layout);
    for (size_t i = 0; i < coded->past.kv_heads * coded->past.view_count; i++) {
        if (coded->table[i] == NULL) continue;
        uint64_t *checks = (uint64_t *)(void *)(coded->payloads[2 * i] + layout.checks);
        for (size_t c = 0; c < (size_t)3 * PLANES_CLUSTERS; c++) checks[c] = random_u64(random);
    }
}

/* Rows are asked for by the views that were given; `args` is whose. */
static int admit_given(void *arg, const struct view *view, size_t row, size_t count,
                       unsigned parts)
{
    const struct attend_args *given = arg;
    size_t at = (size_t)(view - given->views);
    assert_true(view >= given->views && at < given->kv_heads * given->view_count);
    assert_true(row + count <= view->tokens && parts == (VIEW_K | VIEW_V));
    return 0;
}

static void make(struct fixture *fixture, size_t group, size_t queries, const struct rope *rope)
{
    *fixture = (struct fixture){ .accelerator = open_fake(UINT64_C(64) << 20) };
    struct past *past = &fixture->coded.past;
    *past = (struct past){ .query_heads = G * group, .kv_heads = G, .head_dim = D,
                           .tokens = TOKENS, .queries = queries, .dtype = DTYPE_BF16 };
    fixture->coded.rope = rope;
    past_make(past, &random_state);
    for (size_t i = 0; i < queries; i++) past->limits[i] = TOKENS - i;
    for (size_t i = 0; i < queries * G * group * D; i++) past->q[i] *= 2.0F;
    code(&fixture->coded, 0, false);
    put_checks(&fixture->coded, &random_state);
    arena_init(&fixture->arena, (size_t)64 << 20);
    fixture->rows = queries * G * group;
    fixture->quality = (struct index_quality){ .predicted_error = fixture->predicted,
                                               .mass = fixture->mass, .limited = fixture->limited };
    fixture->answer = (struct index_answer){ { fixture->o, fixture->lse, fixture->rows, D },
                                             &fixture->quality };
    fixture->args = (struct progressive_args){ .base = { .attend = past_args(past),
                                                         .target_error = 0.02F },
                                               .planes = fixture->coded.table };
    fixture->args.base.attend.rope = rope;
    fixture->device = (struct attend_device){ .accelerator = fixture->accelerator };
    fixture->args.base.attend.device = &fixture->device;
    fixture->args.base.attend.admit = admit_given;
    fixture->args.base.attend.admit_arg = &fixture->args.base.attend;
}

static void end(struct fixture *fixture)
{
    accelerator_close(fixture->accelerator);
    arena_fini(&fixture->arena);
    coded_free(&fixture->coded);
    assert_int_equal(fake_device_counts().devices, 0);
    assert_int_equal(fake_device_counts().bytes, 0);
}

static int ask(struct fixture *fixture, float target, struct error *err)
{
    memset(fixture->o, 0xFF, sizeof fixture->o);
    memset(fixture->quality.rows, 0, sizeof fixture->quality.rows);
    memset(fixture->quality.bytes, 0, sizeof fixture->quality.bytes);
    arena_reset(&fixture->arena);
    return progressive_device_attend(&fixture->args, target, &fixture->arena, &fixture->answer,
                                     err);
}

/* Relative error of every row against exact attention on the CPU. */
static void check_close(struct fixture *fixture, double bound)
{
    struct attend_args exact = fixture->args.base.attend;
    static float o[ROWS_MAX * D], lse[ROWS_MAX];
    struct partial truth = { o, lse, fixture->rows, D };
    exact.device = NULL;
    exact.admit = NULL;
    assert_int_equal(attend(&exact, &fixture->arena, &truth, NULL), 0);
    for (size_t row = 0; row < fixture->rows; row++) {
        double off = 0.0, all = 0.0, predicted = (double)fixture->predicted[row];
        for (size_t d = row * D; d < (row + 1) * D; d++) {
            off += pow((double)fixture->o[d] - (double)o[d], 2);
            all += pow((double)o[d], 2);
        }
        double error = sqrt(off / all);
        if (!(predicted <= bound) || !(error <= PREDICTED_OFF * predicted + 1e-5))
            fail_msg("row %zu: error %g, predicted %g of %g", row, error, predicted, bound);
        assert_true(fabsf(fixture->lse[row] - lse[row]) < (float)bound + 1e-4F);
    }
}

/* And what is said of a device's answer. */
static void check_answer(struct fixture *fixture, double target)
{
    check_close(fixture, target);
    for (size_t row = 0; row < fixture->rows; row++) {
        double shares = 0.0;
        for (size_t level = 0; level < INDEX_LEVELS; level++)
            shares += (double)fixture->mass[row * INDEX_LEVELS + level];
        assert_true(fabs(shares - 1.0) < 1e-4);
        assert_false(fixture->limited[row]);
    }
    assert_true(fixture->quality.rows[INDEX_HI] > 0);
    assert_true(fixture->quality.rows[INDEX_EXACT] >= 2 * G * TAIL);
}

static uint64_t counter(struct fixture *fixture, bool sent)
{
    struct accelerator_stats stats;
    accelerator_get_stats(fixture->accelerator, &stats);
    return sent ? stats.planes_sent_bytes_total : stats.planes_steps_total;
}

static void test_answers(void **state)
{
    (void)state;
    static struct rope rope;
    static struct fixture fixture;
    assert_int_equal(rope_init(&(struct rope_config){ .theta = 1e4 }, D, &rope, NULL), 0);
    static const size_t shapes[][2] = { { 1, 1 }, { 4, 1 }, { 3, 3 }, { 11, 1 } };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        make(&fixture, shapes[i][0], shapes[i][1], i % 2 == 0 ? NULL : &rope);
        simt_set_order((enum simt_order)(i % SIMT_ORDERS), random_state);
        assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
        check_answer(&fixture, 0.05);
        uint64_t sent = counter(&fixture, true), allocs = fake_device_counts().allocs;
        uint64_t loose = fixture.quality.rows[INDEX_EXACT];
        assert_int_equal(ask(&fixture, 0.01F, NULL), 0);
        check_answer(&fixture, 0.01);
        assert_true(fixture.quality.rows[INDEX_EXACT] > loose);
        assert_int_equal(counter(&fixture, true), sent); /* planes were there */
        assert_int_equal(fake_device_counts().allocs, allocs);
        assert_int_equal(counter(&fixture, false), 2);
        end(&fixture);
    }
}

/* Planes that were coded anew are other planes; of those that are gone nobody has to be told. */
static void test_cache(void **state)
{
    (void)state;
    static struct fixture fixture;
    struct planes_layout layout;
    make(&fixture, 2, 1, NULL);
    planes_layout_init(D, &layout);
    assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
    assert_int_equal(counter(&fixture, true), G * SEGMENTS * layout.hi_bytes);
    CLEANUP(free_ptr) unsigned char *kept = payload(layout.hi_bytes);
    memcpy(kept, fixture.coded.payloads[0], layout.hi_bytes);
    uint64_t *checks = (uint64_t *)(void *)(fixture.coded.payloads[0] + layout.checks);
    checks[7]++; /* one head of one segment is coded anew: in another balance, here all the same */
    assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
    check_answer(&fixture, 0.05);
    assert_int_equal(counter(&fixture, true), (G * SEGMENTS + 1) * layout.hi_bytes);
    memcpy(fixture.coded.payloads[0], kept, layout.hi_bytes); /* as it was: still there */
    assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
    assert_int_equal(counter(&fixture, true), (G * SEGMENTS + 1) * layout.hi_bytes);
    memset(fixture.coded.payloads[0] + layout.checks, 0, (size_t)3 * PLANES_CLUSTERS * 8);
    assert_int_equal(ask(&fixture, 0.05F, NULL), ACCELERATOR_DECLINED); /* nothing to know it by */
    end(&fixture);
}

/* Room for one slab of slots, which is enough for one context of three. */
static void test_making_room(void **state)
{
    (void)state;
    static struct fixture fixture;
    struct planes_layout layout;
    struct accelerator_stats stats;
    make(&fixture, 1, 1, NULL);
    planes_layout_init(D, &layout);
    accelerator_close(fixture.accelerator);
    fixture.accelerator = open_fake(32 * layout.hi_bytes);
    fixture.device.accelerator = fixture.accelerator;
    for (int context = 0; context < 6; context++) { /* of six payloads each */
        put_checks(&fixture.coded, &random_state);
        assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
        check_answer(&fixture, 0.05);
    }
    accelerator_get_stats(fixture.accelerator, &stats);
    assert_int_equal(stats.demoted_total, 6 * 6 - 32);
    accelerator_close(fixture.accelerator);
    fixture.accelerator = open_fake(1000); /* less than a slab */
    fixture.device.accelerator = fixture.accelerator;
    assert_int_equal(ask(&fixture, 0.05F, NULL), ACCELERATOR_DECLINED);
    end(&fixture);
}

static int refuse(void *arg, const struct view *view, size_t row, size_t count, unsigned parts)
{
    (void)row;
    (void)parts;
    const uint64_t *position = arg;
    return view->position == *position && count == 1 ? MEMD_ECORRUPT : 0;
}

static void test_declined(void **state)
{
    (void)state;
    static struct fixture fixture;
    struct error err = { 0 };
    make(&fixture, 2, 2, NULL);
    uint64_t second = PLANES_TOKENS;
    fixture.args.base.attend.admit = refuse;
    fixture.args.base.attend.admit_arg = &second;
    assert_int_equal(ask(&fixture, 0.001F, &err), MEMD_ECORRUPT); /* of a row that was picked */
    fixture.args.base.attend.admit = admit_given;
    fixture.args.base.attend.admit_arg = &fixture.args.base.attend;
    fixture.args.base.max_bytes = 1 << 20;
    assert_int_equal(ask(&fixture, 0.05F, &err), ACCELERATOR_DECLINED);
    fixture.args.base.max_bytes = 0;
    fixture.coded.past.limits[1] = 100; /* sees a part of the first segment, and no other */
    assert_int_equal(ask(&fixture, 0.05F, &err), ACCELERATOR_DECLINED);
    fixture.coded.past.limits[1] = PLANES_TOKENS + 5; /* the first segment is seen whole */
    assert_int_equal(ask(&fixture, 0.05F, &err), 0);
    check_answer(&fixture, 0.05);
    assert_int_equal(fixture.quality.rows[INDEX_HI], 2 * G * PLANES_TOKENS);
    fixture.coded.past.limits[1] = TOKENS;
    accelerator_switch(fixture.accelerator, false);
    assert_int_equal(ask(&fixture, 0.05F, &err), ACCELERATOR_DECLINED);
    accelerator_switch(fixture.accelerator, true);
    assert_int_equal(ask(&fixture, 0.05F, &err), 0);
    fake_device_lose(2); /* between the two waits */
    assert_int_equal(ask(&fixture, 0.05F, &err), ACCELERATOR_DECLINED);
    assert_int_equal(ask(&fixture, 0.05F, &err), ACCELERATOR_DECLINED);
    /* And the CPU answers as ever. */
    fixture.args.exact_below = 0;
    assert_int_equal(progressive_attend(&fixture.args, &fixture.arena, &fixture.answer, &err), 0);
    end(&fixture);
}

/* progressive_attend asks the device first. */
static void test_asked_first(void **state)
{
    (void)state;
    static struct fixture fixture;
    make(&fixture, 4, 1, NULL);
    fixture.args.exact_below = 0;
    assert_int_equal(progressive_attend(&fixture.args, &fixture.arena, &fixture.answer, NULL), 0);
    check_answer(&fixture, 0.02);
    assert_int_equal(counter(&fixture, false), 1);
    end(&fixture);
}

/* ---- the window ---- */

/* Rows without planes are a step, over the window where there is one; who insists on it has all of
 * it read there. */
static void test_window(void **state)
{
    (void)state;
    static struct rope rope;
    static struct fixture fixture;
    assert_int_equal(rope_init(&(struct rope_config){ .theta = 1e4 }, D, &rope, NULL), 0);
    make(&fixture, 3, 1, &rope);
    accelerator_close(fixture.accelerator);
    fixture.accelerator = open_fake_window(PLANES_TOKENS + TAIL + 30);
    fixture.device.accelerator = fixture.accelerator;
    fixture.device.window = window_new(fixture.accelerator,
                                       &(struct window_shape){ G, D, DTYPE_BF16, &rope });
    assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
    check_answer(&fixture, 0.05);
    assert_int_equal(fixture.device.resident, TAIL);
    assert_int_equal(fixture.quality.rows[INDEX_HI], 2 * G * SEGMENTS * PLANES_TOKENS);
    fixture.device.insist = true;
    assert_int_equal(ask(&fixture, 0.05F, NULL), 0);
    check_answer(&fixture, 0.05);
    assert_int_equal(fixture.device.resident, PLANES_TOKENS + TAIL);
    assert_int_equal(fixture.quality.rows[INDEX_HI], 2 * G * (SEGMENTS - 1) * PLANES_TOKENS);
    assert_false(progressive_device_has_all(&fixture.args));
    window_free(fixture.device.window);
    accelerator_close(fixture.accelerator);
    /* A window that has everything: nothing is approximated. */
    fixture.accelerator = open_fake_window(TOKENS);
    fixture.device.accelerator = fixture.accelerator;
    fixture.device.window = window_new(fixture.accelerator,
                                       &(struct window_shape){ G, D, DTYPE_BF16, &rope });
    assert_true(progressive_device_has_all(&fixture.args));
    fixture.args.exact_below = 0;
    assert_int_equal(progressive_attend(&fixture.args, &fixture.arena, &fixture.answer, NULL), 0);
    assert_int_equal(fixture.device.resident, TOKENS);
    for (size_t row = 0; row < fixture.rows; row++) assert_true(fixture.predicted[row] == 0.0F);
    window_free(fixture.device.window);
    end(&fixture);
}

/* ---- others in between ---- */

struct between {
    struct fixture *fixture;
    struct fixture *other; /* asks while the first collects its rows; NULL: nobody does */
    unsigned admitted;
};

/* Picked rows are asked for while nobody has to wait; here somebody uses that. */
static int admit_between(void *arg, const struct view *view, size_t row, size_t count,
                         unsigned parts)
{
    struct between *between = arg;
    struct accelerator *accelerator = between->fixture->accelerator;
    (void)row;
    (void)parts;
    if (count != 1 || view->tokens != PLANES_TOKENS || between->admitted++ > 0) return 0;
    assert_int_equal(pthread_mutex_trylock(&accelerator->lock), 0);
    pthread_mutex_unlock(&accelerator->lock);
    if (between->other == NULL) return 0;
    assert_int_equal(ask(between->other, 0.02F, NULL), 0);
    check_answer(between->other, 0.02);
    return 0;
}

static void test_between(void **state)
{
    (void)state;
    static struct fixture fixture, other;
    make(&other, 4, 1, NULL);
    accelerator_close(other.accelerator);
    make(&fixture, 2, 1, NULL);
    other.accelerator = other.device.accelerator = fixture.accelerator;
    for (int i = 0; i < 2; i++) {
        struct between between = { &fixture, i == 0 ? NULL : &other, 0 };
        fixture.args.base.attend.admit = admit_between;
        fixture.args.base.attend.admit_arg = &between;
        uint64_t launches = fake_device_counts().launches;
        assert_int_equal(ask(&fixture, 0.01F, NULL), 0);
        check_answer(&fixture, 0.01);
        assert_true(between.admitted > 100);
        launches = fake_device_counts().launches - launches;
        /* The tail's step of 2; 6 and 3 more; those of the other, and 6 again. */
        assert_int_equal(launches, i == 0 ? 12 : 12 + 12 + 6);
    }
    other.accelerator = NULL;
    coded_free(&other.coded);
    arena_fini(&other.arena);
    fixture.args.base.attend.admit = NULL;
    end(&fixture);
}

/* ---- any call may fail ---- */

static bool answer_with(struct fixture *fixture, uint64_t n, bool go_on)
{
    struct accelerator_stats stats;
    struct error err = { 0 };
    struct accelerator_config config = fake_config(UINT64_C(64) << 20, 64);
    fixture->accelerator = NULL;
    fake_device_fail(n, go_on);
    int rc = accelerator_open(&fake_device_table, &config, &fixture->accelerator, &err);
    for (int i = 0; rc == 0 && i < 2; i++) {
        fixture->device.accelerator = fixture->accelerator;
        arena_reset(&fixture->arena);
        memset(fixture->o, 0xFF, sizeof fixture->o);
        memset(fixture->quality.rows, 0, sizeof fixture->quality.rows);
        rc = progressive_attend(&fixture->args, &fixture->arena, &fixture->answer, NULL);
        assert_int_equal(rc, 0);
        check_close(fixture, 0.05);
    }
    if (fixture->accelerator != NULL) {
        accelerator_get_stats(fixture->accelerator, &stats);
        assert_true((stats.failures_total > 0) == fake_device_has_failed());
        if (!fake_device_has_failed()) assert_int_equal(stats.planes_steps_total, 2);
    } else {
        assert_true(fake_device_has_failed());
    }
    accelerator_close(fixture->accelerator);
    return fake_device_recover();
}

static void test_any_call_fails(void **state)
{
    (void)state;
    static struct fixture fixture;
    uint64_t n = 1;
    make(&fixture, 1, 1, NULL);
    accelerator_close(fixture.accelerator);
    fixture.args.exact_below = 0;
    fixture.args.base.target_error = 0.05F;
    for (n = 1; answer_with(&fixture, n, false); n++) {}
    assert_true(n > 50);
    printf("%llu calls failed, each once\n", (unsigned long long)n - 1);
    for (n = 1; answer_with(&fixture, n, true); n += 4) {} /* and all behind it */
    fixture.accelerator = NULL;
    end(&fixture);
}

int main(void)
{
    random_state = random_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),  cmocka_unit_test(test_cache),
        cmocka_unit_test(test_making_room), cmocka_unit_test(test_declined),
        cmocka_unit_test(test_asked_first), cmocka_unit_test(test_window),
        cmocka_unit_test(test_between),  cmocka_unit_test(test_any_call_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
