/* SPDX-License-Identifier: Apache-2.0 */
/* test_store.c — transactions with a sticky error, cursors, a full map; and power cuts, played
 * by mixing pages of the file as it was at the last sync with pages of the file as it would have
 * become.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "memory/store.h"
#include "memory/store_pages.h"
#include "tests/random.h"

enum { KEYS = 200, PAGE = 4096, ROUNDS = 30 };

struct place {
    char path[64];
};

static void make_place(struct place *place)
{
    snprintf(place->path, sizeof place->path, "/tmp/memd-test-XXXXXX");
    assert_non_null(mkdtemp(place->path));
}

static void remove_place(const struct place *place)
{
    static const char *const files[] = { "data.mdb", "lock.mdb", "synced" };
    char name[128];
    for (size_t i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s/%s", place->path, files[i]);
        unlink(name);
    }
    assert_int_equal(rmdir(place->path), 0);
}

static struct store *open_store(const struct place *place, enum store_mode mode,
                                const char *boot_id)
{
    struct store_config config = { place->path, 64 << 20, mode, boot_id };
    struct store *store = NULL;
    struct error err = { 0 };
    if (store_open(&config, &store, &err) < 0) fail_msg("%s", err.text);
    return store;
}

static struct slice text(const char *string)
{
    return (struct slice){ string, strlen(string) };
}

static void test_transactions(void **state)
{
    (void)state;
    struct place place;
    make_place(&place);
    struct store *store = open_store(&place, STORE_LAZY, "a");
    struct store_txn txn;
    struct slice value;
    struct error err = { 0 };
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    store_put(&txn, STORE_NAMES, text("b"), text("2"));
    store_put(&txn, STORE_NAMES, text("d"), text("4"));
    assert_int_equal(store_commit(&txn, &err), 0);
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    store_put(&txn, STORE_NAMES, text("c"), text("3"));
    store_put(&txn, STORE_NAMES, text(""), text("no key")); /* fails, and sticks */
    store_put(&txn, STORE_NAMES, text("e"), text("5"));
    assert_false(store_get(&txn, STORE_NAMES, text("b"), &value));
    assert_true(store_failed(&txn, &err) < 0);
    assert_true(store_commit(&txn, &err) < 0);
    store_abort(&txn); /* harmless */
    assert_int_equal(store_begin(store, false, &txn, &err), 0);
    assert_true(store_get(&txn, STORE_NAMES, text("b"), &value));
    assert_memory_equal(value.data, "2", 1);
    assert_false(store_get(&txn, STORE_NAMES, text("c"), &value));
    assert_int_equal(store_failed(&txn, &err), 0); /* absent is no failure */
    assert_int_equal(store_count(&txn, STORE_NAMES), 2);
    struct store_cursor cursor;
    assert_true(store_seek(&txn, STORE_NAMES, text("c"), &cursor));
    assert_memory_equal(cursor.key.data, "d", 1);
    assert_false(store_next(&cursor));
    store_cursor_close(&cursor);
    assert_true(store_seek_before(&txn, STORE_NAMES, text("d"), &cursor));
    assert_memory_equal(cursor.key.data, "b", 1);
    store_cursor_close(&cursor);
    assert_true(store_seek_before(&txn, STORE_NAMES, text("z"), &cursor));
    assert_memory_equal(cursor.key.data, "d", 1);
    store_cursor_close(&cursor);
    assert_false(store_seek_before(&txn, STORE_NAMES, text("a"), &cursor));
    store_cursor_close(&cursor);
    store_abort(&txn);
    store_close(store);
    remove_place(&place);
}

/* Is `bytes` free in values of `value_bytes`? */
static struct store_free find_free(struct store *store, size_t value_bytes, uint64_t bytes)
{
    struct store_free found;
    store_find_free(store, &(struct store_ask){ value_bytes, bytes, bytes }, &found);
    return found;
}

/* However often a transaction changes its mind, what it leaves can be deleted. */
static void test_shorter(void **state)
{
    (void)state;
    static const size_t sizes[] = { 30000, 20000, 5000, 4090, 1500, 10 };
    static const unsigned char bytes[30000] = { 1 };
    struct place place;
    make_place(&place);
    struct store *store = open_store(&place, STORE_LAZY, "a");
    struct store_txn txn;
    struct error err = { 0 };
    for (size_t i = 0; i + 1 < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(store_begin(store, true, &txn, &err), 0);
        store_put(&txn, STORE_NOTES, text("a"), (struct slice){ bytes, sizes[i] });
        store_put(&txn, STORE_NOTES, text("a"), (struct slice){ bytes, sizes[i + 1] });
        assert_int_equal(store_commit(&txn, &err), 0);
        assert_int_equal(store_begin(store, true, &txn, &err), 0);
        assert_true(store_delete(&txn, STORE_NOTES, text("a")));
        assert_int_equal(store_commit(&txn, &err), 0);
    }
    store_close(store);
    remove_place(&place);
}

