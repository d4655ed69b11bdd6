/* SPDX-License-Identifier: Apache-2.0 */
/* test_accelerator.c — steps over a fake device against attention on the CPU, through everything
 * that may happen to a window: fed, wrapped, behind, cut, demoted, off, out of memory, lost.
 *
 * A past is grown token by token on the host (windowed.h). After every change the same question
 * goes to attend() without and to the accelerator with the window; and what travelled is counted,
 * so that an answer that is right because nothing was resident does not pass for one.
 */
#include <pthread.h>

#include "tests/simt/windowed.h"

/* Bytes that travelled, and that went into windows again, since `before`. */
static void expect_moved(struct accelerator *accelerator, const struct accelerator_stats *before,
                         uint64_t travelled_tokens, uint64_t rebuilt_tokens)
{
    struct accelerator_stats now = stats_of(accelerator);
    uint64_t token = (uint64_t)G * D * 4;
    uint64_t travelled = (travelled_tokens * token + 255) / 256 * 256;
    assert_int_equal(now.travelled_bytes_total - before->travelled_bytes_total, travelled);
    assert_int_equal(now.rebuilt_bytes_total - before->rebuilt_bytes_total, rebuilt_tokens * token);
}

/* A decode loop: prompt, then token by token past the end of the ring. */
static void decode(struct rope *with)
{
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, with);
    grow(past, 30, true); /* nothing is resident yet: ignored */
    struct accelerator_stats before = stats_of(accelerator);
    assert_int_equal(check(past, 1), 0);
    expect_moved(accelerator, &before, 0, 30); /* all of it came into the window */
    uint64_t allocs = fake_device_counts().allocs;
    for (unsigned step = 0; step < 60; step++) {
        before = stats_of(accelerator);
        grow(past, 1, true);
        assert_int_equal(check(past, 1 + step % 8), 0);
        uint64_t beyond = past->tokens > SINKS + RING ? past->tokens - SINKS - RING : 0;
        expect_moved(accelerator, &before, beyond, 0);
        assert_int_equal(stats_of(accelerator).fed_bytes_total - before.fed_bytes_total, G * D * 4);
    }
    assert_int_equal(fake_device_counts().allocs, allocs); /* nothing was allocated on the way */
    past_free(past);
    accelerator_close(accelerator);
    assert_int_equal(fake_device_counts().devices, 0);
    assert_int_equal(fake_device_counts().bytes, 0);
}

static void test_decode(void **state)
{
    (void)state;
    decode(NULL);
    decode(&rope);
}

static void test_behind_and_cut(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, &rope);
    grow(past, 100, false);
    assert_int_equal(check(past, 2), 0);
    struct accelerator_stats before = stats_of(accelerator);
    grow(past, 7, false); /* the window was not told */
    assert_int_equal(check(past, 2), 0);
    expect_moved(accelerator, &before, 107 - SINKS - RING, 7);
    grow(past, 120, true); /* more than the ring holds at once: taken by the next step */
    before = stats_of(accelerator);
    assert_int_equal(check(past, 2), 0);
    expect_moved(accelerator, &before, 227 - SINKS - RING, RING);
    past->tokens = 200; /* cut inside the ring, which began at 177; other tokens come instead */
    window_cut(past->window, 200);
    grow(past, 5, true);
    before = stats_of(accelerator);
    assert_int_equal(check(past, 2), 0);
    expect_moved(accelerator, &before, 177 - SINKS, 0);
    past->tokens = 2; /* into the sinks */
    window_cut(past->window, 2);
    assert_int_equal(check(past, 2), 0);
    grow(past, 20, true);
    assert_int_equal(check(past, 3), 0);
    past_free(past);
    accelerator_close(accelerator);
}

/* Three layers, room for two windows: the least recently used one makes room, and comes back. */
static void test_demotion(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 2);
    struct past *pasts[3];
    for (int i = 0; i < 3; i++) {
        pasts[i] = past_new(accelerator, NULL);
        grow(pasts[i], 40, false);
        assert_int_equal(check(pasts[i], 1), 0);
    }
    struct accelerator_stats stats = stats_of(accelerator);
    assert_int_equal(stats.windows, 2);
    assert_int_equal(stats.window_bytes, 2 * WINDOW_BYTES);
    assert_int_equal(stats.demoted_total, 1);
    uint64_t allocs = fake_device_counts().allocs;
    assert_int_equal(check(pasts[1], 1), 0);
    assert_int_equal(stats_of(accelerator).demoted_total, 1); /* 1 and 2 were there */
    grow(pasts[0], 1, true);
    assert_int_equal(check(pasts[0], 1), 0); /* in place of 2 */
    assert_int_equal(stats_of(accelerator).demoted_total, 2);
    assert_int_equal(fake_device_counts().allocs, allocs); /* memory changed hands */
    struct accelerator_stats before = stats_of(accelerator);
    assert_int_equal(check(pasts[1], 1), 0);
    expect_moved(accelerator, &before, 0, 0);
    for (int i = 0; i < 3; i++) past_free(pasts[i]);
    assert_int_equal(stats_of(accelerator).windows, 0);
    accelerator_close(accelerator);
}

