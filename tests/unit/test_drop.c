/* SPDX-License-Identifier: Apache-2.0 */
/* test_drop.c — drops that fail half-way: the name is gone, and the rows follow by themselves, as
 * soon as the store lets them, from an eviction as from a client or from a process before.
 *
 * The linker puts the functions below in front of memd's: one that removes rows from a chain and
 * fails while the test says so, as on a disk that is full or at damaged pages, and a clock that
 * goes when the test says so. A store with a damaged page: tests/daemon/test_damage.py.
 */
#include "tests/unit/builder_fixture.h"

#include <stdatomic.h>

#include "base/clock.h"
#include "memory/chain.h"

enum { DAMAGED = -30796 /* MDB_CORRUPTED */ };

#define MS UINT64_C(1000000)
#define DAY_NS (24 * 3600 * 1000 * MS)

static atomic_bool fails;
static _Atomic uint64_t damaged; /* contexts up to this id */
static atomic_uint tries;
static _Atomic uint64_t now_ns;

uint64_t __real_chain_cut(struct store_txn *txn, const struct chain_key *first, uint64_t limit,
                          int64_t *delta);
uint64_t __wrap_chain_cut(struct store_txn *txn, const struct chain_key *first, uint64_t limit,
                          int64_t *delta);
uint64_t __wrap_clock_monotonic_ns(void);
uint64_t __real_clock_monotonic_ns(void);

uint64_t __wrap_chain_cut(struct store_txn *txn, const struct chain_key *first, uint64_t limit,
                          int64_t *delta)
{
    bool spoilt = first->context <= atomic_load(&damaged);
    if (!atomic_load(&fails) && !spoilt) return __real_chain_cut(txn, first, limit, delta);
    atomic_fetch_add(&tries, 1);
    store_fail(txn, spoilt ? DAMAGED : ENOSPC);
    return limit;
}

uint64_t __wrap_clock_monotonic_ns(void)
{
    return atomic_load(&now_ns);
}

/* Whatever the writer is waiting for by the clock is a day away, but not for memd. */
static void begin(struct fixture *fx, uint64_t budget_bytes)
{
    atomic_store(&fails, false);
    atomic_store(&damaged, 0);
    atomic_store(&tries, 0);
    atomic_store(&now_ns, __real_clock_monotonic_ns() + DAY_NS);
    fixture_begin(fx);
    fx->method = "full";
    fx->config.budget_bytes = budget_bytes;
    fixture_restart(fx);
}

static bool exists(struct fixture *fx, const char *name)
{
    uint64_t id = 0;
    return catalog_find(fx->catalog, name, &id, NULL) == 0;
}

/* Give the writer a turn, and be there when it is over. */
static void turn(struct fixture *fx)
{
    struct error err = { 0 };
    for (int i = 0; i < 2; i++) ASSERT_OK(catalog_sync(fx->catalog, &err), err);
}

static void fill(struct fixture *fx, const char *name)
{
    fixture_append(fx, fixture_context(fx, name), 0, 2048); /* 540 kB */
    turn(fx);
    arena_reset(&fx->arena);
}

/* What an attempt costs: the step, and the step again after pages were turned. */
static unsigned attempts(void)
{
    unsigned count = atomic_load(&tries);
    assert_int_equal(count % 2, 0);
    return count / 2;
}

