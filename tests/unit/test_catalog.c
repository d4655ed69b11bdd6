/* SPDX-License-Identifier: Apache-2.0 */
/* test_catalog.c — many contexts in one directory: names, forks, drops, eviction, verify, a full
 * map. */
#include "tests/unit/store_fixture.h"

#include <fcntl.h>

/* Walk the whole store (or one context); the findings, the first of them in *ret_text. */
static size_t verify_all(struct fixture *fx, uint64_t context_id, char ret_text[512])
{
    struct walk_args args = { .context_id = context_id };
    struct error err = { 0 };
    size_t findings = 0;
    unsigned char cursor[LIMIT_CURSOR_BYTES];
    ret_text[0] = 0;
    do {
        struct verify_step step = { 0 };
        ASSERT_OK(catalog_verify(fx->catalog, &args, &fx->arena, &step, &err), err);
        if (step.finding_count > 0 && findings == 0)
            snprintf(ret_text, 512, "%s", step.findings[0]);
        findings += step.finding_count;
        assert_true(step.cursor_bytes <= sizeof cursor);
        if (step.cursor_bytes > 0) memcpy(cursor, step.cursor, step.cursor_bytes);
        args.cursor = cursor;
        args.cursor_bytes = step.cursor_bytes;
    } while (args.cursor_bytes > 0);
    return findings;
}

static void expect_clean(struct fixture *fx)
{
    struct error err = { 0 };
    ASSERT_OK(catalog_sync(fx->catalog, &err), err);
    char text[512];
    size_t findings = verify_all(fx, 0, text);
    if (findings != 0) fail_msg("%zu findings: %s", findings, text);
}

static struct catalog_stats stats_of(struct fixture *fx)
{
    struct catalog_stats stats;
    catalog_get_stats(fx->catalog, &stats);
    return stats;
}