static void test_without_memory(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    grow(past, 40, false);
    fake_device_limit(fake_device_counts().bytes); /* none left: the rows travel */
    struct accelerator_stats before = stats_of(accelerator);
    assert_int_equal(check(past, 1), 0);
    expect_moved(accelerator, &before, 40, 0);
    assert_int_equal(stats_of(accelerator).failures_total, 1);
    fake_device_limit(UINT64_C(1) << 30);
    assert_int_equal(check(past, 1), 0);
    assert_int_equal(stats_of(accelerator).windows, 1);
    past_free(past);
    accelerator_close(accelerator);
    struct accelerator *none = NULL;
    struct error err = { 0 };
    struct accelerator_config config = { .travel_bytes = 1 << 20 };
    fake_device_limit(1000);
    assert_int_equal(accelerator_open(&fake_device_table, &config, &none, &err), MEMD_ENOMEM);
    assert_int_equal(fake_device_counts().devices, 0);
}

static void test_lost(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    char name[64], why[128];
    grow(past, 40, false);
    assert_int_equal(check(past, 1), 0);
    assert_true(accelerator_describe(accelerator, name, why, sizeof name));
    assert_string_equal(name, "fake device");
    assert_string_equal(why, "");
    told = 0;
    fake_device_lose(1);
    for (int i = 0; i < 3; i++) {
        grow(past, 1, true);
        assert_int_equal(check(past, 1), ACCELERATOR_DECLINED);
    }
    assert_int_equal(told, 1);
    assert_int_equal(stats_of(accelerator).failures_total, 1);
    assert_int_equal(stats_of(accelerator).declined_total, 3);
    assert_false(accelerator_describe(accelerator, name, why, sizeof name));
    assert_string_equal(why, "fake device was lost: the fake device fell off the bus");
    past_free(past);
    accelerator_close(accelerator);
}

static void test_switched(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, &rope);
    char name[64], why[64];
    grow(past, 40, false);
    assert_int_equal(check(past, 1), 0);
    accelerator_switch(accelerator, false);
    assert_false(accelerator_describe(accelerator, name, why, sizeof name));
    assert_string_equal(why, "the device is switched off");
    grow(past, 4, true);
    assert_int_equal(check(past, 1), ACCELERATOR_DECLINED);
    accelerator_switch(accelerator, true);
    grow(past, 1, true); /* does not continue what is there */
    struct accelerator_stats before = stats_of(accelerator);
    assert_int_equal(check(past, 4), 0);
    expect_moved(accelerator, &before, 0, 5);
    past_free(past);
    accelerator_close(accelerator);
}

/* Rows that were appended behind the query's own state of the layer are not seen, whatever its
 * limits say. */
static void test_newer_rows(void **state)
{
    (void)state;
    static struct question question;
    static float o[2][H * D], lse[2][H];
    struct partial got = { o[0], lse[0], H, D }, truth = { o[1], lse[1], H, D };
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    grow(past, 30, false);
    assert_int_equal(check(past, 1), 0);
    ask(past, 1, &question);
    question.limits[0] = UINT64_MAX;
    grow(past, 10, true);
    assert_int_equal(accelerator_attend(&question.args, &got, NULL), 0);
    on_cpu(&question, &truth);
    compare(&got, &truth);
    past_free(past);
    accelerator_close(accelerator);
}

/* Two steps on one window in one batch, the second of which has rows that would go over those of
 * the first: it has to wait for the next batch. */
static void test_same_window(void **state)
{
    (void)state;
    static struct question questions[2];
    static float o[2][H * D], lse[2][H], true_o[H * D], true_lse[H];
    struct partial got[2] = { { o[0], lse[0], H, D }, { o[1], lse[1], H, D } };
    struct partial truth = { true_o, true_lse, H, D };
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    struct step_item items[2];
    grow(past, 60, false);
    ask(past, 1, &questions[0]);
    grow(past, 30, false);
    ask(past, 1, &questions[1]);
    for (int i = 0; i < 2; i++)
        items[i] = (struct step_item){ .args = &questions[i].args, .window = past->window,
                                       .view_end = questions[i].args.view_count,
                                       .partial = got[i] };
    pthread_mutex_lock(&accelerator->lock);
    assert_int_equal(step_add(accelerator, &items[0]), 0);
    assert_int_equal(step_add(accelerator, &items[1]), MEMD_ELIMIT);
    assert_int_equal(step_run(accelerator), 0);
    accelerator->batch.item_count = 0;
    assert_int_equal(step_add(accelerator, &items[1]), 0);
    assert_int_equal(step_add(accelerator, &items[0]), 0); /* it sees less, and changes nothing */
    assert_int_equal(step_run(accelerator), 0);
    pthread_mutex_unlock(&accelerator->lock);
    for (int i = 0; i < 2; i++) {
        on_cpu(&questions[i], &truth);
        compare(&got[i], &truth);
    }
    past_free(past);
    accelerator_close(accelerator);
}

