/* SPDX-License-Identifier: Apache-2.0 */
/* test_ring.c — the ring of a layer, which retrievals change: as it must be after any number of
 * appends and queries, restarts, forks, truncates, failed commits and kills.
 *
 * The truth is a ring of the test's own (index/lru.h, whose test is test_lru.c), which is told what
 * the method of method_fixture.h retrieves.
 */
#include "tests/unit/method_fixture.h"

#include "tests/unit/builder_fixture.h"
#include "tests/unit/killed.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "index/lru.h"
#include "memory/catalog_state.h"

METHOD_TABLE(METHOD_FIXTURES);

enum { SLOTS = 40, LAYER = 1, STEPS = 60 };

struct truth {
    uint64_t room[2 * SLOTS];
    struct lru lru;
};

static void truth_init(struct truth *truth)
{
    lru_init(&truth->lru, SLOTS, truth->room);
}

static void truth_retrieve(struct truth *truth, uint64_t tokens)
{
    uint64_t found[SLOTS];
    lru_advance(&truth->lru, tokens);
    for (size_t i = 0; i < truth->lru.count; i++) {
        uint64_t position = truth->lru.positions[i];
        found[i] = method_retrieves(position, tokens) ? position : INDEX_NONE;
    }
    lru_use(&truth->lru, tokens, found, truth->lru.count);
}

/* Appends of 1 … 9 tokens, so that nothing leaves that is not the oldest of what was not found. */
static size_t step_tokens(size_t step)
{
    return 1 + step * 7 % 9;
}

static void append(struct fixture *fx, struct context *context, size_t count)
{
    fixture_append(fx, context, context_layer_tokens(context, LAYER), count);
}

static int ask_ring(struct fixture *fx, struct context *context, struct error *err)
{
    struct answer answer;
    return fixture_attend(fx, context, LAYER, UINT64_MAX, &answer, err);
}

/* A query sees the ring that it must, and changes it as it must. */
static void retrieve(struct fixture *fx, struct context *context, struct truth *truth)
{
    struct error err = { 0 };
    uint64_t tokens = context_layer_tokens(context, LAYER);
    lru_advance(&truth->lru, tokens);
    ASSERT_OK(ask_ring(fx, context, &err), err);
    assert_int_equal(method_saw.ring_count, truth->lru.count);
    for (size_t i = 0; i < truth->lru.count; i++)
        if (method_saw.ring[i] != truth->lru.positions[i])
            fail_msg("%zu tokens: slot %zu holds %zu, expected %zu", (size_t)tokens, i,
                     (size_t)method_saw.ring[i], (size_t)truth->lru.positions[i]);
    truth_retrieve(truth, tokens);
}

/* As it is, without changing it. */
static void expect_ring(struct fixture *fx, struct context *context, const struct lru *expected)
{
    struct error err = { 0 };
    struct lru *lru = NULL;
    ASSERT_OK(ring_take(context, LAYER, expected->tokens, &fx->arena, &lru, &err), err);
    assert_int_equal(lru->tokens, expected->tokens);
    assert_int_equal(lru->count, expected->count);
    for (size_t i = 0; i < lru->count; i++)
        if (lru->positions[i] != expected->positions[i] || lru->stamps[i] != expected->stamps[i])
            fail_msg("slot %zu holds %zu of %zu, expected %zu of %zu", i,
                     (size_t)lru->positions[i], (size_t)lru->stamps[i],
                     (size_t)expected->positions[i], (size_t)expected->stamps[i]);
}

static void grow(struct fixture *fx, struct context *context, struct truth *truth, size_t steps)
{
    for (size_t step = 0; step < steps; step++) {
        append(fx, context, step_tokens(step));
        if (step % 3 == 0) append(fx, context, step_tokens(step + 1));
        retrieve(fx, context, truth);
    }
}

