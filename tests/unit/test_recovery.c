/* SPDX-License-Identifier: Apache-2.0 */
/* test_recovery.c — SIGKILL at random moments of appending, forking, truncating and dropping,
 * again and again on the same directory: what was acknowledged is there, bit for bit, layers are
 * even, and the store verifies.
 *
 * The seed is printed and taken from MEMD_TEST_SEED; MEMD_TEST_ROUNDS asks for more rounds.
 */
#include "tests/unit/method_fixture.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

METHOD_TABLE(METHOD_FIXTURES);

/* What the child says on the pipe: the context `book` holds at least this, committed. */
struct claim {
    uint64_t tokens;
};

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void say(int fd, uint64_t tokens)
{
    struct claim claim = { tokens };
    if (write(fd, &claim, sizeof claim) != sizeof claim) _exit(3);
}

static void wait_committed(struct context *context, uint64_t sequence)
{
    struct progress progress;
    struct error err = { 0 };
    int rc = 0;
    while (rc == 0) rc = context_reached(context, sequence, DURABLE_COMMITTED, &progress, &err);
    if (rc < 0) _exit(4);
}

/* One step of the child's life. */
static void work(struct fixture *fx, struct context *context, uint64_t *random,
                 uint64_t *acknowledged, int fd)
{
    struct error err = { 0 };
    uint64_t tokens = context_tokens(context), dice = next_random(random) % 16, bytes = 0, id = 0,
             forked = 0;
    if (dice == 0 && tokens > 0) {
        uint64_t to = next_random(random) % tokens;
        /* It may or may not happen; nor is all of `tokens` committed. */
        if (to < *acknowledged) say(fd, *acknowledged = to);
        if (context_truncate(context, to, &err) < 0) _exit(5);
        say(fd, *acknowledged = to); /* it commits what it leaves */
    } else if (dice == 1) {
        if (catalog_find(fx->catalog, "fork", &id, &err) == 0 &&
            catalog_drop(fx->catalog, id, &bytes, &err) < 0)
            _exit(6);
        if (catalog_fork(fx->catalog, context,
                         &(struct fork_args){ .name = "fork" }, &id, &forked, &err) < 0) _exit(7);
    } else {
        size_t count = 1 + next_random(random) % (dice < 4 ? 3000 : 40);
        struct progress progress = { 0 };
        for (uint32_t layer = 0; layer < fx->model.layers; layer++) {
            if (fixture_append_layer(fx, context, (struct place){ layer, tokens }, count, &progress,
                                     &err) < 0)
                _exit(8);
        }
        if (dice % 2 == 0) {
            wait_committed(context, progress.sequence);
            say(fd, *acknowledged = tokens + count);
        }
    }
}

static void child(struct fixture *fx, uint64_t seed, int fd)
{
    struct error err = { 0 };
    fx->config.sync = (enum sync_mode)(seed % 3);
    fx->config.sync_interval_ms = 10;
    if (catalog_open(&fx->config, &fx->catalog, &err) < 0) _exit(2);
    struct context *context = fixture_context(fx, "book");
    uint64_t random = seed;
    uint64_t acknowledged = context_tokens(context);
    say(fd, acknowledged);
    for (;;) work(fx, context, &random, &acknowledged, fd);
}

/* The last whole claim on the pipe, `first` when there is no other. */
static struct claim read_claims(int fd, struct claim first)
{
    struct claim last = first, claim;
    while (read(fd, &claim, sizeof claim) == sizeof claim) last = claim;
    return last;
}

static void verify_whole(struct fixture *fx)
{
    struct walk_args args = { .context_id = 0 };
    struct error err = { 0 };
    unsigned char cursor[LIMIT_CURSOR_BYTES];
    do {
        struct verify_step step = { 0 };
        ASSERT_OK(catalog_verify(fx->catalog, &args, &fx->arena, &step, &err), err);
        if (step.finding_count > 0) fail_msg("verify: %s", step.findings[0]);
        if (step.cursor_bytes > 0) memcpy(cursor, step.cursor, step.cursor_bytes);
        args.cursor = cursor;
        args.cursor_bytes = step.cursor_bytes;
    } while (args.cursor_bytes > 0);
}

