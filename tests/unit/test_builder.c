/* SPDX-License-Identifier: Apache-2.0 */
/* test_builder.c — derived data comes by itself, is shared by forks, cut by truncates, found again
 * after a restart, and never stands in the way of rows.
 */
#include "tests/unit/builder_fixture.h"

static void test_built_by_itself(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2500);
    struct error err = { 0 };
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    expect_built(&fx, context, 4);
    struct context_info info = stat_of(&fx, context);
    assert_int_equal(info.built_segments, 4);
    assert_int_equal(info.sealed_segments, 4);
    assert_in_range(info.derived_bytes, 4 * 2 * 1024 * 16, info.stored_bytes / 2);
    assert_int_equal(stats_of(&fx).built_segments_total, 4);
    assert_int_equal(stats_of(&fx).build_waiting, 0);
    expect_clean(&fx);
    expect_answers(&fx, context, 0.02);
    fixture_append(&fx, context, 2500, 1700);
    expect_built(&fx, context, 8);
    expect_answers(&fx, context, 0.02);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* Layers of 64 segments and more have their centroids side by side too: counted while they are in
 * memory, and answers are as close, whatever is cut off and comes again. */
static void test_tables(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    for (uint64_t i = 0; i < 21; i++) fixture_append(&fx, context, i * 3 * 1024, 3 * 1024);
    expect_built(&fx, context, 2 * 63);
    assert_int_equal(stats_of(&fx).state_bytes, 0);
    fixture_append(&fx, context, 63 * 1024, 2 * 1024 + 500);
    expect_built(&fx, context, 2 * 65);
    uint64_t bytes = stats_of(&fx).state_bytes;
    assert_in_range(bytes, 2 * 2 * 128 * 64 * (16 + 8), 2 << 22);
    expect_answers(&fx, context, 0.02);
    expect_clean(&fx);
    ASSERT_OK(context_truncate(context, 60 * 1024 + 7, &err), err);
    expect_answers(&fx, context, 0.02);
    fx.salt = 7;
    fixture_append(&fx, context, 60 * 1024 + 7, 5 * 1024);
    expect_built(&fx, context, 2 * 65);
    expect_answers(&fx, context, 0.02);
    assert_int_equal(stats_of(&fx).state_bytes, bytes);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    expect_answers(&fx, context, 0.02); /* with or without tables */
    expect_built(&fx, context, 2 * 65);
    assert_int_equal(stats_of(&fx).state_bytes, bytes);
    expect_answers(&fx, context, 0.02);
    uint64_t id = context_id(context), freed = 0;
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &freed, &err), err);
    assert_int_equal(stats_of(&fx).state_bytes, 0);
    fixture_end(&fx);
}

/* `full` wants nothing. */
static void test_not_wanted(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fx.method = "full";
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2500);
    expect_built(&fx, context, 0);
    assert_int_equal(stat_of(&fx, context).derived_bytes, 0);
    fixture_end(&fx);
}

