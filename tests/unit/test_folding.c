/* SPDX-License-Identifier: Apache-2.0 */
/* test_folding.c — folds: the same whatever way the rows came, never in front of an answer, and
 * gone when the rows are.
 *
 * The test methods answer with a checksum of what they folded (fold_method.h).
 */
#include "tests/unit/fold_fixture.h"
#include "tests/unit/killed.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "index/fold.h"
#include "memory/format.h"
#include "tests/unit/method_table.h"

METHOD_TABLE(FOLD_METHODS);

/* Appends of 1, 7, 300, … tokens, with queries in between or without. */
static void test_cuts(void **state)
{
    (void)state;
    static const size_t cuts[] = { 1, 7, 300, 1024, 2777 };
    static const char *const names[] = { "test-forgets", "test-reads-back" };
    for (size_t i = 0; i < 2 * sizeof cuts / sizeof cuts[0]; i++) {
        struct fixture fx;
        struct error err = { 0 };
        struct answer answer;
        fixture_begin(&fx);
        fx.method = names[i % 2];
        struct context *context = fixture_context(&fx, "book");
        fold_expect(&fx, context);
        for (uint64_t at = 0; at < 2777;) {
            size_t count = 2777 - at < cuts[i / 2] ? (size_t)(2777 - at) : cuts[i / 2];
            fixture_append(&fx, context, at, count);
            at += count;
            if (at % 3 != 0) continue;
            ASSERT_OK(fixture_attend(&fx, context, 1, UINT64_MAX, &answer, &err), err);
            assert_true((uint64_t)answer.o[FOLD_SAYS_TOKENS] == fold_reach(at));
        }
        fold_expect(&fx, context);
        fixture_end(&fx);
    }
}

/* The builder does most of the work; a query does what is left, or all of it. */
static void test_in_advance(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "test-forgets";
    struct context *context = fixture_context(&fx, "book");
    uint64_t before = fold_tokens_taken();
    fixture_append(&fx, context, 0, 9000);
    struct build_progress built = wait_built(&fx, context);
    assert_int_equal(built.last_failure, 0);
    assert_int_equal(fold_tokens_taken() - before, 2 * fold_reach(9000));
    fold_expect(&fx, context);
    assert_int_equal(fold_tokens_taken() - before, 2 * fold_reach(9000));
    fixture_append(&fx, context, 9000, 150);
    fold_expect(&fx, context);
    assert_int_equal(fold_tokens_taken() - before, 2 * fold_reach(9150));
    fixture_end(&fx);
}

/* A restart goes on from the checkpoint; without one, or with a damaged one, from the rows. */
static void test_restart(void **state)
{
    (void)state;
    static const char *const names[] = { "test-forgets", "test-reads-back" };
    for (size_t i = 0; i < 2; i++) {
        struct fixture fx;
        fixture_begin(&fx);
        fx.method = names[i];
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 9000);
        wait_built(&fx, context);
        fixture_append(&fx, context, 9000, 500);
        fold_expect(&fx, context);
        expect_clean(&fx);
        fixture_restart(&fx);
        uint64_t before = fold_tokens_taken(), loads = fold_loads();
        context = fixture_context(&fx, "book");
        fold_expect(&fx, context);
        uint64_t taken = fold_tokens_taken() - before;
        if (i == 0) assert_int_equal(fold_loads() - loads, 2);
        /* What a checkpoint is behind at most, and the 500. */
        if (i == 0 && taken > 2 * (4096 + 2048 + 500))
            fail_msg("%llu tokens again", (unsigned long long)taken);
        if (i == 1) assert_int_equal(taken, 2 * fold_reach(9500));
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

/* Change one byte behind the first value header of kind INDEX; false when there is none. */
static bool damage_checkpoint(const struct fixture *fx, size_t offset)
{
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", fx->path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct stat file;
    assert_int_equal(fstat(fd, &file), 0);
    bool found = false;
    for (off_t at = 16; !found && at + 64 < file.st_size; at += 4096) {
        unsigned char head[6], byte;
        assert_int_equal(pread(fd, head, sizeof head, at), sizeof head);
        found = memcmp(head, "MEMV", 4) == 0 && head[5] == FORMAT_KIND_INDEX;
        if (!found) continue;
        assert_int_equal(pread(fd, &byte, 1, at + (off_t)offset), 1);
        byte ^= 0x40;
        assert_int_equal(pwrite(fd, &byte, 1, at + (off_t)offset), 1);
    }
    close(fd);
    return found;
}

static void test_damaged_checkpoint(void **state)
{
    (void)state;
    static const size_t offsets[] = { 5, 30, 47, 48, 56, 60, 3000 };
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        struct fixture fx;
        char text[256];
        fixture_begin(&fx);
        fx.method = "test-forgets";
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 9000);
        wait_built(&fx, context);
        fixture_close(&fx);
        assert_true(damage_checkpoint(&fx, offsets[i]));
        fixture_open(&fx);
        assert_in_range(verify(&fx, text), 1, 3);
        context = fixture_context(&fx, "book");
        fold_expect(&fx, context);
        wait_built(&fx, context);
        assert_int_equal(stats_of(&fx).damaged_derived_total, 1);
        expect_clean(&fx); /* another one is in its place */
        fixture_end(&fx);
    }
}

