/* SPDX-License-Identifier: Apache-2.0 */
/* walk.c — tables in the order of the list, keys in LMDB's order. Of one context only the tables
 * whose keys begin with its id have anything to show; the others are skipped.
 */
#include "memory/walk.h"

#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "memory/catalog.h"
#include "memory/format.h"

static bool table_has_context(enum store_table table)
{
    return table == STORE_CONTEXTS || table == STORE_CHAINS || table == STORE_TAILS ||
           table == STORE_INDEXES || table == STORE_NOTES || table == STORE_PARAMS;
}

/* Tables that have nothing for this walk are passed over. */
static void skip_tables(struct walk *walk)
{
    while (walk->context_id != 0 && walk->table < STORE_TABLES && !table_has_context(walk->table))
        walk->table++;
}

enum { PASSED = 0x80 }; /* beside the table, in a cursor */
_Static_assert((int)STORE_TABLES <= (int)PASSED, "a cursor's first byte");

int walk_begin(const struct walk_args *args, struct walk *ret_walk, struct error *err)
{
    struct walk walk = { .context_id = args->context_id };
    const unsigned char *bytes = args->cursor;
    size_t cursor_bytes = args->cursor_bytes;
    if (cursor_bytes > 0) {
        unsigned table = bytes[0] & ~(unsigned)PASSED;
        if (table >= STORE_TABLES || cursor_bytes - 1 > sizeof walk.key)
            return error_set(err, MEMD_EINVAL, "a cursor of %zu bytes that memd did not make",
                             cursor_bytes);
        walk.table = (enum store_table)table;
        walk.passed = (bytes[0] & PASSED) != 0;
        walk.key_bytes = cursor_bytes - 1;
        memcpy(walk.key, bytes + 1, walk.key_bytes);
    }
    skip_tables(&walk);
    *ret_walk = walk;
    return 0;
}

static bool in_range(const struct walk *walk)
{
    if (walk->context_id == 0) return true;
    unsigned char prefix[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_id(walk->context_id, prefix);
    return walk->cursor.key.bytes >= bytes && memcmp(walk->cursor.key.data, prefix, bytes) == 0;
}

static bool enter_table(struct walk *walk, struct store_txn *txn)
{
    unsigned char prefix[FORMAT_KEY_BYTES_MAX];
    struct slice from = { walk->key, walk->key_bytes };
    if (walk->key_bytes == 0 && walk->context_id != 0)
        from = (struct slice){ prefix, format_key_id(walk->context_id, prefix) };
    bool found = store_seek(txn, walk->table, from, &walk->cursor);
    walk->open = true;
    bool seen = found && walk->key_bytes > 0 && !walk->passed &&
                walk->cursor.key.bytes == walk->key_bytes &&
                memcmp(walk->cursor.key.data, walk->key, walk->key_bytes) == 0;
    return seen ? store_next(&walk->cursor) : found;
}

static void leave_table(struct walk *walk)
{
    walk_end(walk);
    walk->table++;
    walk->key_bytes = 0;
    walk->passed = false;
    skip_tables(walk);
}

bool walk_next(struct walk *walk, struct store_txn *txn)
{
    while (walk->table < STORE_TABLES) {
        bool found = walk->open ? store_next(&walk->cursor) : enter_table(walk, txn);
        if (found && in_range(walk) && walk->cursor.key.bytes <= sizeof walk->key) {
            walk->key_bytes = walk->cursor.key.bytes;
            memcpy(walk->key, walk->cursor.key.data, walk->key_bytes);
            walk->passed = false;
            return true;
        }
        if (txn->rc != 0) return false;
        leave_table(walk);
    }
    return false;
}

void walk_pass(struct walk *walk, struct slice end)
{
    if (end.bytes == 0 || end.bytes > sizeof walk->key) {
        leave_table(walk);
        return;
    }
    walk_end(walk);
    walk->key_bytes = end.bytes;
    memcpy(walk->key, end.data, end.bytes);
    walk->passed = true;
}

void walk_end(struct walk *walk)
{
    if (walk->open) store_cursor_close(&walk->cursor);
    walk->open = false;
}

int walk_encode(const struct walk *walk, struct arena *arena, const unsigned char **ret_cursor,
                size_t *ret_bytes, struct error *err)
{
    if (walk->table == STORE_TABLES) {
        *ret_cursor = NULL;
        *ret_bytes = 0;
        return 0;
    }
    unsigned char *cursor = arena_alloc(arena, 1 + walk->key_bytes);
    if (cursor == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a cursor");
    cursor[0] = (unsigned char)((unsigned)walk->table | (walk->passed ? PASSED : 0u));
    memcpy(cursor + 1, walk->key, walk->key_bytes);
    *ret_cursor = cursor;
    *ret_bytes = 1 + walk->key_bytes;
    return 0;
}