static void test_shared_by_forks(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct error err = { 0 };
    uint64_t id = 0, tokens = 0, bytes = 0;
    fixture_append(&fx, context, 0, 2500);
    expect_built(&fx, context, 4);
    ASSERT_OK(catalog_fork(fx.catalog, context,
                           &(struct fork_args){ .name = "fork" }, &id, &tokens, &err), err);
    struct context *fork = fixture_context(&fx, "fork");
    expect_built(&fx, fork, 4);
    assert_int_equal(stats_of(&fx).built_segments_total, 4);
    assert_int_equal(stat_of(&fx, fork).derived_bytes, stat_of(&fx, context).derived_bytes);
    expect_answers(&fx, fork, 0.02);
    uint64_t parent = context_id(context);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, parent, &bytes, &err), err);
    fork = fixture_context(&fx, "fork");
    expect_answers(&fx, fork, 0.02);
    expect_clean(&fx);
    arena_reset(&fx.arena);
    ASSERT_OK(catalog_drop(fx.catalog, id, &bytes, &err), err);
    assert_int_equal(stats_of(&fx).stored_bytes, 0);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_truncate(void **state)
{
    (void)state;
    static const uint64_t positions[] = { 0, 1, 1023, 1024, 1500, 2048, 2499 };
    for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
        struct fixture fx;
        fixture_begin(&fx);
        struct context *context = fixture_context(&fx, "book");
        struct error err = { 0 };
        fixture_append(&fx, context, 0, 2500);
        if (i % 2 == 0) expect_built(&fx, context, 4); /* else it may meet the builder */
        ASSERT_OK(context_truncate(context, positions[i], &err), err);
        expect_built(&fx, context, positions[i] / 1024 * 2);
        if (positions[i] > 0) expect_answers(&fx, context, 0.02);
        fx.salt = 5;
        fixture_append(&fx, context, positions[i], 1100);
        expect_built(&fx, context, (positions[i] + 1100) / 1024 * 2);
        expect_answers(&fx, context, 0.02);
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

static void test_restart(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 2500);
    expect_built(&fx, context, 4);
    fixture_restart(&fx);
    context = fixture_context(&fx, "book");
    expect_built(&fx, context, 4);
    assert_int_equal(stats_of(&fx).built_segments_total, 0);
    assert_int_equal(stats_of(&fx).damaged_derived_total, 0);
    expect_answers(&fx, context, 0.02);
    fixture_end(&fx);
}

/* Closed in the middle of the work: the rest is made later. */
static void test_close_while_building(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 9000);
    for (int i = 0; i < 3; i++) fixture_restart(&fx);
    struct context *context = fixture_context(&fx, "book");
    expect_built(&fx, context, 16);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* A budget that rows alone fit into: they are taken, planes are not. */
static void test_rows_come_first(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct rebuild_step step;
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 4300);
    expect_built(&fx, context, 8);
    struct context_info info = stat_of(&fx, context);
    /* All rows, four and a half of eight segments' planes, and a tenth. */
    uint64_t planes = info.derived_bytes / 8;
    fx.config.budget_bytes = (info.stored_bytes - 7 * planes / 2) / 9 * 10;
    catalog_reconfigure(fx.catalog, &fx.config);
    struct walk_args walk = { .context_id = context_id(context) };
    ASSERT_OK(catalog_rebuild(fx.catalog, &walk, &fx.arena, &step, &err), err);
    struct build_progress progress = wait_built(&fx, context);
    assert_int_equal(progress.segments, 8);
    assert_int_equal(progress.built, 4);
    assert_int_equal(progress.last_failure, MEMD_EFULL);
    fixture_append(&fx, context, 4300, 100);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    assert_int_equal(stats_of(&fx).commit_failures_total, 0);
    fixture_expect(&fx, context, 1, 0, 4400);
    expect_answers(&fx, context, 0.02);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_recall(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    struct recall_layer layer = { 0 };
    fixture_begin(&fx);
    struct context *context = fixture_context(&fx, "book");
    struct recall_args args = { .context_id = context_id(context), .layer = 1,
                                .target_error = NAN };
    ASSERT_OK(catalog_recall(fx.catalog, &args, &fx.arena, &layer, &err), err);
    assert_int_equal(layer.queries, 0);
    fixture_append(&fx, context, 0, 4200);
    expect_built(&fx, context, 8);
    float o[QUERIES * 4 * 64];
    struct quality quality;
    ask(&fx, context, -1, o, &quality);
    ASSERT_OK(catalog_recall(fx.catalog, &args, &fx.arena, &layer, &err), err);
    assert_int_equal(layer.queries, QUERIES);
    assert_int_equal(layer.answers, QUERIES * 4);
    assert_int_equal(layer.tokens, 4200);
    assert_int_equal(layer.bytes_exact, layer.queries * 4200 * 2 * 2 * 16 * 2);
    assert_true(layer.error_p50 <= layer.error_p90 && layer.error_p90 <= layer.error_max);
    assert_true(layer.error_max <= 0.06);
    assert_true(layer.within_twice >= 0.5);
    double mass = 0;
    for (int i = 0; i < INDEX_LEVELS; i++) mass += layer.mass[i];
    assert_true(fabs(mass - 1) < 0.05);
    args.target_error = 0;
    ASSERT_OK(catalog_recall(fx.catalog, &args, &fx.arena, &layer, &err), err);
    assert_true(layer.error_max == 0 && layer.predicted_mean == 0 && layer.within_twice == 1);
    assert_int_equal(layer.bytes_read, layer.bytes_exact);
    args.layer = 2;
    ASSERT_CODE(MEMD_EINVAL, catalog_recall(fx.catalog, &args, &fx.arena, &layer, &err), err);
    fixture_end(&fx);
}

