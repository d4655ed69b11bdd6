/* SPDX-License-Identifier: Apache-2.0 */
/* test_columns_damage.c — columns and states that a disk has spoilt: an error for whoever reads
 * them, a finding for verify, never data. And small values, which move although nothing is wrong.
 */
#include "tests/unit/method_fixture.h"

#include "memory/block.h"
#include "memory/record.h"
#include "memory/store.h"
#include "tests/unit/builder_fixture.h"

METHOD_TABLE(METHOD_FIXTURES);

/* A store that moves every value about, as one with large pages moves ids. */
bool __wrap_store_may_move(const struct store *store, size_t value_bytes);
bool __real_store_may_move(const struct store *store, size_t value_bytes);
static bool all_may_move;

bool __wrap_store_may_move(const struct store *store, size_t value_bytes)
{
    return all_may_move || __real_store_may_move(store, value_bytes);
}

/* A bit of the columns of each sealed segment. */
static void check_damage(const char *method)
{
    struct fixture fx;
    struct error err = { 0 };
    struct answer answer;
    method_begin(&fx, method);
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 1100);
    fixture_close(&fx);
    char name[128];
    snprintf(name, sizeof name, "%s/data.mdb", fx.path);
    FILE *file = fopen(name, "r+b");
    assert_non_null(file);
    static unsigned char data[4 << 20];
    size_t bytes = fread(data, 1, sizeof data, file), at = 0, found = 0;
    for (; at + 48 < bytes; at++) {
        if (memcmp(data + at, "MEMV\x03\x0a", 6) != 0) continue;
        assert_int_equal(fseek(file, (long)at + 48 + 700, SEEK_SET), 0);
        assert_int_not_equal(fputc(data[at + 48 + 700] ^ 1, file), EOF);
        found++;
    }
    assert_int_equal(fclose(file), 0);
    assert_true(found >= 2); /* a page that was copied on write holds it too */
    fixture_open(&fx);
    char text[256];
    assert_int_equal(verify(&fx, text), 2);
    if (strstr(text, "columns") == NULL && strstr(text, "kind 10") == NULL) fail_msg("%s", text);
    struct context *context = fixture_context(&fx, "book");
    ASSERT_CODE(MEMD_ECORRUPT, fixture_attend(&fx, context, 0, UINT64_MAX, &answer, &err), err);
    assert_non_null(strstr(err.text, "kind 10"));
    assert_true(stats_of(&fx).checksum_failures_total > 0);
    fixture_end(&fx);
}

static void test_damage(void **state)
{
    (void)state;
    check_damage("test-marks");
    check_damage("test-both");
    check_damage("test-planes");
}

/* Open the store of a closed catalog to spoil it. */
static struct store *open_store(const struct fixture *fx, struct store_txn *txn)
{
    struct store_config config = { fx->path, fx->config.map_bytes, STORE_LAZY, "test" };
    struct store *store = NULL;
    struct error err = { 0 };
    ASSERT_OK(store_open(&config, &store, &err), err);
    ASSERT_OK(store_begin(store, true, txn, &err), err);
    return store;
}

static void close_store(struct store *store, struct store_txn *txn)
{
    struct error err = { 0 };
    ASSERT_OK(store_commit(txn, &err), err);
    store_close(store);
}

/* A segment without its columns, and one with columns of another size. */
static void test_spoilt_segments(void **state)
{
    (void)state;
    for (int other = 0; other < 2; other++) {
        struct fixture fx;
        struct error err = { 0 };
        struct answer answer;
        struct store_txn txn;
        method_begin(&fx, "test-marks");
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 1024);
        struct block_shape shape;
        block_shape_init(context_model(context), COLUMNS_MARKS, 0, &shape);
        fixture_close(&fx);
        struct store *store = open_store(&fx, &txn);
        unsigned char key[FORMAT_KEY_BYTES_MAX], value[48 + 2048] = { 0 };
        struct slice name = { key, format_key_segment(1, 0, FORMAT_KIND_COLUMNS, key) };
        assert_true(store_delete(&txn, STORE_SEGMENTS, name));
        format_seal(&(struct value_header){ .kind = FORMAT_KIND_COLUMNS, .tokens = 1024,
                                            .payload_bytes = 2048,
                                            .model_hash = shape.model_hash }, value);
        if (other) store_put(&txn, STORE_SEGMENTS, name, (struct slice){ value, sizeof value });
        close_store(store, &txn);
        fixture_open(&fx);
        char text[256];
        assert_true(verify(&fx, text) >= 2); /* bytes of the segment do not fit either */
        const char *expected = other ? "kind 10: it has 2096 bytes, the context keeps 1072"
                                     : "kind 10 is missing";
        if (strstr(text, expected) == NULL) fail_msg("%s", text);
        ASSERT_CODE(MEMD_ECORRUPT, fixture_attend(&fx, fixture_context(&fx, "book"), 0, UINT64_MAX,
                                                  &answer, &err), err);
        assert_non_null(strstr(err.text, other ? "2096 bytes" : "is missing"));
        fixture_end(&fx);
    }
}

