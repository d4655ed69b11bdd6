/* SPDX-License-Identifier: Apache-2.0 */
/* test_steps.c — what a step asks of a device, and when: one launch for many contexts, calls that a
 * graph can capture, pieces, rows that are asked for before anybody waits; and what comes of it
 * when any one of the calls fails.
 */
#include "tests/simt/capture.h"
#include "tests/simt/windowed.h"

enum { CONTEXTS = 6, PIECE_BYTES = 64 << 10 /* 127 rows travel at once */ };

struct asked_one {
    struct question question;
    float o[8 * H * D], lse[8 * H];
};

static struct partial partial_of(struct asked_one *one)
{
    return (struct partial){ one->o, one->lse, one->question.queries * H, D };
}

static void check_one(struct asked_one *one)
{
    static float o[8 * H * D], lse[8 * H];
    struct partial got = partial_of(one), truth = { o, lse, got.rows, D };
    on_cpu(&one->question, &truth);
    compare(&got, &truth);
}

/* Contexts of all lengths, each with a rope of its own that is like the others': one batch, one
 * launch of each kernel. */
static void test_one_launch(void **state)
{
    (void)state;
    static struct asked_one ones[CONTEXTS];
    static struct rope ropes[CONTEXTS];
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 16);
    struct past *pasts[CONTEXTS];
    struct accelerator_step steps[CONTEXTS];
    for (size_t i = 0; i < CONTEXTS; i++) {
        ropes[i] = rope;
        pasts[i] = past_new(accelerator, &ropes[i]);
        grow(pasts[i], 30 + 25 * i, false);
        ask(pasts[i], 1 + i % 3, &ones[i].question);
        steps[i] = (struct accelerator_step){ .args = &ones[i].question.args,
                                              .partial = partial_of(&ones[i]) };
    }
    accelerator_attend_all(steps, CONTEXTS); /* windows are filled */
    struct accelerator_stats before = stats_of(accelerator);
    struct fake_device_counts counts = fake_device_counts();
    memset(ones[0].o, 0xFF, sizeof ones[0].o);
    accelerator_attend_all(steps, CONTEXTS);
    for (size_t i = 0; i < CONTEXTS; i++) {
        uint64_t tokens = pasts[i]->tokens, kept = SINKS + RING;
        assert_int_equal(steps[i].rc, 0);
        assert_int_equal(ones[i].question.device.resident, tokens < kept ? tokens : kept);
        check_one(&ones[i]);
    }
    struct accelerator_stats now = stats_of(accelerator);
    assert_int_equal(now.batches_total - before.batches_total, 1);
    assert_int_equal(now.steps_total - before.steps_total, CONTEXTS);
    assert_int_equal(fake_device_counts().launches - counts.launches, 3); /* and one gather */
    assert_int_equal(fake_device_counts().finishes - counts.finishes, 1);
    for (size_t i = 0; i < CONTEXTS; i++) past_free(pasts[i]);
    accelerator_close(accelerator);
}

/* More than one batch holds: each is answered, none is left. */
static void test_many(void **state)
{
    (void)state;
    enum { MANY = STEP_ITEMS_MAX + 3 };
    static struct asked_one ones[MANY];
    static struct accelerator_step steps[MANY];
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    grow(past, 40, false);
    for (size_t i = 0; i < MANY; i++) {
        ask(past, 1, &ones[i].question);
        steps[i] = (struct accelerator_step){ .args = &ones[i].question.args,
                                              .partial = partial_of(&ones[i]) };
    }
    accelerator_attend_all(steps, MANY);
    for (size_t i = 0; i < MANY; i++) {
        assert_int_equal(steps[i].rc, 0);
        check_one(&ones[i]);
    }
    assert_int_equal(stats_of(accelerator).batches_total, 2);
    past_free(past);
    accelerator_close(accelerator);
}