static void test_full_map(void **state)
{
    (void)state;
    struct place place;
    make_place(&place);
    struct store *store = open_store(&place, STORE_LAZY, "a");
    struct error err = { 0 };
    size_t bytes = 1 << 20;
    char *large = calloc(1, bytes);
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < 200; i++) {
        struct store_txn txn;
        assert_int_equal(store_begin(store, true, &txn, &err), 0);
        store_put(&txn, STORE_SEGMENTS, (struct slice){ &i, sizeof i },
                  (struct slice){ large, bytes });
        rc = store_commit(&txn, &err);
    }
    assert_int_equal(rc, MEMD_EFULL);
    struct store_txn txn;
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    uint32_t first = 0;
    assert_true(store_delete(&txn, STORE_SEGMENTS, (struct slice){ &first, sizeof first }));
    assert_int_equal(store_commit(&txn, &err), 0);
    struct store_free pages = find_free(store, bytes, UINT64_MAX);
    assert_true(pages.usable_bytes + pages.held_bytes >= bytes);
    free(large);
    store_close(store);
    remove_place(&place);
}

static void commit_value(struct store *store, uint32_t key, size_t bytes)
{
    struct error err = { 0 };
    struct store_txn txn;
    char *value = calloc(1, bytes + 1);
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    struct slice name = { &key, sizeof key };
    if (bytes > 0)
        store_put(&txn, STORE_SEGMENTS, name, (struct slice){ value, bytes });
    else
        assert_true(store_delete(&txn, STORE_SEGMENTS, name));
    assert_int_equal(store_commit(&txn, &err), 0);
    free(value);
}

/* Freed pages are held by a reader who began before, and only by such a one. */
static void test_held_pages(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20 };
    struct place place;
    make_place(&place);
    struct store *store = open_store(&place, STORE_LAZY, "a");
    struct error err = { 0 };
    struct store_txn before, after;
    struct store_free pages;
    commit_value(store, 1, BYTES);
    assert_int_equal(store_begin(store, false, &before, &err), 0);
    commit_value(store, 1, 0);
    assert_false(store_await_readers(store, 1));
    commit_value(store, 2, 8);
    assert_int_equal(store_begin(store, false, &after, &err), 0);
    pages = find_free(store, BYTES / 2, UINT64_MAX);
    assert_true(pages.held_bytes >= BYTES && pages.usable_bytes < BYTES);
    store_abort(&before);
    assert_true(store_await_readers(store, 0));
    pages = find_free(store, BYTES / 2, UINT64_MAX);
    assert_true(pages.usable_bytes >= BYTES && pages.held_bytes < BYTES);
    assert_true(pages.run_bytes >= BYTES / 2);
    struct store_space space, grown;
    store_get_space(store, &space);
    commit_value(store, 3, BYTES / 2); /* LMDB thinks so too */
    store_get_space(store, &grown);
    assert_true(grown.used_bytes - space.used_bytes < BYTES / 4);
    store_abort(&after);
    store_close(store);
    remove_place(&place);
}

/* Each `step`th of the values [from, to) goes. */
static void free_values(struct store *store, uint32_t from, uint32_t to, uint32_t step)
{
    struct error err = { 0 };
    struct store_txn txn;
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    for (uint32_t i = from; i < to; i += step)
        assert_true(store_delete(&txn, STORE_SEGMENTS, (struct slice){ &i, sizeof i }));
    assert_int_equal(store_commit(&txn, &err), 0);
}

/* Nothing that was freed is held any more. */
static void turn_pages(struct store *store)
{
    for (uint32_t i = 0; i < 2; i++) commit_value(store, UINT32_MAX, 8 + i);
}

/* The list is read as far as the answer needs: how long it is does not matter. Where there is not
 * enough it is read once. */