/* A tail whose tokens have other columns than the context, or rows where it keeps states. */
static void check_spoilt_tail(const char *method, uint32_t columns, size_t width)
{
    struct fixture fx;
    struct error err = { 0 };
    struct store_txn txn;
    method_begin(&fx, method);
    struct context *context = fixture_context(&fx, "book");
    fixture_append(&fx, context, 0, 5);
    struct block_shape shape;
    block_shape_init(context_model(context), columns, width, &shape);
    fixture_close(&fx);
    unsigned char key[FORMAT_KEY_BYTES_MAX], *value = malloc(block_tail_bytes(&shape, 5, false));
    struct block_cache cache;
    block_cache_init(&cache, 0);
    struct block *block = block_new(&cache, &shape);
    assert_non_null(block);
    memset(block->data, 0, block->bytes);
    block_tail_encode(block, &shape, 0, 5, false, value);
    struct store *store = open_store(&fx, &txn);
    store_put(&txn, STORE_TAILS, (struct slice){ key, format_key_tail(1, 0, 0, key) },
              (struct slice){ value, block_tail_bytes(&shape, 5, false) });
    close_store(store, &txn);
    block_put(block);
    block_cache_fini(&cache);
    free(value);
    fixture_open(&fx);
    char text[256];
    assert_true(verify(&fx, text) > 0);
    if (strstr(text, "something else than the context keeps") == NULL) fail_msg("%s", text);
    struct open_args args = { .name = "book", .method = "" };
    bool created = false;
    ASSERT_CODE(MEMD_ECORRUPT,
                catalog_open_context(fx.catalog, &args, &fx.arena, &context, &created, &err), err);
    assert_non_null(strstr(err.text, "belongs to another value"));
    fixture_end(&fx);
}

static void test_spoilt_tails(void **state)
{
    (void)state;
    check_spoilt_tail("test-both", COLUMNS_MARKS, 0);
    check_spoilt_tail("test-both", COLUMNS_NONE, 0);
    check_spoilt_tail("test-states", COLUMNS_NONE, 0);
    check_spoilt_tail("test-states", COLUMNS_NONE, 48);
    check_spoilt_tail("full", COLUMNS_MARKS, 0);
}

/* A store that another build has made: the record names a method that this one lacks. */
static void check_foreign(const char *method)
{
    struct fixture fx;
    struct error err = { 0 };
    struct store_txn txn;
    method_begin(&fx, method);
    fixture_append(&fx, fixture_context(&fx, "book"), 0, 1100);
    fixture_close(&fx);
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    struct slice name = { key, format_key_id(1, key) }, value;
    struct record *record = malloc(sizeof *record);
    unsigned char *changed = malloc(RECORD_BYTES_MAX);
    assert_true(record != NULL && changed != NULL);
    struct store *store = open_store(&fx, &txn);
    assert_true(store_get(&txn, STORE_CONTEXTS, name, &value));
    ASSERT_OK(record_decode(value.data, value.bytes, record, &err), err);
    snprintf(record->method, sizeof record->method, "from-elsewhere");
    store_put(&txn, STORE_CONTEXTS, name,
              (struct slice){ changed, record_encode(record, changed) });
    close_store(store, &txn);
    free(record);
    free(changed);
    fixture_open(&fx);
    for (uint64_t id = 0; id < 2; id++) {
        struct verify_step step = { 0 };
        struct walk_args args = { .context_id = id };
        ASSERT_OK(catalog_verify(fx.catalog, &args, &fx.arena, &step, &err), err);
        assert_int_equal(step.cursor_bytes, 0);
        if (step.finding_count > 0) fail_msg("%s: %s", method, step.findings[0]);
        assert_int_equal(step.unchecked_count, 1);
        assert_string_equal(step.unchecked[0],
                            "context 1 \"book\": what it keeps of a token: method "
                            "from-elsewhere is not in this build");
    }
    fixture_end(&fx);
}

static void test_a_method_of_another_build(void **state)
{
    (void)state;
    check_foreign("test-states");
    check_foreign("test-both");
    check_foreign("full");
}

/* Small values move inside the file whenever their page is written; what a reader was given must
 * not. */
static void test_marks_stay_while_pages_move(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    method_begin(&fx, "test-marks");
    struct context *first = fixture_context(&fx, "first");
    fixture_append(&fx, first, 0, 2100);
    ASSERT_OK(catalog_sync(fx.catalog, &err), err);
    method_expect(&fx, first, UINT64_MAX); /* mapped */
    for (int i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "other-%d", i);
        fx.salt = 7;
        struct context *other = fixture_context(&fx, name);
        fixture_append(&fx, other, 0, 1024);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        fx.salt = 1;
        method_expect(&fx, first, UINT64_MAX);
    }
    fixture_end(&fx);
}

static void test_everything_moves(void **state)
{
    (void)state;
    static const char *const methods[] = { "full", "test-marks", "test-both", "test-planes" };
    all_may_move = true;
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        struct fixture fx;
        struct error err = { 0 };
        method_begin(&fx, methods[i]);
        struct context *context = fixture_context(&fx, "book");
        fixture_append(&fx, context, 0, 2100);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        for (int restarted = 0; restarted < 2; restarted++) {
            fixture_expect(&fx, context, 0, 0, 2100);
            if (fx.columns != 0) method_expect(&fx, context, UINT64_MAX);
            fixture_restart(&fx);
            context = fixture_context(&fx, "book");
        }
        ASSERT_OK(context_truncate(context, 1500, &err), err);
        fixture_append(&fx, context, 1500, 600);
        ASSERT_OK(catalog_sync(fx.catalog, &err), err);
        fixture_expect(&fx, context, 1, 0, 2100);
        if (fx.columns != 0) method_expect(&fx, context, UINT64_MAX);
        fixture_end(&fx);
    }
    all_may_move = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_spoilt_segments),
        cmocka_unit_test(test_spoilt_tails),
        cmocka_unit_test(test_a_method_of_another_build),
        cmocka_unit_test(test_marks_stay_while_pages_move),
        cmocka_unit_test(test_everything_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
