/* SPDX-License-Identifier: Apache-2.0 */
/* owned.c — walks over the values of one owner. Its id is big-endian at the front of the key, so
 * they lie side by side. */
#include "memory/owned.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "memory/format.h"

enum { ID_BYTES = 8 };

/* Stand on the first value of `owner`. False when it has none; the cursor is open either way. */
static bool seek(struct store_txn *txn, enum store_table table, uint64_t owner,
                 struct store_cursor *cursor)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    return store_seek(txn, table, (struct slice){ key, format_key_id(owner, key) }, cursor);
}

static bool belongs_to(const struct store_cursor *cursor, uint64_t owner)
{
    uint64_t id = 0;
    return cursor->key.bytes >= ID_BYTES && format_read_id(cursor->key.data, ID_BYTES, &id) &&
           id == owner;
}

bool owned_remove(struct store_txn *txn, enum store_table table, struct slice key, int64_t *delta)
{
    struct slice value;
    if (!store_get(txn, table, key, &value)) return false;
    *delta -= (int64_t)value.bytes;
    return store_delete(txn, table, key);
}

void owned_put(struct store_txn *txn, enum store_table table, struct slice key, struct slice value,
               int64_t *delta)
{
    owned_remove(txn, table, key, delta);
    store_put(txn, table, key, value);
    *delta += (int64_t)value.bytes;
}

/* A value in a page that the same transaction changes must not be handed to a put: copy it
 * first. */
static void copy_one(struct store_txn *txn, enum store_table table, struct slice key,
                     struct slice value)
{
    CLEANUP(free_ptr) void *copy = malloc(value.bytes);
    if (copy == NULL) {
        store_fail(txn, ENOMEM);
        return;
    }
    memcpy(copy, value.data, value.bytes);
    store_put(txn, table, key, (struct slice){ copy, value.bytes });
}

void owned_copy(struct store_txn *txn, enum store_table table, uint64_t from, uint64_t to,
                int64_t *delta)
{
    assert(to > from);
    struct store_cursor cursor;
    bool found = seek(txn, table, from, &cursor);
    while (found && belongs_to(&cursor, from) && cursor.key.bytes <= FORMAT_KEY_BYTES_MAX) {
        unsigned char key[FORMAT_KEY_BYTES_MAX];
        size_t key_bytes = cursor.key.bytes;
        memcpy(key, cursor.key.data, key_bytes);
        format_key_id(to, key);
        *delta += (int64_t)cursor.value.bytes;
        copy_one(txn, table, (struct slice){ key, key_bytes }, cursor.value);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
}

uint64_t owned_clear(struct store_txn *txn, enum store_table table, uint64_t owner, uint64_t limit,
                     int64_t *delta)
{
    struct store_cursor cursor;
    uint64_t count = 0;
    bool found = seek(txn, table, owner, &cursor);
    while (found && count < limit && belongs_to(&cursor, owner)) {
        *delta -= (int64_t)cursor.value.bytes;
        store_cursor_delete(&cursor);
        count++;
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
    return count;
}

uint64_t owned_bytes(struct store_txn *txn, enum store_table table, uint64_t owner)
{
    struct store_cursor cursor;
    uint64_t sum = 0;
    bool found = seek(txn, table, owner, &cursor);
    for (; found && belongs_to(&cursor, owner); found = store_next(&cursor))
        sum += cursor.value.bytes;
    store_cursor_close(&cursor);
    return sum;
}