/* After the kill: open, compare, close. */
static void inspect(struct fixture *fx, const struct claim *claim, uint64_t max_tokens)
{
    fixture_open(fx);
    verify_whole(fx);
    struct context *context = fixture_context(fx, "book");
    uint64_t tokens = context_tokens(context);
    uint64_t least = claim->tokens;
    if (tokens < least)
        fail_msg("%llu tokens were acknowledged, %llu are there", (unsigned long long)least,
                 (unsigned long long)tokens);
    bool begun = false; /* killed in the very first append: some layers are not in use yet */
    for (uint32_t layer = 0; layer < fx->model.layers; layer++) {
        uint64_t held = context_layer_tokens(context, layer);
        bool unused = held == 0 && tokens > 0 && least == 0; /* decisions/0003 */
        begun = begun || unused;
        if (!unused) assert_int_equal(held, tokens);
        if (held > 0) fixture_expect(fx, context, layer, 0, held);
    }
    if (fx->columns != 0) method_expect(fx, context, UINT64_MAX);
    struct error err = { 0 };
    uint64_t keep = begun ? 0 : tokens > max_tokens ? max_tokens / 3 : tokens;
    if (keep < tokens) ASSERT_OK(context_truncate(context, keep, &err), err);
    uint64_t id = 0;
    if (catalog_find(fx->catalog, "fork", &id, &err) == 0) {
        struct context *fork = fixture_context(fx, "fork");
        if (context_tokens(fork) > 0) fixture_expect(fx, fork, 1, 0, context_tokens(fork));
        if (fx->columns != 0) method_expect(fx, fork, UINT64_MAX);
    }
    verify_whole(fx);
    fixture_close(fx);
}

static void one_round(struct fixture *fx, uint64_t seed)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ends[0]);
        child(fx, seed, ends[1]);
    }
    close(ends[1]);
    struct claim first;
    assert_int_equal(read(ends[0], &first, sizeof first), sizeof first); /* it is open */
    struct timespec pause = { 0, (long)(seed % 60000000) };
    pselect(0, NULL, NULL, NULL, &pause, NULL);
    kill(pid, SIGKILL);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status)) fail_msg("the child ended by itself with %d", WEXITSTATUS(status));
    struct claim last = read_claims(ends[0], first);
    close(ends[0]);
    inspect(fx, &last, 20000);
}

static void kill_often(const char *method, int rounds)
{
    const char *wish = getenv("MEMD_TEST_SEED"), *more = getenv("MEMD_TEST_ROUNDS");
    uint64_t seed = wish != NULL ? strtoull(wish, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + 1;
    if (more != NULL) rounds = (int)strtol(more, NULL, 10);
    print_message("MEMD_TEST_SEED=%llu\n", (unsigned long long)seed);
    struct fixture fx;
    fixture_begin(&fx);
    if (method[0] != 0) method_use(&fx, method);
    fixture_close(&fx);
    for (int i = 0; i < rounds; i++) one_round(&fx, next_random(&seed));
    fixture_end(&fx);
}

static void test_kill_at_any_moment(void **state)
{
    (void)state;
    kill_often("", 25);
}

static void test_kill_with_columns(void **state)
{
    (void)state;
    kill_often("test-marks", 6);
    kill_often("test-both", 6);
}

static void test_kill_with_states(void **state)
{
    (void)state;
    kill_often("test-all", 10);
}

/* Layers that a kill leaves uneven are cut to the common count; a clean end leaves them as they
 * are. */
static void test_uneven_layers(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct error err = { 0 };
    struct progress progress;
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 1500);
    ASSERT_OK(fixture_append_layer(&fx, context, (struct place){ 0, 1500 }, 700, &progress, &err),
              err);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    assert_int_equal(context_layer_tokens(context, 0), 2200);
    assert_int_equal(context_tokens(context), 1500);
    fixture_close(&fx);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        fixture_open(&fx);
        kill(getpid(), SIGKILL);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    fixture_open(&fx);
    context = fixture_context(&fx, "book");
    assert_int_equal(context_layer_tokens(context, 0), 1500);
    fixture_expect(&fx, context, 0, 0, 1500);
    struct catalog_stats stats;
    catalog_get_stats(fx.catalog, &stats);
    assert_int_equal(stats.recovered_contexts_total, 1);
    assert_int_equal(stats.recovered_tokens_cut_total, 700);
    fixture_append(&fx, context, 1500, 10);
    fixture_restart(&fx);
    fixture_expect(&fx, fixture_context(&fx, "book"), 0, 0, 1510);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uneven_layers),
        cmocka_unit_test(test_kill_at_any_moment),
        cmocka_unit_test(test_kill_with_columns),
        cmocka_unit_test(test_kill_with_states),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
