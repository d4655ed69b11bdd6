/* SPDX-License-Identifier: Apache-2.0 */
/* store.c — the only file that calls LMDB (with store_*.c beside it).
 *
 * MDB_NOTLS, since a worker may hold several read transactions and hand none over;
 * MDB_NORDAHEAD, since a query reads long values whose read-ahead the kernel would double.
 * Commits go through pwrite, not MDB_WRITEMAP: on a full disk a store to a sparse map is SIGBUS,
 * a failed pwrite is an error that aborts one transaction (decisions/0010 has the measurements).
 *
 * The map is made a little larger than configured. A delete needs a few fresh pages before it
 * frees any, so a store that is filled to its last page could never be emptied; RESERVE_BYTES
 * are for that, and the writer refuses data (not deletes) beyond the configured size.
 */
#include "memory/store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "memory/format.h"
#include "memory/page.h"
#include "memory/store_free.h"
#include "memory/store_pages.h"
#include "memory/store_synced.h"
#include "memory/store_value.h"

enum { READERS_MAX = 512, RESERVE_BYTES = 16 << 20 };

struct store {
    MDB_env *env;
    char *path, *boot_id;
    enum store_mode mode;
    MDB_txn *pin; /* STORE_PROTECTED: holds the last synced state */
    MDB_dbi tables[STORE_TABLES];
    uint64_t map_bytes;
    size_t page_bytes;
    struct pages_report damage; /* as it was opened */
    bool lost[STORE_TABLES];    /* the whole table */
    pthread_mutex_t end_lock;   /* with `ended` for store_await_readers */
    pthread_cond_t ended;       /* a reader has */
    atomic_bool awaiting;
    size_t vain; /* transaction whose readers outlasted that; 0: none did */
    pthread_mutex_t known_lock;
    struct free_list known_list;  /* the last that was read to its end; `last` is 0: none */
    struct store_free known_free; /* what it has */
};

static const char *const table_names[STORE_TABLES] = {
#define X(name, text) [STORE_##name] = text,
    STORE_TABLE_MAP(X)
#undef X
};

const char *store_table_name(enum store_table table)
{
    assert(table < STORE_TABLES);
    return table_names[table];
}

static int fail(int rc, const char *what, struct error *err)
{
    int code = MEMD_EIO;
    switch (rc) {
    case MDB_MAP_FULL:
    case ENOSPC:
    case EDQUOT: code = MEMD_EFULL; break;
    case ENOMEM: code = MEMD_ENOMEM; break;
    case MDB_READERS_FULL:
    case MDB_TXN_FULL: code = MEMD_EBUSY; break;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_INCOMPATIBLE: /* a copy that found pages neither in use nor free */
    case MDB_BAD_TXN:      /* the root of a table is fenced off */
    case MDB_PANIC: code = MEMD_ECORRUPT; break;
    case MDB_VERSION_MISMATCH: code = MEMD_EVERSION; break;
    default: break;
    }
    if (rc == MDB_PAGE_NOTFOUND || rc == MDB_BAD_TXN)
        return error_set(err, code, "%s: a page of data.mdb is damaged", what);
    return error_set(err, code, "%s: %s", what, mdb_strerror(rc));
}

static MDB_val to_val(struct slice slice)
{
    return (MDB_val){ .mv_size = slice.bytes, .mv_data = (void *)(uintptr_t)slice.data };
}

static struct slice from_val(const MDB_val *val)
{
    return (struct slice){ .data = val->mv_data, .bytes = val->mv_size };
}

static int open_tables(struct store *store)
{
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(store->env, NULL, 0, &txn);
    if (rc != 0) return rc;
    for (int i = 0; rc == 0 && i < STORE_TABLES; i++) {
        rc = mdb_dbi_open(txn, table_names[i], MDB_CREATE, &store->tables[i]);
    }
    if (rc == 0) return mdb_txn_commit(txn);
    mdb_txn_abort(txn);
    return rc;
}

/* By the keys that are gone: no first and no end. */
static void note_lost(struct store *store)
{
    for (size_t i = 0; i < store->damage.count; i++) {
        const struct pages_damage *damage = &store->damage.list[i];
        for (int j = 0; j < STORE_TABLES; j++) {
            if (damage->first_bytes == 0 && damage->end_bytes == 0 &&
                strcmp(damage->table, table_names[j]) == 0)
                store->lost[j] = true;
        }
    }
}

static void close_store(struct store **store)
{
    store_close(*store);
}

