/* SPDX-License-Identifier: Apache-2.0 */
/* test_rebuild.c — derived data is taken away and made again: on demand, where it is damaged, while
 * others read it, and after a SIGKILL at any moment.
 */
#include "tests/unit/builder_fixture.h"
#include "tests/unit/killed.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "memory/format.h"
#include "tests/random.h"

static struct rebuild_step rebuild(struct fixture *fx, struct walk_args *args)
{
    struct rebuild_step step;
    struct error err = { 0 };
    ASSERT_OK(catalog_rebuild(fx->catalog, args, &fx->arena, &step, &err), err);
    return step;
}

static void test_rebuild(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0;
    fixture_append(&fx, context, 0, 2500);
    expect_built(&fx, context, 4);
    ASSERT_OK(catalog_fork(fx.catalog, context,
                           &(struct fork_args){ .name = "fork" }, &id, &tokens, &err), err);
    struct context *fork = fixture_context(&fx, "fork");
    expect_built(&fx, fork, 4);
    uint64_t derived = stat_of(&fx, context).derived_bytes;
    struct walk_args one = { .context_id = context_id(context) };
    struct rebuild_step step = rebuild(&fx, &one);
    assert_int_equal(step.segments, 4);
    assert_int_equal(step.bytes, derived);
    assert_int_equal(step.cursor_bytes, 0);
    expect_built(&fx, fork, 4);
    expect_built(&fx, context, 4);
    assert_int_equal(stats_of(&fx).built_segments_total, 8);
    struct walk_args all = { .context_id = 0 };
    uint64_t contexts = 0;
    do {
        step = rebuild(&fx, &all);
        contexts += step.context_id != 0;
        all.cursor = step.cursor;
        all.cursor_bytes = step.cursor_bytes;
    } while (all.cursor_bytes > 0);
    assert_int_equal(contexts, 2);
    expect_built(&fx, context, 4);
    expect_built(&fx, fork, 4);
    expect_clean(&fx);
    all = (struct walk_args){ .cursor = "odd", .cursor_bytes = 3 };
    ASSERT_CODE(MEMD_EINVAL, catalog_rebuild(fx.catalog, &all, &fx.arena, &step, &err), err);
    fixture_end(&fx);
}

/* Change one byte behind the n-th value header of a kind. */
static void damage(const struct fixture *fx, enum format_kind kind, size_t nth, size_t offset)
{
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", fx->path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct stat file;
    assert_int_equal(fstat(fd, &file), 0);
    unsigned char *data = malloc((size_t)file.st_size);
    assert_non_null(data);
    assert_int_equal(pread(fd, data, (size_t)file.st_size, 0), file.st_size);
    const unsigned char wanted[6] = { 'M', 'E', 'M', 'V', kind <= FORMAT_KIND_CONTEXT ? 1 : 2,
                                      (unsigned char)kind };
    size_t at = 16, seen = 0; /* large values begin 16 bytes behind the start of a page */
    for (; at + 64 < (size_t)file.st_size; at += 4096) {
        if (memcmp(data + at, wanted, sizeof wanted) == 0 && seen++ == nth) break;
    }
    if (at + 64 >= (size_t)file.st_size) fail_msg("no value %zu of kind %d", nth, (int)kind);
    unsigned char byte = data[at + offset] ^ 0x40;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)(at + offset)), 1);
    close(fd);
    free(data);
}

static void test_damage(void **state)
{
    (void)state;
    static const size_t offsets[] = { 0, 6, 30, 48, 60, 5000 };
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        struct fixture fx;
        char text[256];
        struct error err = { 0 };
        fixture_begin(&fx);
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 2500);
        expect_built(&fx, context, 4);
        fixture_close(&fx);
        damage(&fx, FORMAT_KIND_HI, i, offsets[i]);
        ASSERT_OK(catalog_open(&fx.config, &fx.catalog, &err), err);
        assert_in_range(verify(&fx, text), 1, 3);
        context = fixture_context(&fx, "book");
        expect_answers(&fx, context, 0.02);
        expect_built(&fx, context, 4);
        assert_int_equal(stats_of(&fx).damaged_derived_total, 1);
        assert_int_equal(stats_of(&fx).built_segments_total, 1);
        expect_clean(&fx);
        expect_answers(&fx, context, 0.02);
        fixture_end(&fx);
    }
}