/* What the caller's own functions refuse is the caller's error; no byte was used. */
static int refuse(void *arg, const struct view *view, size_t row, size_t count, unsigned parts)
{
    (void)arg;
    (void)row;
    (void)count;
    (void)parts;
    return view->position == VIEW_TOKENS ? MEMD_ECORRUPT : 0;
}

static int too_late(void *arg)
{
    (void)arg;
    return MEMD_EDEADLINE;
}

static void test_refused(void **state)
{
    (void)state;
    static struct question question;
    static float o[H * D], lse[H];
    struct partial got = { o, lse, H, D };
    struct error err = { 0 };
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    grow(past, 200, false);
    ask(past, 1, &question);
    question.args.admit = refuse;
    assert_int_equal(accelerator_attend(&question.args, &got, &err),
                     MEMD_ECORRUPT);
    question.args.admit = NULL;
    question.args.stop = too_late;
    assert_int_equal(accelerator_attend(&question.args, &got, &err),
                     MEMD_EDEADLINE);
    assert_int_equal(check(past, 1), 0);
    past_free(past);
    accelerator_close(accelerator);
}

enum { THREADS = 4, ROUNDS = 12 };
struct client {
    struct accelerator *accelerator;
    struct past *past; /* of its own, or shared by all */
    pthread_t thread;
    bool same;
};

static void *run_client(void *arg)
{
    struct client *client = arg;
    struct question *question = malloc(sizeof *question);
    float *o = malloc(2 * sizeof(float) * H * D), lse[2][H];
    if (question == NULL || o == NULL) return NULL;
    struct partial got = { o, lse[0], H, D }, truth = { o + (size_t)H * D, lse[1], H, D };
    client->same = true;
    ask(client->past, 1, question);
    for (int round = 0; round < ROUNDS; round++) {
        question->limits[0] = 20 + (uint64_t)round;
        int rc = accelerator_attend(&question->args, &got, NULL);
        on_cpu(question, &truth);
        for (size_t i = 0; i < (size_t)H * D; i++)
            client->same &= rc == 0 && close_to(o[i], (double)truth.o[i], (struct near){ 2e-6F,
                                                                                        4e-6F });
    }
    free(question);
    free(o);
    return NULL;
}

/* Clients side by side, two of them on one context; windows for two of the three. */
static void test_together(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 2);
    struct past *pasts[THREADS - 1];
    struct client clients[THREADS];
    for (int i = 0; i < THREADS - 1; i++) {
        pasts[i] = past_new(accelerator, NULL);
        grow(pasts[i], 60, false);
    }
    for (int i = 0; i < THREADS; i++) {
        clients[i] = (struct client){ .accelerator = accelerator,
                                      .past = pasts[i % (THREADS - 1)] };
        assert_int_equal(pthread_create(&clients[i].thread, NULL, run_client, &clients[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(clients[i].thread, NULL);
        assert_true(clients[i].same);
    }
    struct accelerator_stats stats = stats_of(accelerator);
    assert_int_equal(stats.steps_total, THREADS * ROUNDS);
    assert_true(stats.batches_total <= stats.steps_total);
    for (int i = 0; i < THREADS - 1; i++) past_free(pasts[i]);
    accelerator_close(accelerator);
}

static void test_plugin(void **state)
{
    (void)state;
    const struct device_table *table = NULL;
    struct error err = { 0 };
    assert_int_equal(accelerator_load_plugin("/no/such/memd-cuda.so", &table, &err),
                     MEMD_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "/no/such/memd-cuda.so"));
    err = (struct error){ 0 };
    assert_int_equal(accelerator_load_plugin("libm.so.6", &table, &err), MEMD_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "has no memd_device_table"));
    const char *fake = getenv("MEMD_FAKE_PLUGIN");
    assert_non_null(fake);
    assert_int_equal(accelerator_load_plugin(fake, &table, &err), 0);
    assert_int_equal(table->version, DEVICE_TABLE_VERSION);
    const char *cuda = getenv("MEMD_CUDA_PLUGIN"); /* where it was built */
    if (cuda == NULL) return;
    assert_int_equal(accelerator_load_plugin(cuda, &table, &err), 0);
    struct accelerator *accelerator = NULL;
    struct accelerator_config config = { .ordinal = -1, .travel_bytes = 1 << 20 };
    int rc = accelerator_open(table, &config, &accelerator, &err);
    if (rc < 0) assert_non_null(strstr(err.text, "CUDA")); /* no GPU here: it says so */
    accelerator_close(accelerator);
}

int main(void)
{
    random_state = random_seed();
    simt_set_order(SIMT_SHUFFLED, random_state);
    if (rope_init(&(struct rope_config){ .theta = 1e4 }, D, &rope, NULL) < 0) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),         cmocka_unit_test(test_behind_and_cut),
        cmocka_unit_test(test_demotion),       cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_lost),           cmocka_unit_test(test_switched),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_together),
        cmocka_unit_test(test_plugin),        cmocka_unit_test(test_newer_rows),
        cmocka_unit_test(test_same_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