/* What must be refused is refused. */
static void test_capture_rules(void **state)
{
    (void)state;
    enum { RULES = 7 };
    static const struct {
        struct fake_call calls[5];
        size_t count;
    } bad[RULES] = {
        { { { FAKE_MERGE, DEVICE_COMPUTE, 0, 0, false } }, 1 },
        { { { FAKE_ALLOC, DEVICE_COMPUTE, 0, 0, false },
            { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false } }, 2 },
        { { { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false },
            { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false } }, 2 },
        { { { FAKE_COPY, DEVICE_COMPUTE, 0, 8, true },
            { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false } }, 2 },
        { { { FAKE_COPY, DEVICE_TRANSFER, 0, 8, false }, /* nothing forked it */
            { FAKE_RECORD, DEVICE_TRANSFER, 1, 0, false },
            { FAKE_AWAIT, DEVICE_COMPUTE, 1, 0, false },
            { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false } }, 4 },
        { { { FAKE_AWAIT, DEVICE_COMPUTE, 1, 0, false }, /* recorded by an earlier step */
            { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false } }, 2 },
        { { { FAKE_RECORD, DEVICE_COMPUTE, 0, 0, false }, /* never joined */
            { FAKE_AWAIT, DEVICE_TRANSFER, 0, 0, false },
            { FAKE_COPY, DEVICE_TRANSFER, 0, 8, false },
            { FAKE_FINISH, DEVICE_COMPUTE, 0, 0, false } }, 4 },
    };
    for (size_t i = 0; i < RULES; i++)
        if (capture_refuses(bad[i].calls, bad[i].count) == NULL) fail_msg("rule %zu", i);
}

/* An append and a step, warm: what a decoder asks for. With rows that travel and without. */
static void test_capture(void **state)
{
    (void)state;
    static struct fake_call first[64];
    for (int i = 0; i < 4; i++) {
        struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
        struct past *past = past_new(accelerator, i % 2 == 0 ? NULL : &rope);
        size_t count = 0;
        grow(past, i < 2 ? 20 : 120, false);
        assert_int_equal(check(past, 1), 0);
        for (int step = 0; step < 2; step++) {
            const struct fake_call *calls = NULL;
            fake_device_watch(true);
            /* The same slots' worth: neither append wraps around the ring. */
            grow(past, 1, true);
            if (i >= 2) past->tokens--, window_cut(past->window, past->tokens);
            assert_int_equal(check(past, 1), 0);
            fake_device_watch(false);
            size_t now = fake_device_watched(&calls);
            const char *why = capture_refuses(calls, now);
            if (why != NULL) fail_msg("case %d: %s", i, why);
            assert_true(now >= (i < 2 ? 5 : 10) && now <= 64);
            if (step == 0) memcpy(first, calls, now * sizeof *calls);
            else if (i >= 2) assert_true(now == count && capture_equals(first, calls, now));
            count = now;
        }
        past_free(past);
        accelerator_close(accelerator);
    }
}

/* Who turns keys otherwise uses nothing of a window, who turns them alike all of it. */
static void test_other_rope(void **state)
{
    (void)state;
    static struct asked_one one;
    struct rope other, alike = rope;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, &rope);
    assert_int_equal(rope_init(&(struct rope_config){ .theta = 3e4 }, D, &other, NULL), 0);
    grow(past, 40, false);
    struct rope *turning[] = { &rope, &other, &alike };
    for (int i = 0; i < 3; i++) {
        struct partial got = partial_of(&one);
        past->rope = turning[i];
        ask(past, 1, &one.question);
        got = partial_of(&one);
        assert_int_equal(accelerator_attend(&one.question.args, &got, NULL), 0);
        assert_int_equal(one.question.device.resident, i == 1 ? 0 : 40);
        check_one(&one);
    }
    past_free(past);
    accelerator_close(accelerator);
}

