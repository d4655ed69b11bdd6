/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_drop.c — dropping in three movements: mark (the name is free, the record says so),
 * wait for pins, remove in bounded transactions. The marker `dropping/ID` in the table meta
 * finds it again after a crash.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"
#include "memory/owned.h"

enum { STEP_SEGMENTS = 256, MARKER_BYTES = 40 };

#define MARKER_PREFIX "dropping/"

static struct slice marker(uint64_t id, char buffer[MARKER_BYTES])
{
    int length = snprintf(buffer, MARKER_BYTES, MARKER_PREFIX "%020" PRIu64, id);
    assert(length > 0 && length < MARKER_BYTES);
    return (struct slice){ buffer, (size_t)length };
}

bool drop_pending(struct store_txn *txn, uint64_t *ret_id)
{
    struct store_cursor cursor;
    struct slice prefix = { MARKER_PREFIX, strlen(MARKER_PREFIX) };
    bool found = store_seek(txn, STORE_META, prefix, &cursor) && cursor.key.bytes > prefix.bytes &&
                 memcmp(cursor.key.data, prefix.data, prefix.bytes) == 0 &&
                 format_read_u64(cursor.value.data, cursor.value.bytes, ret_id);
    store_cursor_close(&cursor);
    return found;
}

/* The name of a record that cannot be read any more. */
static void free_name_by_id(struct store_txn *txn, uint64_t id)
{
    struct store_cursor cursor;
    uint64_t at = 0;
    bool found = store_seek(txn, STORE_NAMES, (struct slice){ NULL, 0 }, &cursor);
    while (found && !(format_read_u64(cursor.value.data, cursor.value.bytes, &at) && at == id)) {
        found = store_next(&cursor);
    }
    if (found) store_cursor_delete(&cursor);
    store_cursor_close(&cursor);
}

static int free_name(struct catalog *catalog, struct store_txn *txn, uint64_t id, struct error *err)
{
    CLEANUP(free_ptr) struct record *record = NULL;
    int rc = catalog_read_record(catalog, txn, id, &record, err);
    if (rc == MEMD_ECORRUPT) {
        free_name_by_id(txn, id);
        return 0;
    }
    if (rc < 0) return rc;
    store_delete(txn, STORE_NAMES, (struct slice){ record->name, strlen(record->name) });
    record->dropping = true;
    catalog_put_record(txn, id, record);
    return 0;
}

int drop_begin(struct catalog *catalog, uint64_t id, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    rc = free_name(catalog, &txn, id, err);
    if (rc < 0) return rc;
    unsigned char value[8];
    char name[MARKER_BYTES];
    format_put_u64(id, value);
    store_put(&txn, STORE_META, marker(id, name), (struct slice){ value, sizeof value });
    return catalog_commit(catalog, &txn, 0, err);
}

/* The layer of the first chain entry of the context; false when it has none. */
static bool first_chain(struct store_txn *txn, uint64_t id, struct chain_key *ret_key)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct store_cursor cursor;
    bool found = store_seek(txn, STORE_CHAINS,
                            (struct slice){ buffer, format_key_chain(id, 0, 0, buffer) },
                            &cursor) &&
                 format_read_chain(cursor.key.data, cursor.key.bytes, ret_key) &&
                 ret_key->context == id;
    store_cursor_close(&cursor);
    return found;
}

int drop_step(struct catalog *catalog, uint64_t id, uint64_t *bytes, bool *ret_done,
              struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    int64_t delta = 0;
    uint64_t removed = 0;
    struct chain_key chain;
    static const enum store_table owned[] = { STORE_TAILS, STORE_INDEXES, STORE_NOTES,
                                              STORE_PARAMS };
    while (removed < STEP_SEGMENTS && first_chain(&txn, id, &chain)) {
        removed += chain_cut(&txn, &chain, STEP_SEGMENTS - removed, &delta);
    }
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        removed += owned_clear(&txn, owned[i], id, STEP_SEGMENTS - removed, &delta);
    bool done = removed < STEP_SEGMENTS;
    if (done) {
        unsigned char key[FORMAT_KEY_BYTES_MAX];
        char name[MARKER_BYTES];
        store_delete(&txn, STORE_CONTEXTS, (struct slice){ key, format_key_id(id, key) });
        store_delete(&txn, STORE_META, marker(id, name));
    }
    rc = catalog_commit(catalog, &txn, delta, err);
    if (rc < 0) return rc;
    *bytes += (uint64_t)-delta;
    *ret_done = done;
    return 0;
}