/* Whether rows in the fold are gone, or only fewer behind it: the next answer is that of the rows
 * that there are. */
static void test_truncate(void **state)
{
    (void)state;
    static const uint64_t cuts[] = { 0, 10, 163, 164, 2000, 5000, 8800, 8950, 8999 };
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        struct fixture fx;
        struct error err = { 0 };
        fixture_begin(&fx);
        fx.method = "test-forgets";
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 9000);
        wait_built(&fx, context);
        fold_expect(&fx, context);
        ASSERT_OK(context_truncate(context, cuts[i], &err), err);
        fold_expect(&fx, context);
        struct fold_past past = { fx.salt, fx.salt + 1, cuts[i], NULL, NULL, 0 };
        fx.salt++;
        fixture_append(&fx, context, cuts[i], 1500);
        fold_expect_past(&fx, context, &past);
        wait_built(&fx, context);
        fold_expect_past(&fx, context, &past);
        fixture_restart(&fx);
        context = fixture_context(&fx, "book");
        fold_expect_past(&fx, context, &past);
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

static void test_fork(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0;
    fixture_begin(&fx);
    fx.method = "test-forgets";
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 6000);
    wait_built(&fx, context);
    ASSERT_OK(catalog_fork(fx.catalog, context,
                           &(struct fork_args){ .name = "branch" }, &id, &tokens, &err), err);
    struct context *branch = fixture_context(&fx, "branch");
    fold_expect(&fx, branch);
    fixture_append(&fx, context, 6000, 700);
    fx.salt++;
    fixture_append(&fx, branch, 6000, 500);
    fold_expect_past(&fx, branch, &(struct fold_past){ fx.salt - 1, fx.salt, 6000, NULL, NULL, 0 });
    fx.salt--;
    fold_expect(&fx, context);
    fixture_end(&fx);
}

/* What is consolidated is not taken out again. */
static void test_limits(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct answer answer;
    struct fold_past past = { 1, 1, 0, NULL, NULL, 0 };
    fixture_begin(&fx);
    fx.method = "test-forgets";
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2000);
    uint64_t folded = fold_reach(2000);
    ASSERT_OK(fixture_attend(&fx, context, 1, folded, &answer, &err), err);
    fold_expect_said(&answer, fold_expected(&fx, &past, 1, folded), folded);
    ASSERT_CODE(MEMD_EPOSITION, fixture_attend(&fx, context, 1, folded - 1, &answer, &err), err);
    assert_non_null(strstr(err.text, "has consolidated 1856"));
    fx.method = "test-reads-back";
    context = fixture_context(&fx, "other");
    fixture_append(&fx, context, 0, 2000);
    ASSERT_OK(fixture_attend(&fx, context, 1, 700, &answer, &err), err);
    fold_expect_said(&answer, fold_expected(&fx, &past, 1, 700), 700);
    ASSERT_OK(fixture_attend(&fx, context, 1, 0, &answer, &err), err);
    fold_expect_said(&answer, 0, 0);
    fixture_end(&fx);
}

/* The loop's thread answers from a fold that is up to date, and folds nothing. */
static void test_no_wait(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    float q[4 * 16] = { 1 }, o[4 * 16], lse[4];
    struct quality quality;
    uint64_t position = 500;
    fixture_begin(&fx);
    fx.method = "test-forgets";
    struct context *context = fixture_context(&fx, "book");
    wait_built(&fx, context); /* the builder comes again when a segment was sealed */
    fixture_append(&fx, context, 0, 500);
    struct query query = {
        .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { 1, 4, 16 } },
        .positions = &position, .no_wait = true,
    };
    struct partial partial = { .o = o, .lse = lse, .rows = 4, .head_dim = 16 };
    uint64_t before = fold_tokens_taken();
    ASSERT_CODE(MEMD_EBUSY, context_attend(context, &query, &fx.arena, &partial, &quality, &err),
                err);
    assert_int_equal(fold_tokens_taken(), before);
    fold_expect(&fx, context);
    ASSERT_OK(context_attend(context, &query, &fx.arena, &partial, &quality, &err), err);
    assert_true((uint64_t)o[FOLD_SAYS_TOKENS] == fold_reach(500));
    fixture_end(&fx);
}