/* A query over the newest rows alone fills the window from everything that is stored. */
static void test_part_of_a_layer(void **state)
{
    (void)state;
    static struct asked_one one;
    static struct question whole;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, &rope);
    struct view newest[G];
    grow(past, 3 * VIEW_TOKENS + 20, false);
    ask(past, 1, &whole);
    ask(past, 1, &one.question);
    for (size_t g = 0; g < G; g++) newest[g] = one.question.views[g * 4 + 3];
    one.question.args.views = newest;
    one.question.args.view_count = 1;
    one.question.device.whole = &whole.args;
    struct partial got = partial_of(&one);
    struct accelerator_stats before = stats_of(accelerator);
    assert_int_equal(accelerator_attend(&one.question.args, &got, NULL), 0);
    assert_int_equal(one.question.device.resident, 20);
    check_one(&one);
    struct accelerator_stats now = stats_of(accelerator);
    assert_int_equal(now.rebuilt_bytes_total - before.rebuilt_bytes_total,
                     (SINKS + RING) * G * D * 4);
    assert_int_equal(now.travelled_bytes_total, before.travelled_bytes_total);
    assert_int_equal(check(past, 2), 0); /* all of the layer: what is not in the window travels */
    assert_int_equal(stats_of(accelerator).rebuilt_bytes_total, now.rebuilt_bytes_total);
    past_free(past);
    accelerator_close(accelerator);
}

static struct accelerator *open_narrow(uint64_t window_bytes)
{
    struct accelerator *accelerator = NULL;
    struct accelerator_config config = windowed_config(window_bytes);
    config.travel_bytes = PIECE_BYTES;
    fake_device_limit(UINT64_C(1) << 30);
    assert_int_equal(accelerator_open(&fake_device_table, &config, &accelerator, NULL), 0);
    return accelerator;
}

/* More rows than may travel at once: declined, or in pieces for who insists. */
static void test_pieces(void **state)
{
    (void)state;
    static struct asked_one one;
    for (int i = 0; i < 2; i++) {
        struct accelerator *accelerator = open_narrow(i == 0 ? WINDOW_BYTES * 4 : 0);
        struct past *past = past_new(accelerator, i == 0 ? &rope : NULL);
        grow(past, 170, false);
        ask(past, 3, &one.question);
        struct partial got = partial_of(&one);
        one.question.device.insist = true;
        assert_int_equal(accelerator_attend(&one.question.args, &got, NULL), 0); /* no window: 2 */
        check_one(&one);
        assert_int_equal(stats_of(accelerator).batches_total, i == 0 ? 1 : 2);
        grow(past, 200, false);
        assert_int_equal(check(past, 1), ACCELERATOR_DECLINED);
        ask(past, 3, &one.question);
        got = partial_of(&one);
        one.question.device.insist = true;
        struct accelerator_stats before = stats_of(accelerator);
        assert_int_equal(accelerator_attend(&one.question.args, &got, NULL), 0);
        check_one(&one);
        struct accelerator_stats now = stats_of(accelerator);
        assert_int_equal(one.question.device.resident, i == 0 ? SINKS + RING : 0);
        assert_true(now.batches_total - before.batches_total >= 3);
        assert_int_equal(now.steps_total - before.steps_total, 1);
        past_free(past);
        accelerator_close(accelerator);
    }
}

/* A disk may be waited for: nobody else is, when rows are asked for the first time. */
struct admitting {
    struct accelerator *accelerator;
    bool seen[TOKENS_MAX][G];
    const struct question *question;
    unsigned first, again;
};

static int admit_unlocked(void *arg, const struct view *view, size_t row, size_t count,
                          unsigned parts)
{
    struct admitting *admitting = arg;
    size_t at = (size_t)(view - admitting->question->views);
    size_t g = at / admitting->question->args.view_count;
    bool known = true;
    assert_int_equal(parts, VIEW_K | VIEW_V);
    for (size_t t = view->position + row; t < view->position + row + count; t++) {
        known &= admitting->seen[t][g];
        admitting->seen[t][g] = true;
    }
    if (known) admitting->again++;
    if (known) return 0;
    admitting->first++;
    assert_int_equal(pthread_mutex_trylock(&admitting->accelerator->lock), 0);
    pthread_mutex_unlock(&admitting->accelerator->lock);
    return 0;
}

