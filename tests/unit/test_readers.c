/* SPDX-License-Identifier: Apache-2.0 */
/* test_readers.c — a transaction that reads what others take away: in a full store, rows wait.
 *
 * The order is forced where the code passes by: the linker puts a function of this file before
 * store_await_readers.
 */
#include "tests/unit/builder_fixture.h"

#include "memory/catalog_state.h"

/* What store_await_readers ends: a transaction of the main thread, so that the writer surely waits
 * while it lives. */
static struct store_txn *awaited;
static bool waited_for_it;

bool __real_store_await_readers(struct store *store, uint64_t wait_ns);
bool __wrap_store_await_readers(struct store *store, uint64_t wait_ns);

bool __wrap_store_await_readers(struct store *store, uint64_t wait_ns)
{
    if (awaited != NULL && !waited_for_it) {
        waited_for_it = true;
        assert_false(__real_store_await_readers(store, 2000000));
        store_abort(awaited);
    }
    return __real_store_await_readers(store, wait_ns);
}

static int append(struct fixture *fx, struct context *context, uint64_t position, size_t count)
{
    struct error err = { 0 };
    struct progress progress;
    ASSERT_OK(fixture_append_layer(fx, context, (struct place){ 0, position }, count, &progress,
                                   &err), err);
    return fixture_reach(fx, context, progress.sequence, DURABLE_COMMITTED, &err);
}

static void fill(struct fixture *fx, struct context *context)
{
    int rc = 1;
    while (rc == 1) rc = append(fx, context, context_layer_tokens(context, 0), 1024);
    assert_int_equal(rc, MEMD_EFULL);
}

/* A full map. What a drop frees is read by somebody who began before: the next append waits for
 * him instead of being refused. */
static void full_store(enum sync_mode sync)
{
    struct fixture fx;
    struct error err = { 0 };
    fixture_begin(&fx);
    fixture_close(&fx);
    fx.config.map_bytes = 8 << 20;
    fx.config.sync = sync;
    fx.config.sync_interval_ms = 3600 * 1000;
    fx.method = "full";
    fixture_open(&fx);
    struct context *old = fixture_context(&fx, "old"), *book = fixture_context(&fx, "book");
    uint64_t freed = 0, id = context_id(old);
    for (uint64_t i = 0; i < 16; i++) assert_int_equal(append(&fx, old, i * 1024, 1024), 1);
    fill(&fx, book);
    uint64_t before = context_layer_tokens(book, 0), turns = stats_of(&fx).page_turns_total;
    arena_reset(&fx.arena);
    struct store_txn reader = { 0 };
    ASSERT_OK(store_begin(fx.catalog->store, false, &reader, &err), err);
    ASSERT_OK(catalog_drop(fx.catalog, id, &freed, &err), err);
    assert_true(freed > 16 * 1024 * 2 * 2 * 16 * 2);
    awaited = &reader;
    waited_for_it = false;
    book = fixture_context(&fx, "book");
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t position = context_layer_tokens(book, 0);
        assert_int_equal(append(&fx, book, position, 1024), 1);
    }
    awaited = NULL;
    assert_true(waited_for_it);
    assert_true(stats_of(&fx).page_turns_total > turns);
    fixture_expect(&fx, book, 0, 0, before + 8 * 1024);
    expect_clean(&fx);
    fixture_end(&fx);
}

static void test_full_store(void **state)
{
    (void)state;
    full_store(SYNC_NEVER);
    full_store(SYNC_INTERVAL);
    full_store(SYNC_ALWAYS);
}

/* In a store that is simply full nothing is turned or waited for. */
static void test_full_of_rows(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_begin(&fx);
    fixture_close(&fx);
    fx.config.map_bytes = 4 << 20;
    fx.method = "full";
    fixture_open(&fx);
    struct context *book = fixture_context(&fx, "book");
    fill(&fx, book);
    uint64_t turns = stats_of(&fx).page_turns_total;
    for (int i = 0; i < 5; i++) fill(&fx, book);
    assert_int_equal(stats_of(&fx).page_turns_total, turns);
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_store),
        cmocka_unit_test(test_full_of_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