static void test_life(void **state)
{
    (void)state;
    struct fixture fx;
    struct truth truth, other;
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0;
    method_begin(&fx, "test-ring");
    truth_init(&truth);
    struct context *context = fixture_context(&fx, "book");
    grow(&fx, context, &truth, STEPS);
    assert_true(truth.lru.positions[0] + 2 * SLOTS < truth.lru.tokens); /* it is not the newest */
    expect_clean(&fx);
    for (size_t round = 0; round < 3; round++) {
        fixture_restart(&fx);
        context = fixture_context(&fx, "book");
        expect_ring(&fx, context, &truth.lru);
        grow(&fx, context, &truth, 5);
    }
    struct fork_args fork = { .name = "fork" };
    ASSERT_OK(catalog_fork(fx.catalog, context, &fork, &id, &tokens, &err), err);
    truth_init(&other);
    lru_copy(&truth.lru, &other.lru);
    grow(&fx, context, &truth, 7); /* the fork does not see it */
    struct context *forked = fixture_context(&fx, "fork");
    expect_ring(&fx, forked, &other.lru);
    grow(&fx, forked, &other, 20);
    fixture_restart(&fx);
    expect_ring(&fx, fixture_context(&fx, "book"), &truth.lru);
    expect_ring(&fx, fixture_context(&fx, "fork"), &other.lru);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* Before anything was dropped a cut is a cut; after that only what was appended since the last
 * retrieval can go. */
static void test_truncate(void **state)
{
    (void)state;
    struct fixture fx;
    struct truth truth;
    struct error err = { 0 };
    method_begin(&fx, "test-ring");
    truth_init(&truth);
    struct context *context = fixture_context(&fx, "book");
    append(&fx, context, 30);
    retrieve(&fx, context, &truth);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    ASSERT_OK(context_truncate(context, 20, &err), err);
    lru_cut(&truth.lru, 20);
    expect_ring(&fx, context, &truth.lru);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    expect_ring(&fx, context, &truth.lru);
    for (uint64_t tokens = 20; tokens < 200; tokens += 36) {
        append(&fx, context, 36);
        retrieve(&fx, context, &truth);
    }
    append(&fx, context, 100);
    ASSERT_CODE(MEMD_EUNSUPPORTED, context_truncate(context, 199, &err), err);
    assert_int_equal(context_layer_tokens(context, LAYER), 300);
    ASSERT_OK(context_truncate(context, 210, &err), err);
    expect_ring(&fx, context, &truth.lru);
    append(&fx, context, 3);
    retrieve(&fx, context, &truth);
    fixture_restart(&fx);
    expect_ring(&fx, fixture_context(&fx, "book"), &truth.lru);
    expect_clean(&fx);
    fixture_end(&fx);
}

struct fail_job {
    struct writer_job job;
    struct fixture *fx;
    struct context *context;
};

/* On the writer, so that no commit comes in between. */
static int fail_commit(struct writer_job *job, struct error *err)
{
    struct fail_job *fail = (struct fail_job *)(void *)job;
    append(fail->fx, fail->context, 50);
    ASSERT_OK(ask_ring(fail->fx, fail->context, err), *err);
    writer_release(job->catalog->writer, context_roll_back(fail->context, MEMD_EIO));
    return 0;
}

/* What was read of rows that are taken back never happened; what was read before stays. */
static void test_failed_commit(void **state)
{
    (void)state;
    struct fixture fx;
    struct truth truth;
    struct error err = { 0 };
    method_begin(&fx, "test-ring");
    truth_init(&truth);
    struct context *context = fixture_context(&fx, "book");
    struct fail_job fail = { { .run = fail_commit, .catalog = fx.catalog }, &fx, context };
    ASSERT_OK(writer_run(fx.catalog->writer, &fail.job, &err), err);
    expect_ring(&fx, context, &truth.lru);
    struct progress progress;
    fixture_append_layer(&fx, context, (struct place){ LAYER, 0 }, 1, &progress, &err);
    grow(&fx, context, &truth, 20);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    fail.job = (struct writer_job){ .run = fail_commit, .catalog = fx.catalog };
    ASSERT_OK(writer_run(fx.catalog->writer, &fail.job, &err), err);
    expect_ring(&fx, context, &truth.lru);
    fixture_restart(&fx);
    expect_ring(&fx, fixture_context(&fx, "book"), &truth.lru);
    fixture_end(&fx);
}

/* A child appends and retrieves until it is killed; after each step it has synced. */
static void child(struct fixture *fx, int fd)
{
    struct error err = { 0 };
    if (catalog_open(&fx->config, &fx->catalog, &err) < 0) _exit(2);
    struct context *context = fixture_context(fx, "book");
    for (size_t step = 0;; step++) {
        append(fx, context, step_tokens(step));
        if (ask_ring(fx, context, &err) < 0) _exit(3);
        if (step % 4 == 3 && catalog_sync(fx->catalog, &err) < 0) _exit(4);
        if (step % 4 == 3 && write(fd, "", 1) != 1) _exit(5);
        arena_reset(&fx->arena);
    }
}

/* The ring is as some retrieval left it, and not before those that were synced. */
static void expect_some_step(struct fixture *fx, size_t least)
{
    struct error err = { 0 };
    struct truth truth;
    struct lru *lru = NULL;
    uint64_t tokens = 0;
    truth_init(&truth);
    struct context *context = fixture_context(fx, "book");
    ASSERT_OK(ring_take(context, LAYER, 0, &fx->arena, &lru, &err), err);
    for (size_t step = 0; tokens < lru->tokens; step++) {
        tokens += step_tokens(step);
        truth_retrieve(&truth, tokens);
        assert_true(step + 1 >= least || tokens < lru->tokens);
    }
    assert_true(lru->tokens <= context_layer_tokens(context, LAYER));
    expect_ring(fx, context, &truth.lru);
}

static void test_kill(void **state)
{
    (void)state;
    struct fixture fx;
    for (size_t round = 0; round < 10; round++) {
        method_begin(&fx, "test-ring");
        fixture_close(&fx);
        struct victim victim = victim_start(&fx, child);
        victim_hear(&victim, 1 + round * 3);
        victim_kill(&victim, &fx);
        expect_some_step(&fx, (1 + round * 3) * 4);
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

struct crowd {
    struct fixture *fx;
    struct context *context;
    atomic_bool done;
};

static void *crowd_asks(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    struct error err = { 0 };
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!crowd->done) {
        int rc = ask_ring(&mine, crowd->context, &err);
        if (rc < 0) fail_msg("attend: %s (%s)", err.text, error_name(rc));
        for (size_t i = 1; i < method_saw.ring_count; i++)
            assert_true(method_saw.ring[i - 1] < method_saw.ring[i]);
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

/* Others ask too, while rows come and are committed: whoever is first, where all retrieve the same
 * at the same number of tokens the ring is the same. */
static void test_crowd(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    pthread_t threads[3];
    method_begin(&fx, "test-ring");
    struct crowd crowd = { .fx = &fx, .context = fixture_context(&fx, "book") };
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_asks, &crowd), 0);
    for (size_t step = 0; step < STEPS; step++) {
        append(&fx, crowd.context, step_tokens(step));
        ASSERT_OK(ask_ring(&fx, crowd.context, &err), err);
        if (step % 8 == 0) ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        arena_reset(&fx.arena);
    }
    crowd.done = true;
    for (size_t i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    struct truth left;
    struct lru *lru = NULL;
    truth_init(&left);
    ASSERT_OK(ring_take(crowd.context, LAYER, 0, &fx.arena, &lru, &err), err);
    lru_copy(lru, &left.lru);
    fixture_restart(&fx);
    expect_ring(&fx, fixture_context(&fx, "book"), &left.lru);
    expect_clean(&fx);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),  cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_failed_commit), cmocka_unit_test(test_kill),
        cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