static void test_free_pages_read(void **state)
{
    (void)state;
    enum { VALUES = 40, BYTES = 64 * PAGE, VALUE_PAGES = 65 };
    struct place place;
    make_place(&place);
    struct store *store = open_store(&place, STORE_LAZY, "a");
    for (uint32_t i = 0; i < VALUES; i++) commit_value(store, i, BYTES);
    free_values(store, 0, VALUES, 1);
    turn_pages(store);
    struct store_free all = find_free(store, BYTES, UINT64_MAX), some;
    assert_true(all.read_pages > (VALUES - 1) * VALUE_PAGES); /* some were used again */
    assert_int_equal(all.usable_bytes, all.read_pages * PAGE);
    assert_true(all.run_bytes >= (VALUES - 1) * VALUE_PAGES * PAGE);
    some = find_free(store, BYTES, UINT64_MAX - 1); /* known */
    assert_int_equal(some.read_pages, 0);
    assert_int_equal(some.run_bytes, all.run_bytes);
    assert_int_equal(some.usable_bytes, all.usable_bytes);
    struct store_txn reader; /* the reader that is there now changes nothing */
    struct error err = { 0 };
    assert_int_equal(store_begin(store, false, &reader, &err), 0);
    assert_int_equal(find_free(store, BYTES, UINT64_MAX).read_pages, 0);
    commit_value(store, UINT32_MAX, 10); /* a commit does */
    assert_true(find_free(store, BYTES, UINT64_MAX).read_pages > 0);
    store_abort(&reader); /* and the end of an older reader */
    assert_true(find_free(store, BYTES, UINT64_MAX).read_pages > 0);
    commit_value(store, UINT32_MAX, 11);
    for (uint64_t values = 1; values <= VALUES; values *= 2) {
        some = find_free(store, BYTES, values * VALUE_PAGES * PAGE);
        assert_true(some.run_bytes >= values * VALUE_PAGES * PAGE);
        assert_true(some.read_pages >= values * VALUE_PAGES);
        assert_true(some.read_pages <= (values + 2) * VALUE_PAGES);
    }
    store_close(store);
    remove_place(&place);
}

/* Single pages between others: none is part of a run, though all are free. Pages side by side that
 * several transactions freed are one, and found without reading all that comes after them. */
static void test_free_runs(void **state)
{
    (void)state;
    enum { SOME = 300, VALUES = 1800, LONG = 3 * PAGE - 100 };
    struct place place;
    make_place(&place);
    struct store *store = open_store(&place, STORE_LAZY, "a");
    for (uint32_t i = 0; i < VALUES; i++) commit_value(store, i, PAGE - 100);
    free_values(store, 0, SOME, 3);
    turn_pages(store);
    struct store_free single = find_free(store, 1, UINT64_MAX),
                      triple = find_free(store, LONG, UINT64_MAX);
    assert_true(single.run_bytes == single.usable_bytes);
    assert_true(triple.usable_bytes >= SOME / 3 * PAGE);
    assert_true(triple.run_bytes < triple.usable_bytes / 4);
    free_values(store, 1, SOME, 3);
    free_values(store, 2, SOME, 3);
    free_values(store, SOME, VALUES, 3);
    turn_pages(store);
    struct store_free all = find_free(store, LONG, UINT64_MAX);
    assert_true(all.read_pages >= SOME + (VALUES - SOME) / 3 - 10);
    assert_true(all.run_bytes >= SOME * 3 / 4 * PAGE);
    commit_value(store, UINT32_MAX, 10); /* or it would be known */
    triple = find_free(store, LONG, 50 * PAGE);
    assert_true(triple.run_bytes >= 50 * PAGE && triple.run_bytes <= all.run_bytes);
    assert_true(triple.read_pages > SOME / 2 && triple.read_pages < all.read_pages * 3 / 4);
    store_close(store);
    remove_place(&place);
}

/* ---- power cuts ---- */

struct file {
    unsigned char *data;
    size_t bytes;
};

static struct file read_file(const struct place *place, const char *file_name)
{
    char name[128];
    snprintf(name, sizeof name, "%s/%s", place->path, file_name);
    FILE *in = fopen(name, "rb");
    assert_non_null(in);
    assert_int_equal(fseek(in, 0, SEEK_END), 0);
    struct file file = { .bytes = (size_t)ftell(in) };
    rewind(in);
    file.data = malloc(file.bytes + 1);
    assert_int_equal(fread(file.data, 1, file.bytes, in), file.bytes);
    fclose(in);
    return file;
}

static void write_file(const struct place *place, const char *file_name, const struct file *file)
{
    char name[128];
    snprintf(name, sizeof name, "%s/%s", place->path, file_name);
    FILE *out = fopen(name, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(file->data, 1, file->bytes, out), file->bytes);
    assert_int_equal(fclose(out), 0);
}

/* Every key: its value of this generation, long or short so that pages of both kinds come and
 * go. */