/* Folds count as memory of residents, and leave it with them. */
static void test_memory(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "test-forgets";
    fixture_append(&fx, fixture_context(&fx, "a"), 0, 2048);
    fixture_append(&fx, fixture_context(&fx, "b"), 0, 2048);
    fixture_end(&fx);
    fixture_begin(&fx);
    fx.config.resident_bytes_max = 40000; /* one fold of 2,048 tokens has 32 kB at least */
    fixture_restart(&fx);
    fx.method = "test-forgets";
    struct error err = { 0 };
    for (int i = 0; i < 3; i++) {
        char name[2] = { (char)('a' + i), 0 };
        struct context *context = fixture_context(&fx, name);
        fixture_append(&fx, context, 0, 2048);
        wait_built(&fx, context);
        fold_expect(&fx, context);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        arena_reset(&fx.arena);
    }
    fixture_context(&fx, "c");
    uint64_t resident = stats_of(&fx).resident_contexts;
    if (resident > 1) fail_msg("%llu contexts are resident", (unsigned long long)resident);
    fixture_end(&fx);
}

static void test_describe(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct fold_fact facts[CONTEXT_FACTS_MAX];
    fixture_begin(&fx);
    fx.method = "test-forgets";
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 500);
    assert_int_equal(context_describe(context, 1, facts, &err), 3);
    assert_string_equal(facts[0].name, "tokens"); /* those of every fold, then its own */
    assert_true((uint64_t)facts[0].value == fold_reach(500));
    assert_string_equal(facts[1].name, "bytes");
    assert_true(facts[1].value > 0);
    assert_true((uint64_t)facts[2].value == fold_reach(500));
    ASSERT_CODE(MEMD_EINVAL, context_describe(context, 2, facts, &err), err);
    fx.method = "full";
    assert_int_equal(context_describe(fixture_context(&fx, "plain"), 0, facts, &err), 0);
    fixture_end(&fx);
}

struct crowd {
    struct fixture *fx;
    atomic_bool done;
};

static void *crowd_reads(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    struct error err = { 0 };
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!crowd->done) {
        struct answer answer;
        struct context *context = fixture_context(&mine, "book");
        int rc = fixture_attend(&mine, context, 1, UINT64_MAX, &answer, &err);
        if (rc < 0) fail_msg("attend: %s (%s)", err.text, error_name(rc));
        uint64_t tokens = (uint64_t)answer.o[FOLD_SAYS_TOKENS];
        if (tokens % FOLD_STEP != 0) fail_msg("%llu tokens are folded", (unsigned long long)tokens);
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

/* Readers beside an appender that truncates: what they see is always some whole state. */
static void test_crowd(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    fixture_begin(&fx);
    fx.method = "test-forgets";
    struct context *context = fixture_context(&fx, "book");
    struct crowd crowd = { .fx = &fx };
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_reads, &crowd), 0);
    uint64_t at = 0;
    for (size_t i = 0; i < 120; i++) {
        size_t count = 1 + i * 37 % 400;
        fixture_append(&fx, context, at, count);
        at += count;
        if (i % 9 != 0) continue;
        at -= at * i / 240;
        ASSERT_OK(context_truncate(context, at, &err), err);
    }
    crowd.done = true;
    for (size_t i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    fold_expect(&fx, context);
    fixture_end(&fx);
}

/* Append and ask until killed. */
static void child(struct fixture *fx, int fd)
{
    struct error err = { 0 };
    struct answer answer;
    if (catalog_open(&fx->config, &fx->catalog, &err) < 0) _exit(2);
    struct context *context = fixture_context(fx, "book");
    for (uint64_t i = 0;; i++) {
        uint64_t at = context_tokens(context);
        if (at > 12000 && context_truncate(context, at = 9000 + i % 500, &err) < 0) _exit(3);
        fixture_append(fx, context, at, 1 + (size_t)(i * 131 % 700));
        if (i % 3 == 0 && fixture_attend(fx, context, 1, UINT64_MAX, &answer, &err) < 0) _exit(4);
        if (i % 5 == 0 && catalog_sync(fx->catalog, &err) < 0) _exit(5);
        if (write(fd, "", 1) != 1) _exit(6);
    }
}

/* Killed while rows, folds and checkpoints are on their way. */
static void test_kill(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "test-forgets";
    fixture_close(&fx);
    for (int round = 0; round < 12; round++) {
        struct victim victim = victim_start(&fx, child);
        victim_hear(&victim, 3 + (size_t)round * 7);
        victim_kill(&victim, &fx);
        fold_expect(&fx, fixture_context(&fx, "book"));
        expect_clean(&fx);
        fixture_close(&fx);
    }
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),     cmocka_unit_test(test_in_advance),
        cmocka_unit_test(test_restart),  cmocka_unit_test(test_damaged_checkpoint),
        cmocka_unit_test(test_truncate), cmocka_unit_test(test_fork),
        cmocka_unit_test(test_limits),   cmocka_unit_test(test_no_wait),
        cmocka_unit_test(test_memory),   cmocka_unit_test(test_describe),
        cmocka_unit_test(test_crowd),    cmocka_unit_test(test_kill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
