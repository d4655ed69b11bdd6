/* SPDX-License-Identifier: Apache-2.0 */
/* pages_fixture.h — a store with pages of all kinds. Keys are long, so that few of them make trees
 * of three levels.
 */
#ifndef MEMD_TESTS_PAGES_FIXTURE_H
#define MEMD_TESTS_PAGES_FIXTURE_H

#include "tests/unit/child.h"
#include "tests/unit/image.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "memory/store.h"
#include "memory/store_pages.h"
#include "tests/random.h"

enum { KEYS = 250 };

struct place {
    char path[64];
    struct image image;
    uint64_t seed;
};

static inline void make_place(struct place *place)
{
    *place = (struct place){ .path = "/tmp/memd-test-XXXXXX", .seed = random_seed() };
    assert_non_null(mkdtemp(place->path));
    image_init(&place->image, place->path);
}

static inline void remove_place(struct place *place)
{
    char lock[80];
    snprintf(lock, sizeof lock, "%s/lock.mdb", place->path);
    unlink(lock);
    assert_int_equal(unlink(place->image.file), 0);
    assert_int_equal(rmdir(place->path), 0);
    image_fini(&place->image);
}

static inline int open_place(const struct place *place, struct store **ret_store, struct error *err)
{
    struct store_config config = { place->path, 64 << 20, STORE_LAZY, "a" };
    return store_open(&config, ret_store, err);
}

static inline struct store *open_sound(const struct place *place)
{
    struct store *store = NULL;
    struct error err = { 0 };
    if (open_place(place, &store, &err) < 0) fail_msg("%s", err.text);
    const struct pages_report *report = store_damage(store);
    if (report->total != 0)
        fail_msg("%zu damages, page %llu: %s", report->total,
                 (unsigned long long)report->list[0].page, report->list[0].why);
    return store;
}

/* Of 5 to 500 bytes, in another order than `i`. */
static inline struct slice key_of(size_t i, unsigned char buffer[512])
{
    uint64_t state = i;
    size_t bytes = 5 + (i % 4 == 0 ? 20 : 495);
    memset(buffer, (int)(i % 251), bytes);
    uint32_t mixed = (uint32_t)random_u64(&state);
    memcpy(buffer, &mixed, 4);
    buffer[4] = (unsigned char)i;
    return (struct slice){ buffer, bytes };
}

/* A third of them have pages of their own. */
static inline struct slice value_of(size_t i, unsigned turn, unsigned char buffer[12000])
{
    size_t bytes = i % 3 == 0 ? 3000 + i * 61 % 9000 : i % 700;
    for (size_t j = 0; j < bytes; j++) buffer[j] = (unsigned char)(i * 7 + turn + j / 64);
    return (struct slice){ buffer, bytes };
}

/* Is it one of the values that this key was given? Those with pages of their own have checksums,
 * above the store. */
static inline bool is_value_of(size_t i, struct slice value)
{
    unsigned char buffer[12000];
    bool same = value.bytes >= PAGE / 2;
    for (unsigned turn = 0; turn < 4 && !same; turn++) {
        struct slice wanted = value_of(i, turn, buffer);
        same = wanted.bytes == value.bytes && memcmp(wanted.data, value.data, value.bytes) == 0;
    }
    return same;
}

static inline void put(struct store_txn *txn, enum store_table table, size_t i, unsigned turn)
{
    unsigned char key[512], value[12000];
    store_put(txn, table, key_of(i, key), value_of(i, turn, value));
}

static inline void delete (struct store_txn *txn, enum store_table table, size_t i)
{
    unsigned char key[512];
    store_delete(txn, table, key_of(i, key));
}

static inline void commit(struct store_txn *txn)
{
    struct error err = { 0 };
    if (store_commit(txn, &err) < 0) fail_msg("%s", err.text);
}

/* Two tables, one of them with branches of branches; free pages, several records of them. */
static inline void fill(struct place *place)
{
    make_place(place);
    struct error err = { 0 };
    struct store *store = open_sound(place);
    struct store_txn txn;
    for (unsigned turn = 0; turn < 3; turn++) {
        assert_int_equal(store_begin(store, true, &txn, &err), 0);
        for (size_t i = 0; i < KEYS; i++) {
            if (turn == 0 || i % 5 == turn) put(&txn, STORE_SEGMENTS, i, turn);
            if (i % 8 == 0) put(&txn, STORE_CHAINS, i, turn);
            if (turn == 1 && i % 11 == 0) delete (&txn, STORE_SEGMENTS, i);
        }
        commit(&txn);
    }
    store_close(store);
    image_read(&place->image);
}

#endif