/* Corrupt rows have no planes; the others have. */
static void test_corrupt_rows(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "planed");
    fixture_append(&fx, context, 0, 2500);
    expect_built(&fx, context, 4);
    fx.config.budget_bytes = SEGMENT_BYTES; /* nothing derived fits beside the rows */
    catalog_reconfigure(fx.catalog, &fx.config);
    struct walk_args walk = { .context_id = context_id(context) };
    rebuild(&fx, &walk);
    struct build_progress progress = wait_built(&fx, context);
    assert_int_equal(progress.built, 0);
    assert_int_equal(progress.last_failure, MEMD_EFULL);
    fx.config.budget_bytes = 0; /* or the context is evicted when nobody pins it */
    catalog_reconfigure(fx.catalog, &fx.config);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err); /* the writer is past what it began before */
    fixture_close(&fx);
    damage(&fx, FORMAT_KIND_K, 1, 700);
    ASSERT_OK(catalog_open(&fx.config, &fx.catalog, &err), err);
    context = fixture_context(&fx, "planed");
    progress = wait_built(&fx, context);
    assert_int_equal(progress.segments, 4);
    assert_int_equal(progress.built, 3);
    assert_int_equal(progress.last_failure, MEMD_ECORRUPT);
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
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!crowd->done) {
        float o[QUERIES * 4 * 64];
        struct quality quality;
        ask(&mine, fixture_context(&mine, "book"), 0.05, o, &quality);
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

static void *crowd_rebuilds(void *arg)
{
    struct crowd *crowd = arg;
    struct fixture mine = *crowd->fx;
    arena_init(&mine.arena, (size_t)64 << 20);
    while (!crowd->done) {
        struct walk_args args = { .context_id = context_id(fixture_context(&mine, "book")) };
        rebuild(&mine, &args);
        arena_reset(&mine.arena);
    }
    arena_fini(&mine.arena);
    return NULL;
}

/* Everything at once, for the thread sanitizer. */
static void test_crowd(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0, bytes = 0;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2100);
    struct crowd crowd = { .fx = &fx };
    pthread_t reader, rebuilder;
    assert_int_equal(pthread_create(&reader, NULL, crowd_reads, &crowd), 0);
    assert_int_equal(pthread_create(&rebuilder, NULL, crowd_rebuilds, &crowd), 0);
    for (int i = 0; i < 12; i++) {
        fixture_append(&fx, context, context_tokens(context), 700);
        if (i % 4 == 1) ASSERT_OK(context_truncate(context, 1500, &err), err);
        ASSERT_OK(catalog_fork(fx.catalog, context,
                               &(struct fork_args){ .name = "fork" }, &id, &tokens, &err), err);
        if (i % 2 == 0) fixture_context(&fx, "fork");
        arena_reset(&fx.arena);
        context = fixture_context(&fx, "book");
        ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    }
    crowd.done = true;
    pthread_join(reader, NULL);
    pthread_join(rebuilder, NULL);
    uint64_t end = context_tokens(context);
    expect_built(&fx, context, end / 1024 * 2);
    fixture_expect(&fx, context, 0, 0, end);
    expect_answers(&fx, context, 0.02);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void child(struct fixture *fx, int fd)
{
    struct error err = { 0 };
    struct rebuild_step step;
    if (catalog_open(&fx->config, &fx->catalog, &err) < 0) _exit(2);
    struct context *context = fixture_context(fx, "book");
    if (write(fd, "x", 1) != 1) _exit(3);
    for (;;) {
        uint64_t tokens = context_tokens(context);
        struct progress progress;
        for (uint32_t layer = 0; layer < fx->model.layers; layer++) {
            if (fixture_append_layer(fx, context, (struct place){ layer, tokens }, 1500, &progress,
                                     &err) < 0)
                _exit(4);
        }
        struct walk_args args = { .context_id = context_id(context) };
        if (catalog_rebuild(fx->catalog, &args, &fx->arena, &step, &err) < 0) _exit(5);
        if (tokens > 8000 && context_truncate(context, 1300, &err) < 0) _exit(6);
    }
}

/* Kill a process that builds, rebuilds, appends and truncates; the next one goes on. */
static void test_kill(void **state)
{
    (void)state;
    const char *more = getenv("MEMD_TEST_ROUNDS");
    int rounds = more != NULL ? (int)strtol(more, NULL, 10) : 12;
    uint64_t random = random_seed();
    struct fixture fx;
    struct error err = { 0 };
    fixture_begin(&fx);
    fixture_close(&fx);
    for (int i = 0; i < rounds; i++) {
        struct victim victim = victim_start(&fx, child);
        victim_hear(&victim, 1);
        struct timespec pause = { 0, (long)random_below(&random, 80000000) };
        pselect(0, NULL, NULL, NULL, &pause, NULL);
        victim_kill(&victim, &fx);
        expect_clean(&fx);
        struct context *context = fixture_context(&fx, "book");
        uint64_t tokens = context_tokens(context);
        if (context_layer_tokens(context, 1) > 0) {
            expect_answers(&fx, context, 0.02);
            expect_built(&fx, context, (context_layer_tokens(context, 0) / 1024 +
                                        context_layer_tokens(context, 1) / 1024));
            fixture_expect(&fx, context, 1, 0, tokens);
            expect_answers(&fx, context, 0.02);
        } else {
            ASSERT_OK(context_truncate(context, 0, &err), err);
        }
        expect_clean(&fx);
        fixture_close(&fx);
    }
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rebuild), cmocka_unit_test(test_damage),
        cmocka_unit_test(test_corrupt_rows), cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_kill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