/* A fixture without an open catalog, over a directory that an older build wrote (tests/golden). */
static void begin_old(struct fixture *fx, const char *name)
{
    struct error err = { 0 };
    fixture_begin(fx);
    catalog_close(fx->catalog);
    fx->catalog = NULL;
    const char *root = getenv("MEMD_SOURCE_ROOT");
    char from[512], to[128], data[4096];
    snprintf(from, sizeof from, "%s/tests/golden/%s", root == NULL ? "." : root, name);
    snprintf(to, sizeof to, "%s/data.mdb", fx->path);
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    if (in == NULL || out == NULL) fail_msg("cannot copy %s", from);
    for (size_t got; (got = fread(data, 1, sizeof data, in)) > 0;)
        assert_int_equal(fwrite(data, 1, got, out), got);
    fclose(in);
    assert_int_equal(fclose(out), 0);
    fx->model = (struct model){
        .layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 8, .dtype = DTYPE_FP16
    };
    ASSERT_OK(model_check(&fx->model, &err), err);
}

/* A directory of format version 1 is read, continued, and from then on version 3. Its contexts keep
 * their method, `full`. */
static void test_version_1(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    begin_old(&fx, "store_v1.mdb");
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(catalog_open(&fx.config, &fx.catalog, &err), err);
        expect_clean(&fx);
        struct context *book = fixture_context(&fx, "book");
        assert_int_equal(context_tokens(book), i == 0 ? 1100 : 2100);
        fixture_expect(&fx, book, 0, 0, context_tokens(book));
        if (i == 0) fixture_append(&fx, book, 1100, 1000);
        expect_built(&fx, book, 0);
        struct context *fresh = fixture_context(&fx, "fresh");
        if (i == 0) fixture_append(&fx, fresh, 0, 1100);
        expect_built(&fx, fresh, 1);
        expect_clean(&fx);
        fixture_close(&fx);
    }
    fx.catalog = NULL;
    fixture_end(&fx);
}

/* One of version 2: `book` with planes, `asked` with kept queries and the index that was made of
 * them. Nothing of it is made anew. */
static void test_version_2(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    begin_old(&fx, "store_v2.mdb");
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(catalog_open(&fx.config, &fx.catalog, &err), err);
        expect_clean(&fx);
        struct context *book = fixture_context(&fx, "book");
        assert_int_equal(context_tokens(book), i == 0 ? 1100 : 2100);
        fixture_expect(&fx, book, 0, 0, context_tokens(book));
        expect_built(&fx, book, i == 0 ? 1 : 2);
        assert_int_equal(stats_of(&fx).built_segments_total, 0);
        if (i == 0) fixture_append(&fx, book, 1100, 1000);
        expect_built(&fx, book, 2);
        fx.method = "retrieval-attention";
        struct context *asked = fixture_context(&fx, "asked");
        fx.method = "";
        fixture_expect(&fx, asked, 0, 0, 1030);
        struct build_progress progress = wait_built(&fx, asked);
        assert_int_equal(progress.indexes, 1);
        assert_int_equal(progress.built_indexes, 1);
        assert_int_equal(stats_of(&fx).built_indexes_total, 0);
        assert_int_equal(stats_of(&fx).damaged_derived_total, 0);
        expect_clean(&fx);
        fixture_close(&fx);
    }
    fx.catalog = NULL;
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_built_by_itself), cmocka_unit_test(test_not_wanted),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_shared_by_forks), cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_restart),         cmocka_unit_test(test_close_while_building),
        cmocka_unit_test(test_rows_come_first), cmocka_unit_test(test_recall),
        cmocka_unit_test(test_version_1),       cmocka_unit_test(test_version_2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