struct drop_job {
    struct writer_job job;
    uint64_t id, bytes;
    struct context *context;
    bool done;
};

static int run_begin(struct writer_job *job, struct error *err)
{
    struct drop_job *drop = (struct drop_job *)(void *)job;
    return drop_begin(job->catalog, drop->id, err);
}

static int run_step(struct writer_job *job, struct error *err)
{
    struct drop_job *drop = (struct drop_job *)(void *)job;
    writer_forget(job->catalog->writer, drop->context);
    return drop_step(job->catalog, drop->id, &drop->bytes, &drop->done, err);
}

int drop_claim(struct catalog *catalog, uint64_t id, bool only_idle, struct context **ret_context,
               struct error *err)
{
    CLEANUP(context_freep) struct context *fresh = NULL;
    int rc = context_new(catalog, id, NULL, &fresh, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, id);
    if (context == NULL) {
        rc = map_put(&catalog->residents, id, fresh);
        if (rc == 0) {
            atomic_fetch_add(&catalog->resident_count, 1);
            list_append(&catalog->lru, &fresh->lru_link);
            context = TAKE(fresh);
        }
    } else if (context->dropping) {
        rc = MEMD_ENOCONTEXT;
    } else if (only_idle && (context->pins > context->builder_pins ||
                             writer_is_dirty(catalog->writer, context))) {
        rc = MEMD_EBUSY;
    }
    if (rc == 0) context->dropping = true;
    pthread_mutex_unlock(&catalog->lock);
    if (rc < 0)
        return error_set(err, rc, "context %" PRIu64 " cannot be dropped: %s", id, error_text(rc));
    *ret_context = context;
    return 0;
}

/* Out of the map; pins are gone, and with dropping set none can come. */
void drop_release(struct catalog *catalog, struct context *context)
{
    pthread_mutex_lock(&catalog->lock);
    map_remove(&catalog->residents, context->id);
    list_remove(&context->lru_link);
    builder_remove(catalog->builder, context);
    atomic_fetch_sub(&catalog->resident_count, 1);
    pthread_mutex_unlock(&catalog->lock);
    context_free(context);
}

void drop_unclaim(struct catalog *catalog, struct context *context)
{
    bool placeholder = context->record == NULL;
    pthread_mutex_lock(&catalog->lock);
    context->dropping = placeholder;
    if (!placeholder) builder_add(catalog->builder, context); /* it passed over the context */
    pthread_mutex_unlock(&catalog->lock);
    if (placeholder) drop_release(catalog, context);
}

void drop_wait_unpinned(struct catalog *catalog, struct context *context)
{
    pthread_mutex_lock(&catalog->lock);
    while (context->pins > 0) pthread_cond_wait(&catalog->unpinned, &catalog->lock);
    pthread_mutex_unlock(&catalog->lock);
}

int catalog_drop(struct catalog *catalog, uint64_t context_id, uint64_t *ret_bytes,
                 struct error *err)
{
    struct drop_job drop = { .job = { .run = run_begin, .catalog = catalog, .frees = true },
                             .id = context_id };
    pthread_mutex_lock(&catalog->load_lock);
    int rc = drop_claim(catalog, context_id, false, &drop.context, err);
    pthread_mutex_unlock(&catalog->load_lock);
    if (rc < 0) return rc;
    rc = writer_run(catalog->writer, &drop.job, err);
    if (rc < 0) { /* nothing has changed: it stays */
        drop_unclaim(catalog, drop.context);
        return rc;
    }
    drop_wait_unpinned(catalog, drop.context);
    drop.job.run = run_step;
    while (rc == 0 && !drop.done) rc = writer_run(catalog->writer, &drop.job, err);
    drop_release(catalog, drop.context);
    if (rc < 0) return rc; /* the marker stays: the next start goes on */
    *ret_bytes = drop.bytes;
    return 0;
}