static int open_env(struct store *store)
{
    int rc = mdb_env_create(&store->env);
    if (rc != 0) return rc;
    rc = mdb_env_set_maxdbs(store->env, STORE_TABLES);
    if (rc == 0) rc = mdb_env_set_maxreaders(store->env, READERS_MAX);
    if (rc == 0) rc = mdb_env_set_mapsize(store->env, store->map_bytes + RESERVE_BYTES);
    unsigned flags = MDB_NOTLS | MDB_NORDAHEAD | MDB_NOSYNC;
    if (rc == 0) rc = mdb_env_open(store->env, store->path, flags, 0600);
    if (rc != 0) return rc;
    MDB_stat stat;
    rc = mdb_env_stat(store->env, &stat);
    store->page_bytes = rc == 0 ? stat.ms_psize : 0;
    return rc;
}

int store_open(const struct store_config *config, struct store **ret_store, struct error *err)
{
    CLEANUP(close_store) struct store *store = calloc(1, sizeof *store);
    if (store == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the store");
    clock_cond_init(&store->ended);
    pthread_mutex_init(&store->end_lock, NULL);
    pthread_mutex_init(&store->known_lock, NULL);
    store->map_bytes = config->map_bytes;
    store->path = strdup(config->path);
    store->boot_id = strdup(config->boot_id);
    if (store->path == NULL || store->boot_id == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for the store");
    int rc = synced_restore(store->path, store->boot_id, err);
    if (rc == 0) rc = pages_check(store->path, &store->damage, err);
    if (rc < 0) return rc;
    note_lost(store);
    rc = open_env(store);
    if (rc != 0) return fail(rc, config->path, err);
    /* Before the first commit: it is the first that needs protection. */
    rc = store_set_mode(store, config->mode, err);
    if (rc < 0) return rc;
    rc = open_tables(store);
    if (rc != 0) return fail(rc, config->path, err);
    *ret_store = TAKE(store);
    return 0;
}

void store_close(struct store *store)
{
    if (store == NULL) return;
    if (store->pin != NULL) mdb_txn_abort(store->pin);
    if (store->env != NULL) mdb_env_close(store->env);
    pthread_cond_destroy(&store->ended);
    pthread_mutex_destroy(&store->end_lock);
    pthread_mutex_destroy(&store->known_lock);
    free(store->path);
    free(store->boot_id);
    pages_fini(&store->damage);
    free(store);
}

const struct pages_report *store_damage(const struct store *store)
{
    return &store->damage;
}

/* Everything committed is on the disk: from now on this is the state to fall back to. The old
 * one is held until the new one is written down. No commit runs meanwhile, this is the writer. */
static int protect(struct store *store, struct error *err)
{
    unsigned char page[SYNCED_PAGE_BYTES_MAX];
    assert(store->page_bytes <= sizeof page);
    MDB_envinfo info;
    mdb_filehandle_t fd = -1;
    int rc = mdb_env_info(store->env, &info);
    if (rc == 0) rc = mdb_env_get_fd(store->env, &fd);
    if (rc != 0) return fail(rc, "meta page", err);
    off_t at = (off_t)((info.me_last_txnid & 1) * store->page_bytes); /* LMDB writes them in turn */
    if (pread(fd, page, store->page_bytes, at) != (ssize_t)store->page_bytes)
        return fail(errno, "meta page", err);
    struct synced_page saved = { page, store->page_bytes };
    int saved_rc = synced_write(store->path, store->boot_id, saved, err);
    if (saved_rc < 0) return saved_rc;
    MDB_txn *pin = NULL;
    rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, &pin);
    if (rc != 0) return fail(rc, "pin of the synced state", err);
    assert(mdb_txn_id(pin) == info.me_last_txnid);
    if (store->pin != NULL) mdb_txn_abort(store->pin);
    store->pin = pin;
    return 0;
}

int store_sync(struct store *store, struct error *err)
{
    if (store->mode == STORE_DURABLE) return 0;
    int rc = mdb_env_sync(store->env, 1);
    if (rc != 0) return fail(rc, "sync of the store", err);
    return store->mode == STORE_PROTECTED ? protect(store, err) : 0;
}

int store_set_mode(struct store *store, enum store_mode mode, struct error *err)
{
    int rc = mode == STORE_LAZY ? 0 : mdb_env_sync(store->env, 1);
    if (rc != 0) return fail(rc, "sync of the store", err);
    /* The way back must be gone before a commit is promised that it would undo. */
    int mode_rc = mode == STORE_PROTECTED ? protect(store, err) : synced_remove(store->path, err);
    if (mode_rc < 0) return mode_rc;
    if (mode != STORE_PROTECTED && store->pin != NULL) {
        mdb_txn_abort(store->pin);
        store->pin = NULL;
    }
    rc = mdb_env_set_flags(store->env, MDB_NOSYNC, mode != STORE_DURABLE);
    assert(rc == 0);
    store->mode = mode;
    return 0;
}

int store_begin(struct store *store, bool write, struct store_txn *ret_txn, struct error *err)
{
    MDB_txn *handle = NULL;
    int rc = mdb_txn_begin(store->env, NULL, write ? 0 : MDB_RDONLY, &handle);
    if (rc != 0) return fail(rc, "begin of a transaction", err);
    *ret_txn = (struct store_txn){ .store = store, .handle = handle };
    return 0;
}

void store_abort(struct store_txn *txn)
{
    if (txn->handle == NULL) return;
    mdb_txn_abort(txn->handle);
    txn->handle = NULL;
    if (!atomic_load(&txn->store->awaiting)) return;
    pthread_mutex_lock(&txn->store->end_lock);
    pthread_cond_signal(&txn->store->ended);
    pthread_mutex_unlock(&txn->store->end_lock);
}

int store_failed(const struct store_txn *txn, struct error *err)
{
    return txn->rc == 0 ? 0 : fail(txn->rc, "store", err);
}

void store_fail(struct store_txn *txn, int error_number)
{
    if (txn->rc == 0) txn->rc = error_number;
}

/* LMDB calls a short write EIO, but that is how a file system that fills up in the middle says
 * it. */
static int commit_reason(struct store *store, int rc)
{
    enum { FULL_BELOW_BYTES = 1 << 20 };
    mdb_filehandle_t fd = -1;
    struct statvfs space;
    if (rc != EIO || mdb_env_get_fd(store->env, &fd) != 0 || fstatvfs(fd, &space) != 0) return rc;
    return (uint64_t)space.f_bavail * space.f_frsize < FULL_BELOW_BYTES ? ENOSPC : rc;
}

int store_commit(struct store_txn *txn, struct error *err)
{
    assert(txn->handle != NULL);
    if (txn->rc != 0) {
        store_abort(txn);
        return store_failed(txn, err);
    }
    int rc = mdb_txn_commit(txn->handle); /* frees the handle, whatever happens */
    txn->handle = NULL;
    txn->rc = rc;
    return rc == 0 ? 0 : fail(commit_reason(txn->store, rc), "commit", err);
}

bool store_get(struct store_txn *txn, enum store_table table, struct slice key,
               struct slice *ret_value)
{
    if (txn->rc != 0) return false;
    MDB_val k = to_val(key), v = { 0 };
    int rc = mdb_get(txn->handle, txn->store->tables[table], &k, &v);
    if (rc != 0 && rc != MDB_NOTFOUND) txn->rc = rc;
    if (rc != 0) return false;
    *ret_value = from_val(&v);
    return true;
}

/* Stand on a record that is about to lose its value. */
static int find_old(struct store_txn *txn, MDB_dbi table, MDB_val *key, MDB_cursor **ret_cursor)
{
    int rc = mdb_cursor_open(txn->handle, table, ret_cursor);
    if (rc == 0) rc = mdb_cursor_get(*ret_cursor, key, NULL, MDB_SET);
    return rc != 0 ? rc : store_value_check(*ret_cursor, txn->store->page_bytes);
}

void store_put(struct store_txn *txn, enum store_table table, struct slice key, struct slice value)
{
    if (txn->rc != 0) return;
    MDB_val k = to_val(key), v = to_val(value);
    MDB_dbi handle = txn->store->tables[table];
    MDB_cursor *cursor = NULL;
    txn->rc = mdb_put(txn->handle, handle, &k, &v, MDB_NOOVERWRITE);
    if (txn->rc != MDB_KEYEXIST) return;
    txn->rc = find_old(txn, handle, &k, &cursor);
    if (txn->rc == 0) txn->rc = store_value_drop_longer(cursor, value.bytes);
    if (cursor != NULL) mdb_cursor_close(cursor);
    v = to_val(value); /* it was told the old one */
    if (txn->rc == 0) txn->rc = mdb_put(txn->handle, handle, &k, &v, 0);
}

bool store_delete(struct store_txn *txn, enum store_table table, struct slice key)
{
    if (txn->rc != 0) return false;
    MDB_val k = to_val(key);
    MDB_cursor *cursor = NULL;
    int rc = find_old(txn, txn->store->tables[table], &k, &cursor);
    if (rc == 0) rc = mdb_cursor_del(cursor, 0);
    if (cursor != NULL) mdb_cursor_close(cursor);
    if (rc != 0 && rc != MDB_NOTFOUND) txn->rc = rc;
    return rc == 0;
}

uint64_t store_count(struct store_txn *txn, enum store_table table)
{
    MDB_stat stat = { 0 };
    if (txn->store->lost[table]) return 0; /* asked for a lost root, LMDB fails all that follows */
    if (txn->rc == 0) txn->rc = mdb_stat(txn->handle, txn->store->tables[table], &stat);
    return stat.ms_entries;
}

static bool cursor_step(struct store_cursor *cursor, MDB_val key, MDB_cursor_op op)
{
    if (cursor->txn->rc != 0 || cursor->handle == NULL) return false;
    MDB_val value = { 0 };
    int rc = mdb_cursor_get(cursor->handle, &key, &value, op);
    if (rc != 0 && rc != MDB_NOTFOUND) cursor->txn->rc = rc;
    if (rc != 0) return false;
    cursor->key = from_val(&key);
    cursor->value = from_val(&value);
    return true;
}

static void cursor_open(struct store_txn *txn, enum store_table table,
                        struct store_cursor *ret_cursor)
{
    *ret_cursor = (struct store_cursor){ .txn = txn };
    if (txn->rc != 0) return;
    txn->rc = mdb_cursor_open(txn->handle, txn->store->tables[table], &ret_cursor->handle);
}

bool store_seek(struct store_txn *txn, enum store_table table, struct slice key,
                struct store_cursor *ret_cursor)
{
    cursor_open(txn, table, ret_cursor);
    return cursor_step(ret_cursor, to_val(key), key.bytes == 0 ? MDB_FIRST : MDB_SET_RANGE);
}

bool store_seek_before(struct store_txn *txn, enum store_table table, struct slice key,
                       struct store_cursor *ret_cursor)
{
    cursor_open(txn, table, ret_cursor);
    bool found = cursor_step(ret_cursor, to_val(key), MDB_SET_RANGE);
    return cursor_step(ret_cursor, (MDB_val){ 0 }, found ? MDB_PREV : MDB_LAST);
}

bool store_next(struct store_cursor *cursor)
{
    return cursor_step(cursor, (MDB_val){ 0 }, MDB_NEXT);
}

void store_cursor_delete(struct store_cursor *cursor)
{
    if (cursor->txn->rc != 0) return;
    cursor->txn->rc = store_value_check(cursor->handle, cursor->txn->store->page_bytes);
    if (cursor->txn->rc == 0) cursor->txn->rc = mdb_cursor_del(cursor->handle, 0);
}

void store_cursor_close(struct store_cursor *cursor)
{
    if (cursor->handle == NULL) return;
    mdb_cursor_close(cursor->handle);
    cursor->handle = NULL;
}

void store_get_space(struct store *store, struct store_space *ret_space)
{
    MDB_envinfo info;
    int rc = mdb_env_info(store->env, &info);
    assert(rc == 0);
    mdb_filehandle_t fd = -1;
    struct stat file = { 0 };
    rc = mdb_env_get_fd(store->env, &fd);
    if (rc != 0 || fstat(fd, &file) != 0) file.st_size = 0;
    ret_space->map_bytes = store->map_bytes;
    ret_space->used_bytes = ((uint64_t)info.me_last_pgno + 1) * store->page_bytes;
    ret_space->file_bytes = (uint64_t)file.st_size;
}

bool store_may_move(const struct store *store, size_t value_bytes)
{
    return value_bytes < store->page_bytes / 2;
}

uint64_t store_disk_bytes(struct store *store)
{
    struct statvfs space;
    if (statvfs(store->path, &space) != 0) return UINT64_MAX;
    return (uint64_t)space.f_bavail * space.f_frsize;
}

/* One line of LMDB's list of readers: process, thread, transaction; a title above, "-" for those
 * between transactions. LMDB shows the list in no other form. */
static int note_reader(const char *line, void *arg)
{
    size_t *oldest = arg, id = 0;
    int process = 0;
    if (sscanf(line, "%d %*x %zu", &process, &id) == 2 && id < *oldest) *oldest = id;
    return 0;
}

/* The oldest transaction that somebody still reads, the last one at most. */
static size_t oldest_read(struct store *store)
{
    MDB_envinfo info;
    int rc = mdb_env_info(store->env, &info);
    assert(rc == 0);
    size_t oldest = info.me_last_txnid;
    mdb_reader_list(store->env, note_reader, &oldest);
    return oldest;
}

bool store_await_readers(struct store *store, uint64_t wait_ns)
{
    enum { ASK_NS = 50000000 }; /* of readers in other processes */
    MDB_envinfo info;
    int rc = mdb_env_info(store->env, &info), dead = 0;
    assert(rc == 0);
    mdb_reader_check(store->env, &dead);
    uint64_t now_ns = clock_monotonic_ns(), end_ns = now_ns + wait_ns;
    size_t oldest = 0;
    pthread_mutex_lock(&store->end_lock);
    atomic_store(&store->awaiting, true);
    while ((oldest = oldest_read(store)) < info.me_last_txnid && now_ns < end_ns) {
        uint64_t due_ns = end_ns - now_ns < ASK_NS ? end_ns : now_ns + ASK_NS;
        clock_cond_wait(&store->ended, &store->end_lock, due_ns);
        now_ns = clock_monotonic_ns();
    }
    atomic_store(&store->awaiting, false);
    pthread_mutex_unlock(&store->end_lock);
    if (oldest >= info.me_last_txnid) return true;
    store->vain = oldest;
    return false;
}

bool store_awaits_in_vain(struct store *store)
{
    int dead = 0;
    if (store->vain == 0) return false;
    mdb_reader_check(store->env, &dead);
    return oldest_read(store) == store->vain; /* nobody can begin to read it any more */
}

/* It was read to its end, and nothing has changed since. */
static bool is_known(struct store *store, const struct free_list *list, const struct store_ask *ask,
                     struct store_free *ret_free)
{
    pthread_mutex_lock(&store->known_lock);
    const struct free_list *known = &store->known_list;
    bool same = known->last == list->last && known->oldest == list->oldest &&
                (known->group == list->group || ask->run_bytes == 0);
    if (same) *ret_free = store->known_free;
    pthread_mutex_unlock(&store->known_lock);
    return same;
}

static void know(struct store *store, const struct free_list *list, const struct store_free *found)
{
    pthread_mutex_lock(&store->known_lock);
    store->known_list = *list;
    store->known_free = *found;
    store->known_free.read_pages = 0;
    pthread_mutex_unlock(&store->known_lock);
}

void store_find_free(struct store *store, const struct store_ask *ask, struct store_free *ret_free)
{
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    MDB_envinfo info;
    *ret_free = (struct store_free){ 0 };
    if (mdb_txn_begin(store->env, NULL, MDB_RDONLY, &txn) != 0) return;
    int rc = mdb_env_info(store->env, &info); /* not older than the transaction */
    assert(rc == 0);
    size_t group = (PAGE_NODES - 1 + ask->value_bytes) / store->page_bytes + 1;
    struct free_list list = { .last = mdb_txn_id(txn),
                              .oldest = oldest_read(store),
                              .pages = info.me_last_pgno + 1,
                              .page_bytes = store->page_bytes,
                              .group = group };
    if (!is_known(store, &list, ask, ret_free) && mdb_cursor_open(txn, 0, &cursor) == 0) {
        if (!free_list_read(&list, cursor, ask, ret_free)) know(store, &list, ret_free);
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
}

int store_copy(struct store *store, const char *path, uint64_t *ret_bytes, struct error *err)
{
    if (mkdir(path, 0700) != 0)
        return error_set(err,
                         errno == EEXIST   ? MEMD_EEXIST
                         : errno == ENOSPC ? MEMD_EFULL
                                           : MEMD_EIO,
                         "cannot make the directory %.180s: %s", path, strerror(errno));
    int rc = mdb_env_copy2(store->env, path, MDB_CP_COMPACT);
    if (rc != 0) return fail(rc, path, err);
    char name[PATH_MAX];
    struct stat file = { 0 };
    int length = snprintf(name, sizeof name, "%s/data.mdb", path);
    if (length < 0 || (size_t)length >= sizeof name || stat(name, &file) != 0)
        return error_set(err, MEMD_EIO, "cannot find the copy in %.180s", path);
    CLEANUP(close_fd) int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) return fail(errno, name, err);
    *ret_bytes = (uint64_t)file.st_size;
    return 0;
}

bool store_get_number(struct store_txn *txn, const char *name, uint64_t *ret_value)
{
    struct slice value;
    if (!store_get(txn, STORE_META, (struct slice){ name, strlen(name) }, &value)) return false;
    return format_read_u64(value.data, value.bytes, ret_value);
}

void store_put_number(struct store_txn *txn, const char *name, uint64_t value)
{
    unsigned char bytes[8];
    format_put_u64(value, bytes);
    store_put(txn, STORE_META, (struct slice){ name, strlen(name) },
              (struct slice){ bytes, sizeof bytes });
}