static void test_open_rules(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct error err = { 0 };
    struct context *context = NULL;
    bool created = false;
    struct open_args args = { .name = "a", .model = &fx.model, .method = "" };
    ASSERT_CODE(MEMD_ENOCONTEXT,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    args.create = true;
    ASSERT_OK(catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    assert_true(created);
    ASSERT_OK(catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    assert_false(created);
    args.must_create = true;
    ASSERT_CODE(MEMD_EEXIST,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    args.must_create = false;
    struct model other = fx.model;
    other.head_dim = 32;
    args.model = &other;
    ASSERT_CODE(MEMD_EMISMATCH,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    assert_non_null(strstr(err.text, "head_dim"));
    args = (struct open_args){ .name = "b", .model = &fx.model, .method = "magic", .create = true };
    ASSERT_CODE(MEMD_EUNSUPPORTED,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    struct parameter parameter = { .name = "window", .value = "4" };
    args = (struct open_args){ .name = "b",
                               .model = &fx.model,
                               .method = "full",
                               .create = true,
                               .parameters = &parameter,
                               .parameter_count = 1 };
    ASSERT_CODE(MEMD_EINVAL,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    args = (struct open_args){ .name = "", .model = &fx.model, .method = "", .create = true };
    ASSERT_CODE(MEMD_EINVAL,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    assert_string_equal(catalog_methods()[0], "full");
    fixture_end(&fx);
}

static void test_locked(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct catalog *second = NULL;
    struct error err = { 0 };
    ASSERT_CODE(MEMD_ELOCKED, catalog_open(&fx.config, &second, &err), err);
    fixture_end(&fx);
}

static void test_fork_shares_and_parts(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *parent = fixture_context(&fx, "parent");
    struct error err = { 0 };
    uint64_t child_id = 0, tokens = 0, bytes = 0;
    fixture_append(&fx, parent, 0, 2500);
    ASSERT_OK(catalog_fork(fx.catalog, parent,
                           &(struct fork_args){ .name = "child" }, &child_id, &tokens, &err), err);
    assert_int_equal(tokens, 2500);
    ASSERT_CODE(MEMD_EEXIST, catalog_fork(fx.catalog, parent,
                                          &(struct fork_args){ .name = "child" },
                                          &child_id, &tokens, &err),
                err);
    struct context_info info;
    ASSERT_OK(catalog_stat(fx.catalog, child_id, &fx.arena, &info, &err), err);
    assert_int_equal(info.sealed_segments, 4);
    assert_true(info.shared_bytes > 0 && info.shared_bytes < info.stored_bytes);
    assert_int_equal(info.parent_id, context_id(parent));
    struct context *child = fixture_context(&fx, "child");
    fixture_expect(&fx, child, 1, 0, 2500);
    ASSERT_OK(context_truncate(child, 1500, &err), err); /* inside a shared segment */
    fixture_expect(&fx, parent, 1, 0, 2500);
    fx.salt = 3;
    fixture_append(&fx, child, 1500, 1000);
    fixture_expect(&fx, child, 0, 1500, 2500);
    fx.salt = 1;
    fixture_expect(&fx, child, 0, 0, 1500);
    fixture_expect(&fx, parent, 0, 0, 2500);
    expect_clean(&fx);
    uint64_t parent_id = context_id(parent);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, parent_id, &bytes, &err), err);
    fixture_restart(&fx);
    fixture_expect(&fx, fixture_context(&fx, "child"), 1, 0, 1500);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_drop_gives_everything_back(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full"; /* nothing is derived meanwhile */
    struct error err = { 0 };
    struct context *context = fixture_context(&fx, "book");
    uint64_t id = context_id(context), bytes = 0, found = 0;
    fixture_append(&fx, context, 0, 5000);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    uint64_t stored = stats_of(&fx).stored_bytes;
    assert_true(stored > 5000u * 2 * 2 * 2 * 16 * 2);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    assert_int_equal(bytes, stored);
    assert_int_equal(stats_of(&fx).stored_bytes, 0);
    ASSERT_CODE(MEMD_ENOCONTEXT, catalog_find(fx.catalog, "book", &found, &err), err);
    ASSERT_CODE(MEMD_ENOCONTEXT, catalog_drop(fx.catalog, id, &bytes, &err), err);
    ASSERT_CODE(MEMD_ENOCONTEXT, catalog_pin(fx.catalog, id, &fx.arena, &context, &err), err);
    expect_clean(&fx);
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 10);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_list_pages(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct error err = { 0 };
    static const char *const names[] = { "a", "b1", "b2", "b3", "c" };
    for (size_t i = 0; i < 5; i++) fixture_append(&fx, fixture_context(&fx, names[i]), 0, 1030 + i);
    fixture_restart(&fx); /* nothing is resident */
    struct list_args args = { .prefix = "b", .after = "", .limit = 2 };
    struct list_page page;
    ASSERT_OK(catalog_list(fx.catalog, &args, &fx.arena, &page, &err), err);
    assert_int_equal(page.count, 2);
    assert_true(page.more);
    assert_string_equal(page.infos[0].name, "b1");
    assert_int_equal(page.infos[1].tokens, 1032);
    assert_int_equal(page.infos[1].layer_tokens[1], 1032);
    assert_int_equal(page.infos[1].sealed_segments, 2);
    assert_false(page.infos[1].resident);
    args.after = "b2";
    ASSERT_OK(catalog_list(fx.catalog, &args, &fx.arena, &page, &err), err);
    assert_int_equal(page.count, 1);
    assert_false(page.more);
    assert_string_equal(page.infos[0].name, "b3");
    assert_int_equal(stats_of(&fx).resident_contexts, 0);
    fixture_end(&fx);
}

/* Six contexts in turn, twice, where not all may be resident. */
static void residents_come_and_go(size_t contexts_max, uint64_t resident_bytes_max)
{
    struct fixture fx;
    fixture_begin(&fx);
    fx.config.contexts_max = contexts_max;
    fx.config.resident_bytes_max = resident_bytes_max;
    fixture_restart(&fx);
    struct error err = { 0 };
    char name[16];
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < 6; i++) {
            snprintf(name, sizeof name, "c%u", i);
            fx.salt = i;
            struct context *context = fixture_context(&fx, name);
            fixture_append(&fx, context, (uint64_t)round * 700, 700);
            ASSERT_OK(catalog_sync(fx.catalog, &err), err);
            arena_reset(&fx.arena);
        }
    }
    for (uint32_t i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "c%u", i);
        fx.salt = i;
        fixture_expect(&fx, fixture_context(&fx, name), 1, 0, 1400);
        arena_reset(&fx.arena);
    }
    assert_true(stats_of(&fx).resident_contexts <= 2);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_residents_are_few(void **state)
{
    (void)state;
    residents_come_and_go(2, UINT64_MAX);
}

static void test_residents_are_small(void **state)
{
    (void)state;
    residents_come_and_go(100, 1);
}

static bool exists(struct fixture *fx, const char *name)
{
    uint64_t id = 0;
    return catalog_find(fx->catalog, name, &id, NULL) == 0;
}

static void test_eviction_order(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    struct error err = { 0 };
    fx.config.budget_bytes = 1200000; /* one context of 2,048 tokens has 540 kB */
    fixture_restart(&fx);
    uint64_t until = 0, id = 0;
    fixture_append(&fx, fixture_context(&fx, "oldest"), 0, 2048);
    ASSERT_OK(catalog_find(fx.catalog, "oldest", &id, &err), err);
    ASSERT_OK(catalog_retain(fx.catalog, id, 3600, &until, &err), err);
    assert_true(until > 3600 * 1000);
    arena_reset(&fx.arena);
    fixture_append(&fx, fixture_context(&fx, "second"), 0, 2048);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    arena_reset(&fx.arena);
    fixture_append(&fx, fixture_context(&fx, "third"), 0, 2048); /* stays pinned */
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err); /* eviction follows a commit */
    assert_true(exists(&fx, "oldest"));             /* retained */
    assert_false(exists(&fx, "second"));            /* least recently used of the others */
    assert_true(exists(&fx, "third"));
    assert_int_equal(stats_of(&fx).evicted_contexts_total, 1);
    ASSERT_OK(catalog_retain(fx.catalog, id, 0, &until, &err), err);
    assert_int_equal(until, 0);
    ASSERT_CODE(MEMD_ELIMIT, catalog_retain(fx.catalog, id, LIMIT_PIN_SECONDS + 1, &until, &err),
                err);
    fixture_append(&fx, fixture_context(&fx, "third"), 2048, 2048);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    assert_false(exists(&fx, "oldest"));
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_budget_without_victim(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    fx.config.budget_bytes = 300000;
    fixture_restart(&fx);
    struct error err = { 0 };
    struct context *context = fixture_context(&fx, "only"); /* pinned: it cannot go */
    fixture_append(&fx, context, 0, 2048);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    struct progress progress = { 0 };
    ASSERT_OK(fixture_append_layer(&fx, context, (struct place){ 0, 2048 }, 10, &progress, &err),
              err);
    ASSERT_CODE(MEMD_EFULL, fixture_reach(&fx, context, progress.sequence, DURABLE_COMMITTED, &err),
                err);
    assert_int_equal(context_tokens(context), 2048);
    ASSERT_OK(context_truncate(context, 100, &err), err);
    progress = fixture_append(&fx, context, 100, 10);
    assert_int_equal(fixture_reach(&fx, context, progress.sequence, DURABLE_COMMITTED, &err), 1);
    fixture_end(&fx);
}

/* Layers were filled in turn and may differ. */
static uint64_t even_out(struct context *context)
{
    struct error err = { 0 };
    uint64_t tokens = context_tokens(context);
    ASSERT_OK(context_truncate(context, tokens, &err), err);
    return tokens;
}

/* Append until the map is full; the committed tokens. */
static uint64_t fill_map(struct fixture *fx, struct context *context)
{
    struct error err = { 0 };
    for (int i = 0; i < 2000; i++) {
        uint32_t layer = (uint32_t)i % fx->model.layers;
        struct progress progress = { 0 };
        uint64_t position = context_layer_tokens(context, layer);
        ASSERT_OK(fixture_append_layer(fx, context, (struct place){ layer, position }, 1000,
                                       &progress, &err),
                  err);
        int rc = fixture_reach(fx, context, progress.sequence, DURABLE_COMMITTED, &err);
        if (rc == MEMD_EFULL) return even_out(context);
        assert_int_equal(rc, 1);
    }
    fail_msg("a map of %llu bytes never filled", (unsigned long long)fx->config.map_bytes);
    return 0;
}

static void test_map_full(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    fx.config.map_bytes = 8 << 20;
    fixture_restart(&fx);
    struct error err = { 0 };
    struct context *context = fixture_context(&fx, "book");
    uint64_t tokens = fill_map(&fx, context);
    assert_true(tokens >= 10000);
    fixture_expect(&fx, context, 0, 0, tokens);
    assert_true(stats_of(&fx).commit_failures_total > 0);
    ASSERT_OK(context_truncate(context, tokens / 2 + 7, &err), err);
    uint64_t again = fill_map(&fx, context);
    if (again + 3000 < tokens)
        fail_msg("%llu tokens fitted, after truncate only %llu", (unsigned long long)tokens,
                 (unsigned long long)again);
    fixture_expect(&fx, context, 1, 0, again);
    expect_clean(&fx);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    assert_int_equal(context_tokens(context), again);
    fixture_expect(&fx, context, 1, 0, again);
    uint64_t id = context_id(context), bytes = 0;
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    tokens = fill_map(&fx, fixture_context(&fx, "next"));
    assert_true(tokens + 3000 >= again);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* Flip one byte in the middle of `pattern`, wherever it stands; how often it does. */
static size_t corrupt(const char *path, const void *pattern, size_t bytes)
{
    char name[128];
    snprintf(name, sizeof name, "%s/data.mdb", path);
    int fd = open(name, O_RDWR);
    assert_true(fd >= 0);
    struct stat file;
    assert_int_equal(fstat(fd, &file), 0);
    size_t size = (size_t)file.st_size, count = 0;
    unsigned char *data = malloc(size);
    assert_int_equal(pread(fd, data, size, 0), size);
    for (unsigned char *at = data;
         (at = memmem(at, size - (size_t)(at - data), pattern, bytes)) != NULL;) {
        at[bytes / 2] ^= 0x10;
        count++;
    }
    assert_int_equal(pwrite(fd, data, size, 0), size);
    close(fd);
    free(data);
    return count;
}

static void test_corruption_is_found(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    struct error err = { 0 };
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 3000);
    uint64_t id = context_id(fixture_context(&fx, "book"));
    fixture_close(&fx);
    unsigned char *rows = fixture_rows(&fx, 1, 1500, 1, 0); /* head 0 of one row, in segment 1 */
    assert_true(corrupt(fx.path, rows, fx.model.head_dim * 2) >= 1);
    free(rows);
    fixture_open(&fx);
    struct answer answer;
    struct context *context = fixture_context(&fx, "book");
    ASSERT_OK(fixture_attend(&fx, context, 0, UINT64_MAX, &answer, &err),
              err);                                                       /* the other layer */
    ASSERT_OK(fixture_attend(&fx, context, 1, 1024, &answer, &err), err); /* below it */
    ASSERT_CODE(MEMD_ECORRUPT, fixture_attend(&fx, context, 1, UINT64_MAX, &answer, &err), err);
    ASSERT_CODE(MEMD_ECORRUPT, fixture_attend(&fx, context, 1, UINT64_MAX, &answer, &err), err);
    assert_int_equal(stats_of(&fx).checksum_failures_total, 2);
    char text[512];
    assert_int_equal(verify_all(&fx, 0, text), 1);
    assert_non_null(strstr(text, "checksum"));
    assert_int_equal(verify_all(&fx, id, text), 1);
    fixture_end(&fx);
}

/* A context whose record is damaged cannot be opened, but it can be dropped, name and all. */
static void test_drop_of_a_corrupt_context(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct error err = { 0 };
    snprintf(fx.model.fingerprint, sizeof fx.model.fingerprint, "a fingerprint to be found");
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 1500);
    fixture_close(&fx);
    assert_true(corrupt(fx.path, fx.model.fingerprint, strlen(fx.model.fingerprint)) >= 1);
    fixture_open(&fx);
    uint64_t id = 0, bytes = 0;
    struct context *context = NULL;
    ASSERT_OK(catalog_find(fx.catalog, "book", &id, &err), err);
    ASSERT_CODE(MEMD_ECORRUPT, catalog_pin(fx.catalog, id, &fx.arena, &context, &err), err);
    char text[512];
    assert_true(verify_all(&fx, 0, text) > 0);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    assert_true(bytes > 0);
    ASSERT_CODE(MEMD_ENOCONTEXT, catalog_find(fx.catalog, "book", &id, &err), err);
    assert_int_equal(stats_of(&fx).stored_bytes, 0);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_dump_and_compact(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full"; /* records are counted */
    struct error err = { 0 };
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2000);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    size_t records = 0;
    struct walk_args args = { .limit = 3 };
    unsigned char cursor[LIMIT_CURSOR_BYTES];
    do {
        struct dump_step step;
        ASSERT_OK(catalog_dump(fx.catalog, &args, &fx.arena, &step, &err), err);
        for (size_t i = 0; i < step.record_count; i++) {
            assert_non_null(step.records[i].key);
            assert_true(strstr(step.records[i].summary, "malformed") == NULL);
        }
        records += step.record_count;
        if (step.cursor_bytes > 0) memcpy(cursor, step.cursor, step.cursor_bytes);
        args.cursor = cursor;
        args.cursor_bytes = step.cursor_bytes;
    } while (args.cursor_bytes > 0);
    /* 7 numbers, 1 name, 1 context, 2 chain entries, 2 × (2 × 2 + ids) values, 2 counts, 2 tails */
    assert_int_equal(records, 7 + 1 + 1 + 2 + 10 + 2 + 2);
    char bad = 99;
    args = (struct walk_args){ .cursor = &bad, .cursor_bytes = 1 };
    struct dump_step step;
    ASSERT_CODE(MEMD_EINVAL, catalog_dump(fx.catalog, &args, &fx.arena, &step, &err), err);
    ASSERT_OK(context_truncate(context, 10, &err), err);
    char copy[80];
    snprintf(copy, sizeof copy, "%s-copy", fx.path);
    uint64_t before = 0, after = 0;
    ASSERT_OK(catalog_compact(fx.catalog, copy, &before, &after, &err), err);
    assert_true(after < before);
    ASSERT_CODE(MEMD_EEXIST, catalog_compact(fx.catalog, copy, &before, &after, &err), err);
    fixture_close(&fx);
    fixture_remove(fx.path);
    memcpy(fx.path, copy, sizeof fx.path);
    fixture_open(&fx);
    fixture_expect(&fx, fixture_context(&fx, "book"), 1, 0, 10);
    expect_clean(&fx);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_rules),
        cmocka_unit_test(test_locked),
        cmocka_unit_test(test_fork_shares_and_parts),
        cmocka_unit_test(test_drop_gives_everything_back),
        cmocka_unit_test(test_list_pages),
        cmocka_unit_test(test_residents_are_few),
        cmocka_unit_test(test_residents_are_small),
        cmocka_unit_test(test_eviction_order),
        cmocka_unit_test(test_budget_without_victim),
        cmocka_unit_test(test_map_full),
        cmocka_unit_test(test_corruption_is_found),
        cmocka_unit_test(test_drop_of_a_corrupt_context),
        cmocka_unit_test(test_dump_and_compact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