static void test_asked_early(void **state)
{
    (void)state;
    static struct asked_one one;
    static struct admitting admitting;
    struct accelerator *accelerator = open_fake(WINDOW_BYTES * 4);
    struct past *past = past_new(accelerator, NULL);
    grow(past, 200, false);
    ask(past, 2, &one.question);
    admitting = (struct admitting){ .accelerator = accelerator, .question = &one.question };
    one.question.args.admit = admit_unlocked;
    one.question.args.admit_arg = &admitting;
    struct partial got = partial_of(&one);
    assert_int_equal(accelerator_attend(&one.question.args, &got, NULL), 0);
    check_one(&one);
    for (size_t t = 0; t < past->tokens; t++)
        for (size_t g = 0; g < G; g++) assert_true(admitting.seen[t][g]);
    assert_true(admitting.first > 0 && admitting.again > 0);
    past_free(past);
    accelerator_close(accelerator);
}

/* ---- any call may fail ---- */

/* The question, asked as everybody asks: the device, else the CPU. */
static void ask_and_check(struct past *past, size_t queries, bool insist)
{
    static struct asked_one one;
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    ask(past, queries, &one.question);
    one.question.device.insist = insist;
    memset(one.o, 0xFF, sizeof one.o);
    struct partial got = partial_of(&one);
    assert_int_equal(attend(&one.question.args, &arena, &got, NULL), 0);
    check_one(&one);
    arena_fini(&arena);
}

/* Whatever may happen to a window, with room for one and a half. */
static void live(struct accelerator *accelerator)
{
    struct past *past = past_new(accelerator, NULL), *other = past_new(accelerator, &rope);
    grow(past, 60, false);
    ask_and_check(past, 1, false); /* filled; 7 rows travel */
    grow(past, 2, true);
    ask_and_check(past, 2, false);
    grow(other, 30, false);
    ask_and_check(other, 1, false); /* in place of the first */
    grow(other, 1, true);
    accelerator_switch(accelerator, false);
    grow(past, 1, true);
    ask_and_check(past, 1, false);
    accelerator_switch(accelerator, true);
    past->tokens = 50;
    window_cut(past->window, 50);
    grow(past, 200, false);
    ask_and_check(past, 1, true); /* in pieces */
    past_free(past);
    past_free(other);
}

/* Open, live, close, with the n-th call failing; false when there are not so many. */
static bool live_with(uint64_t n, bool go_on)
{
    struct accelerator *accelerator = NULL;
    struct accelerator_config config = windowed_config(WINDOW_BYTES * 5 / 2);
    struct error err = { 0 };
    config.travel_bytes = PIECE_BYTES;
    fake_device_limit(UINT64_C(1) << 30);
    told = 0;
    fake_device_fail(n, go_on);
    int rc = accelerator_open(&fake_device_table, &config, &accelerator, &err);
    if (rc == 0) {
        live(accelerator);
        struct accelerator_stats stats = stats_of(accelerator);
        bool failed = fake_device_has_failed();
        char name[64], why[ERROR_TEXT_BYTES];
        assert_true((stats.failures_total > 0) == failed);
        assert_true(told <= 1);
        assert_int_equal(accelerator_describe(accelerator, name, why, sizeof name), told == 0);
        if (!failed) assert_true(stats.steps_total == 4 && stats.declined_total == 1);
    } else {
        assert_true(fake_device_has_failed() && err.text[0] != '\0');
    }
    accelerator_close(accelerator);
    return fake_device_recover();
}

static void test_any_call_fails(void **state)
{
    (void)state;
    uint64_t n = 1;
    for (int go_on = 0; go_on < 2; go_on++) {
        for (n = 1; live_with(n, go_on != 0); n++) {}
        assert_true(n > 40);
    }
    printf("%llu calls failed, each once and each with all behind it\n", (unsigned long long)n - 1);
}

int main(void)
{
    random_state = random_seed();
    simt_set_order(SIMT_SHUFFLED, random_state);
    if (rope_init(&(struct rope_config){ .theta = 1e4 }, D, &rope, NULL) < 0) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_launch),      cmocka_unit_test(test_many),
        cmocka_unit_test(test_capture_rules),   cmocka_unit_test(test_capture),
        cmocka_unit_test(test_other_rope),      cmocka_unit_test(test_part_of_a_layer),
        cmocka_unit_test(test_pieces),          cmocka_unit_test(test_asked_early),
        cmocka_unit_test(test_any_call_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