static void put_generation(struct store *store, uint32_t generation, uint64_t *random)
{
    struct error err = { 0 };
    struct store_txn txn;
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    for (uint32_t key = 0; key < KEYS; key++) {
        uint32_t value[3000];
        size_t words = 1 + random_below(random, key % 4 == 0 ? 3000 : 40);
        for (size_t i = 0; i < words; i++) value[i] = generation;
        store_put(&txn, STORE_TAILS, (struct slice){ &key, sizeof key },
                  (struct slice){ value, words * sizeof value[0] });
    }
    if (store_commit(&txn, &err) < 0) fail_msg("%s", err.text);
}

static void expect_generation(const struct place *place, enum store_mode mode, const char *boot_id,
                              uint32_t generation)
{
    struct store *store = open_store(place, mode, boot_id);
    struct error err = { 0 };
    struct store_txn txn;
    assert_int_equal(store_damage(store)->total, 0);
    assert_int_equal(store_begin(store, false, &txn, &err), 0);
    assert_int_equal(store_count(&txn, STORE_TAILS), KEYS);
    for (uint32_t key = 0; key < KEYS; key++) {
        struct slice value;
        if (!store_get(&txn, STORE_TAILS, (struct slice){ &key, sizeof key }, &value)) {
            store_failed(&txn, &err);
            fail_msg("key %u is lost: %s", key, err.text);
        }
        for (size_t at = 0; at < value.bytes; at += sizeof(uint32_t)) {
            uint32_t word;
            memcpy(&word, (const char *)value.data + at, sizeof word);
            if (word != generation) fail_msg("key %u is of %u, not %u", key, word, generation);
        }
    }
    store_abort(&txn);
    uint64_t random = 1;
    for (uint32_t i = 1; i <= 3; i++)
        put_generation(store, generation + i, &random); /* it goes on */
    store_close(store);
}

static void test_power_cut(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct place place, crashed;
    make_place(&place);
    make_place(&crashed);
    struct error err = { 0 };
    struct store *store = open_store(&place, STORE_PROTECTED, "boot one");
    uint32_t generation = 1;
    for (int round = 0; round < ROUNDS; round++) {
        for (uint64_t i = random_below(&random, 4) + 1; i > 0; i--)
            put_generation(store, generation++, &random);
        uint32_t synced = generation - 1;
        if (store_sync(store, &err) < 0) fail_msg("%s", err.text);
        struct file old = read_file(&place, "data.mdb"), way_back = read_file(&place, "synced");
        for (uint64_t i = random_below(&random, 6) + 1; i > 0; i--)
            put_generation(store, generation++, &random);
        struct file new = read_file(&place, "data.mdb");
        for (size_t at = 0; at + PAGE <= new.bytes; at += PAGE) { /* which pages had arrived? */
            if (random_below(&random, 2) == 0) continue;
            if (at + PAGE <= old.bytes)
                memcpy(new.data + at, old.data + at, PAGE);
            else
                memset(new.data + at, 0, PAGE);
        }
        write_file(&crashed, "data.mdb", &new);
        write_file(&crashed, "synced", &way_back);
        expect_generation(&crashed, STORE_PROTECTED, "boot two", synced);
        free(old.data);
        free(new.data);
        free(way_back.data);
    }
    store_close(store);
    expect_generation(&place, STORE_PROTECTED, "boot one",
                      generation - 1); /* no cut: nothing is taken back */
    remove_place(&place);
    remove_place(&crashed);
}

/* A mode without a way back leaves none that could undo later commits. */
static void test_modes_change(void **state)
{
    (void)state;
    struct place place;
    make_place(&place);
    struct error err = { 0 };
    uint64_t random = 5;
    char name[128];
    snprintf(name, sizeof name, "%s/synced", place.path);
    struct store *store = open_store(&place, STORE_PROTECTED, "boot one");
    put_generation(store, 1, &random);
    assert_int_equal(access(name, F_OK), 0);
    assert_int_equal(store_set_mode(store, STORE_DURABLE, &err), 0);
    put_generation(store, 2, &random);
    assert_int_equal(access(name, F_OK), -1);
    store_close(store);
    expect_generation(&place, STORE_LAZY, "boot two", 2);
    expect_generation(&place, STORE_PROTECTED, "boot three", 5);
    expect_generation(&place, STORE_DURABLE, "boot three", 8);
    remove_place(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transactions),    cmocka_unit_test(test_shorter),
        cmocka_unit_test(test_full_map),        cmocka_unit_test(test_held_pages),
        cmocka_unit_test(test_free_pages_read), cmocka_unit_test(test_free_runs),
        cmocka_unit_test(test_power_cut),       cmocka_unit_test(test_modes_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