/* Tried at once, and then after 100 ms, 200 ms, … a minute, whatever happens in between. */
static void test_waits(void **state)
{
    (void)state;
    struct fixture fx;
    struct error err = { 0 };
    uint64_t id = 0, bytes = 0;
    begin(&fx, 0);
    fill(&fx, "book");
    ASSERT_OK(catalog_find(fx.catalog, "book", &id, &err), err);
    uint64_t stored = stats_of(&fx).stored_bytes;
    atomic_store(&fails, true);
    ASSERT_CODE(MEMD_EFULL, catalog_drop(fx.catalog, id, &bytes, &err), err);
    assert_false(exists(&fx, "book"));
    ASSERT_CODE(MEMD_ENOCONTEXT, catalog_drop(fx.catalog, id, &bytes, &err), err);
    assert_int_equal(attempts(), 1);
    uint64_t wait_ms = 100;
    for (unsigned i = 1; i < 15; i++) {
        atomic_fetch_add(&now_ns, wait_ms * MS - 1);
        turn(&fx);
        if (attempts() != i)
            fail_msg("%u attempts before %llu ms were over, expected %u", attempts(),
                     (unsigned long long)wait_ms, i);
        atomic_fetch_add(&now_ns, 1);
        turn(&fx);
        if (attempts() != i + 1)
            fail_msg("%u attempts after %llu ms, expected %u", attempts(),
                     (unsigned long long)wait_ms, i + 1);
        wait_ms = wait_ms * 2 > 60000 ? 60000 : wait_ms * 2;
    }
    fill(&fx, "book"); /* the name is free */
    assert_true(stats_of(&fx).stored_bytes > stored);
    atomic_store(&fails, false);
    atomic_fetch_add(&now_ns, wait_ms * MS);
    turn(&fx);
    assert_int_equal(stats_of(&fx).stored_bytes, stored); /* of one book */
    assert_int_equal(stats_of(&fx).commit_failures_total, attempts());
    fixture_expect(&fx, fixture_context(&fx, "book"), 1, 0, 2048);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* An eviction that fails takes no second context, and goes on with the first. */
static void test_eviction(void **state)
{
    (void)state;
    struct fixture fx;
    begin(&fx, 1200000);
    fill(&fx, "first");
    fill(&fx, "second");
    atomic_store(&fails, true);
    fill(&fx, "third"); /* 1.6 MB */
    assert_false(exists(&fx, "first"));
    assert_int_equal(attempts(), 1);
    for (int i = 0; i < 5; i++) turn(&fx);
    assert_true(exists(&fx, "second"));
    assert_true(exists(&fx, "third"));
    assert_int_equal(attempts(), 1);
    assert_int_equal(stats_of(&fx).evicted_contexts_total, 1);
    assert_true(stats_of(&fx).stored_bytes > 1200000);
    expect_clean(&fx);
    atomic_store(&fails, false);
    atomic_fetch_add(&now_ns, 100 * MS);
    turn(&fx);
    uint64_t stored = stats_of(&fx).stored_bytes;
    if (stored > 1200000) fail_msg("%llu bytes are stored", (unsigned long long)stored);
    fill(&fx, "fourth"); /* and evictions go on: of one more or two, as commits were cut */
    assert_false(exists(&fx, "second"));
    assert_true(exists(&fx, "fourth"));
    assert_true(stats_of(&fx).evicted_contexts_total > 1);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* Two at once, and a process that finds them and cannot do it either. */
static void test_restart(void **state)
{
    (void)state;
    static const char *const names[] = { "a", "b", "c" };
    struct fixture fx;
    struct error err = { 0 };
    uint64_t id = 0, bytes = 0, stored = 0;
    begin(&fx, 0);
    for (size_t i = 0; i < 3; i++) {
        fill(&fx, names[i]);
        if (i == 0) stored = stats_of(&fx).stored_bytes;
    }
    atomic_store(&fails, true);
    for (size_t i = 1; i < 3; i++) {
        ASSERT_OK(catalog_find(fx.catalog, names[i], &id, &err), err);
        ASSERT_CODE(MEMD_EFULL, catalog_drop(fx.catalog, id, &bytes, &err), err);
    }
    fixture_restart(&fx);
    assert_int_equal(attempts(), 4);
    assert_true(exists(&fx, "a"));
    assert_false(exists(&fx, "b") || exists(&fx, "c"));
    assert_true(stats_of(&fx).stored_bytes > 2 * stored);
    atomic_store(&fails, false);
    atomic_fetch_add(&now_ns, 100 * MS);
    turn(&fx);
    assert_int_equal(stats_of(&fx).stored_bytes, stored);
    fixture_expect(&fx, fixture_context(&fx, "a"), 0, 0, 2048);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* The second attempt settles it: others are evicted then, and the process after tries again. */
static void test_damaged(void **state)
{
    (void)state;
    struct fixture fx;
    begin(&fx, 1500000);
    fill(&fx, "first");
    fill(&fx, "second");
    atomic_store(&damaged, 1);
    fill(&fx, "third");
    assert_false(exists(&fx, "first"));
    assert_int_equal(atomic_load(&tries), 1);
    assert_int_equal(stats_of(&fx).damaged_drops, 0);
    atomic_fetch_add(&now_ns, 100 * MS - 1);
    turn(&fx);
    assert_true(exists(&fx, "second"));
    assert_int_equal(atomic_load(&tries), 1);
    atomic_fetch_add(&now_ns, 1);
    turn(&fx);
    assert_int_equal(atomic_load(&tries), 2);
    assert_int_equal(stats_of(&fx).damaged_drops, 1);
    assert_false(exists(&fx, "second"));
    assert_true(exists(&fx, "third"));
    assert_int_equal(stats_of(&fx).evicted_contexts_total, 2);
    assert_true(stats_of(&fx).stored_bytes < 1500000);
    atomic_fetch_add(&now_ns, DAY_NS); /* no timer is set */
    turn(&fx);
    assert_int_equal(atomic_load(&tries), 2);
    fixture_restart(&fx);
    assert_int_equal(atomic_load(&tries), 3);
    assert_int_equal(stats_of(&fx).damaged_drops, 1);
    atomic_store(&damaged, 0);
    fixture_restart(&fx);
    assert_int_equal(stats_of(&fx).damaged_drops, 0);
    expect_clean(&fx);
    fixture_end(&fx);
}

/* Where no drop gives anything back, eviction ends before everything is lost. */
static void test_damaged_all(void **state)
{
    (void)state;
    enum { CONTEXTS = 12, LOST_MAX = 8 };
    struct fixture fx;
    char name[2] = "a";
    begin(&fx, 0);
    for (; name[0] < 'a' + CONTEXTS; name[0]++) fill(&fx, name);
    atomic_store(&damaged, CONTEXTS);
    fx.config.budget_bytes = 1200000;
    fixture_restart(&fx);
    for (int i = 0; i < 2 * CONTEXTS; i++) {
        turn(&fx);
        atomic_fetch_add(&now_ns, 100 * MS);
    }
    assert_int_equal(stats_of(&fx).damaged_drops, LOST_MAX);
    assert_int_equal(stats_of(&fx).evicted_contexts_total, LOST_MAX);
    for (int i = 0; i < CONTEXTS; i++) {
        name[0] = (char)('a' + i);
        assert_int_equal(exists(&fx, name), i >= LOST_MAX);
    }
    fixture_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waits),       cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_restart),     cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_damaged_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
