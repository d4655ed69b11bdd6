/* SPDX-License-Identifier: Apache-2.0 */
/* store.h — LMDB behind transactions with a sticky error: write ten values, test once at commit.
 *
 * After the first failure every further call on the transaction does nothing; store_commit then
 * aborts and returns that failure. Nothing outside store*.c knows LMDB.
 *
 * Memory   a slice from store_get or a cursor points into the map: valid until the transaction
 *          ends. Values larger than half a page additionally stay where they are until they are
 *          deleted or replaced, however many transactions pass (LMDB never moves the overflow
 *          pages of a live value): contexts count on it.
 * Threads  store_begin for writing: the writer thread only. For reading: any thread, one
 *          transaction, one thread.
 * Errors   MEMD_EFULL map or disk · MEMD_ENOMEM · MEMD_ECORRUPT · MEMD_EVERSION · MEMD_EBUSY too
 *          many readers · MEMD_ELOCKED · MEMD_EIO
 * Tests    tests/unit/test_store.c, tests/fault
 */
#ifndef MEMD_MEMORY_STORE_H
#define MEMD_MEMORY_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct pages_report;
struct store;

/* X(name, text): the named databases, see docs/FORMAT.md. */
#define STORE_TABLE_MAP(X)  \
    X(META, "meta")         \
    X(NAMES, "names")       \
    X(CONTEXTS, "contexts") \
    X(CHAINS, "chains")     \
    X(SEGMENTS, "segments") \
    X(REFS, "refs")         \
    X(TAILS, "tails")       \
    X(INDEXES, "indexes")   \
    X(NOTES, "notes")       \
    X(PARAMS, "params")     \
    X(SETS, "sets")

enum store_table {
#define X(name, text) STORE_##name,
    STORE_TABLE_MAP(X)
#undef X
        STORE_TABLES,
};

const char *store_table_name(enum store_table table);

/* How a commit meets the disk. */
enum store_mode {
    STORE_DURABLE,   /* it is on the disk when it returns */
    STORE_PROTECTED, /* not before store_sync; a power cut leads back to the last one */
    STORE_LAZY,      /* not before store_sync; a power cut may cost everything */
};

struct store_config {
    const char *path; /* an existing directory */
    uint64_t map_bytes;
    enum store_mode mode;
    const char *boot_id; /* differs after the machine went down */
};

int store_open(const struct store_config *config, struct store **ret_store, struct error *err);
void store_close(struct store *store);

/* What was fenced off when it was opened (store_pages.c): reading there, and writing, is
 * MEMD_ECORRUPT. Immutable. */
const struct pages_report *store_damage(const struct store *store);

/* Writer. Syncs what was committed under the old mode. */
int store_set_mode(struct store *store, enum store_mode mode, struct error *err);
int store_sync(struct store *store, struct error *err);

struct slice {
    const void *data;
    size_t bytes;
};

struct store_txn {
    struct store *store;
    struct MDB_txn *handle; /* NULL after commit or abort */
    int rc;                 /* first LMDB error or errno, 0 */
};

int store_begin(struct store *store, bool write, struct store_txn *ret_txn, struct error *err);
void store_abort(struct store_txn *txn); /* safe twice; for CLEANUP */
int store_commit(struct store_txn *txn, struct error *err);
/* Make it fail with this errno. */
void store_fail(struct store_txn *txn, int error_number);
/* The sticky error as memd code, 0 when there is none. */
int store_failed(const struct store_txn *txn, struct error *err);

/* False: absent, or the transaction has failed. */
bool store_get(struct store_txn *txn, enum store_table table, struct slice key,
               struct slice *ret_value);
void store_put(struct store_txn *txn, enum store_table table, struct slice key, struct slice value);
/* Absent keys are fine; true when something was removed. */
bool store_delete(struct store_txn *txn, enum store_table table, struct slice key);
/* 0 where the root of the table is damaged. */
uint64_t store_count(struct store_txn *txn, enum store_table table);

struct store_cursor {
    struct store_txn *txn;
    struct MDB_cursor *handle;
    struct slice key, value; /* of the record it stands on */
};

/* Stand on the first record with a key ≥ `key` (an empty key: the first of all). False at the
 * end or on failure; the cursor is open either way and must be closed. */
bool store_seek(struct store_txn *txn, enum store_table table, struct slice key,
                struct store_cursor *ret_cursor);
bool store_next(struct store_cursor *cursor);
/* Stand on the last record with a key < `key`. */
bool store_seek_before(struct store_txn *txn, enum store_table table, struct slice key,
                       struct store_cursor *ret_cursor);
/* Remove the record it stands on; store_next then gives the one behind it. */
void store_cursor_delete(struct store_cursor *cursor);
void store_cursor_close(struct store_cursor *cursor);

struct store_space {
    uint64_t map_bytes;  /* as configured */
    uint64_t used_bytes; /* of the file, pages that are free for reuse included */
    uint64_t file_bytes;
};
void store_get_space(struct store *store, struct store_space *ret_space);

/* What the file system has left. */
uint64_t store_disk_bytes(struct store *store);

/* May a value of so many bytes move while it lives? LMDB keeps those of less than half a page
 * inside its tree, and writes a page of it anew whenever one of its values changes. */
bool store_may_move(const struct store *store, size_t value_bytes);

/* Free pages inside the file, in bytes. Those the next transaction may take were freed by one that
 * no reader is older than; the others are held, for milliseconds by most readers, as long as it
 * takes by a backup. */
struct store_free {
    uint64_t usable_bytes, held_bytes;
    uint64_t run_bytes;  /* usable for values of `value_bytes`, whose pages stand side by side */
    uint64_t read_pages; /* how many numbers of free pages that took */
};
struct store_ask {
    size_t value_bytes;
    uint64_t bytes, run_bytes; /* as usable_bytes, run_bytes */
};
/* Looks in LMDB's order, until `ask` is found: what it costs goes by what is asked for, and by the
 * fragments that stand before it. Only where there is less is all of it read, and counted; that
 * is known from then on until a commit, or a reader that ends, changes it. A bit per page of the
 * file; without memory for that nothing is free. Any thread. */
void store_find_free(struct store *store, const struct store_ask *ask, struct store_free *ret_free);

/* Wait until nobody reads what was there before the last commit, for `wait_ns` at most. Readers of
 * other processes (mdb_copy, mdb_stat) count, those of killed ones do not. Not from inside a
 * transaction. Writer. False: somebody still does. */
bool store_await_readers(struct store *store, uint64_t wait_ns);
/* The same readers still do that store_await_readers has waited for and given up. Writer. */
bool store_awaits_in_vain(struct store *store);

/* A compacted copy in the directory `path`, which is made (MEMD_EEXIST when it is there). */
int store_copy(struct store *store, const char *path, uint64_t *ret_bytes, struct error *err);

/* Numbers in the table meta. */
bool store_get_number(struct store_txn *txn, const char *name, uint64_t *ret_value);
void store_put_number(struct store_txn *txn, const char *name, uint64_t value);

#endif
