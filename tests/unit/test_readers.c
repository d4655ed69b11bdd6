/* SPDX-License-Identifier: Apache-2.0 */
/* test_readers.c — transactions that read what others take away, in the order that hurts: a full
 * store whose freed pages are still read, and a builder that a truncate overtakes.
 *
 * The order is forced where the code passes by: the linker puts functions of this file before
 * store_begin, store_await_readers and yield_timer_start.
 */
#include "tests/unit/builder_fixture.h"

#include <pthread.h>

#include "base/yield_timer.h"
#include "memory/catalog_state.h"

/* What store_await_readers ends: a transaction of the main thread, so that the writer surely waits
 * while it lives. */
static struct store_txn *awaited;
static bool waited_for_it;
static uint64_t wait_ns_max = UINT64_MAX; /* nobody waits for longer */

bool __real_store_await_readers(struct store *store, uint64_t wait_ns);
bool __wrap_store_await_readers(struct store *store, uint64_t wait_ns);

bool __wrap_store_await_readers(struct store *store, uint64_t wait_ns)
{
    if (awaited != NULL && !waited_for_it) {
        waited_for_it = true;
        assert_false(__real_store_await_readers(store, 2000000));
        store_abort(awaited);
    }
    return __real_store_await_readers(store, wait_ns < wait_ns_max ? wait_ns : wait_ns_max);
}

/* Where the builder stands still: it has chosen a segment and is about to read it. */
enum stage { IGNORED, HOLD, HELD, LET_GO };
static pthread_mutex_t stage_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t stage_changed = PTHREAD_COND_INITIALIZER;
static enum stage stage;
static _Thread_local bool is_builder;

static void reach(enum stage next)
{
    pthread_mutex_lock(&stage_lock);
    stage = next;
    pthread_cond_broadcast(&stage_changed);
    pthread_mutex_unlock(&stage_lock);
}

static void await(enum stage wanted)
{
    pthread_mutex_lock(&stage_lock);
    while (stage != wanted) pthread_cond_wait(&stage_changed, &stage_lock);
    pthread_mutex_unlock(&stage_lock);
}

/* Its thread alone has a timer. */
void __real_yield_timer_start(struct yield_timer *timer);
void __wrap_yield_timer_start(struct yield_timer *timer);

void __wrap_yield_timer_start(struct yield_timer *timer)
{
    is_builder = true;
    __real_yield_timer_start(timer);
}

int __real_store_begin(struct store *store, bool write, struct store_txn *ret_txn,
                       struct error *err);
int __wrap_store_begin(struct store *store, bool write, struct store_txn *ret_txn,
                       struct error *err);

int __wrap_store_begin(struct store *store, bool write, struct store_txn *ret_txn,
                       struct error *err)
{
    pthread_mutex_lock(&stage_lock);
    bool hold = stage == HOLD && !write && is_builder;
    pthread_mutex_unlock(&stage_lock);
    if (hold) {
        reach(HELD);
        await(LET_GO);
    }
    return __real_store_begin(store, write, ret_txn, err);
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

/* A full map, of which somebody reads what is dropped then. */
struct full {
    struct fixture fx;
    struct store_txn reader;
    struct context *book; /* of `before` tokens */
    uint64_t before, turns;
};

static void make_full(struct full *full, enum sync_mode sync)
{
    struct fixture *fx = &full->fx;
    struct error err = { 0 };
    *full = (struct full){ .turns = 0 };
    fixture_begin(fx);
    fixture_close(fx);
    fx->config.map_bytes = 8 << 20;
    fx->config.sync = sync;
    fx->config.sync_interval_ms = 3600 * 1000;
    fx->method = "full";
    fixture_open(fx);
    struct context *old = fixture_context(fx, "old"), *book = fixture_context(fx, "book");
    uint64_t freed = 0, id = context_id(old);
    for (uint64_t i = 0; i < 16; i++) assert_int_equal(append(fx, old, i * 1024, 1024), 1);
    fill(fx, book);
    full->before = context_layer_tokens(book, 0);
    full->turns = stats_of(fx).page_turns_total;
    arena_reset(&fx->arena);
    ASSERT_OK(__real_store_begin(fx->catalog->store, false, &full->reader, &err), err);
    ASSERT_OK(catalog_drop(fx->catalog, id, &freed, &err), err);
    assert_true(freed > 16 * 1024 * 2 * 2 * 16 * 2);
    full->book = fixture_context(fx, "book");
}

/* The next append waits for the reader instead of being refused. */
static void full_store(enum sync_mode sync)
{
    struct full full;
    make_full(&full, sync);
    awaited = &full.reader;
    waited_for_it = false;
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t position = context_layer_tokens(full.book, 0);
        assert_int_equal(append(&full.fx, full.book, position, 1024), 1);
    }
    awaited = NULL;
    assert_true(waited_for_it);
    assert_true(stats_of(&full.fx).page_turns_total > full.turns);
    fixture_expect(&full.fx, full.book, 0, 0, full.before + 8 * 1024);
    expect_clean(&full.fx);
    fixture_end(&full.fx);
}

static void test_full_store(void **state)
{
    (void)state;
    stage = IGNORED;
    full_store(SYNC_NEVER);
    full_store(SYNC_INTERVAL);
    full_store(SYNC_ALWAYS);
}

/* A reader that stays (a backup) is waited for once: who appends meanwhile is refused at once, and
 * what it holds is to be had when it has ended. */
static void test_reader_stays(void **state)
{
    (void)state;
    struct full full;
    make_full(&full, SYNC_NEVER);
    wait_ns_max = 1000000;
    for (int i = 0; i < 5; i++)
        assert_int_equal(append(&full.fx, full.book, full.before, 1024), MEMD_EFULL);
    assert_int_equal(stats_of(&full.fx).page_turns_total, full.turns + 1);
    store_abort(&full.reader);
    wait_ns_max = UINT64_MAX;
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(append(&full.fx, full.book, full.before + i * 1024, 1024), 1);
    expect_clean(&full.fx);
    fixture_end(&full.fx);
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

/* The builder chooses a segment; before it reads the rows they are cut away. That is no damage, and
 * no failure. */
static void test_overtaken_builder(void **state)
{
    (void)state;
    static const uint64_t positions[] = { 0, 1, 1023, 1024 };
    for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
        struct fixture fx;
        struct error err = { 0 };
        fixture_begin(&fx);
        struct context *context = fixture_context(&fx, "book");
        reach(HOLD);
        fixture_append(&fx, context, 0, 2500);
        await(HELD);
        ASSERT_OK(context_truncate(context, positions[i], &err), err);
        reach(LET_GO);
        struct build_progress progress = wait_built(&fx, context);
        assert_int_equal(progress.failures, 0);
        assert_int_equal(progress.last_failure, 0);
        assert_int_equal(progress.built, positions[i] / 1024 * 2);
        assert_int_equal(stats_of(&fx).build_failures_total, 0);
        assert_int_equal(stats_of(&fx).damaged_derived_total, 0);
        fixture_append(&fx, context, positions[i], 2500);
        expect_built(&fx, context, (positions[i] + 2500) / 1024 * 2);
        expect_clean(&fx);
        fixture_end(&fx);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_store),
        cmocka_unit_test(test_reader_stays),
        cmocka_unit_test(test_full_of_rows),
        cmocka_unit_test(test_overtaken_builder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
