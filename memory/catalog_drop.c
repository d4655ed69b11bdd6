/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_drop.c — dropping in three movements: mark (the name is free, the record says so),
 * wait for pins, remove in bounded transactions. The marker `dropping/ID` in the table meta
 * finds it again after a crash, and after a step that failed: the writer goes on with it.
 *
 * The movements are jobs of the writer, whoever drops: a worker queues them, an eviction is on the
 * writer's thread already and runs them there.
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

struct drop_job {
    struct writer_job job;
    uint64_t id, bytes;
    struct context *context; /* NULL: nobody has it in memory */
    bool here; /* on the writer's thread */
    bool done;
};

/* Mark as dropping and free the name. */
static int run_begin(struct writer_job *job, struct error *err)
{
    struct drop_job *drop = (struct drop_job *)(void *)job;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    rc = free_name(job->catalog, &txn, drop->id, err);
    if (rc < 0) return rc;
    unsigned char value[8];
    char name[MARKER_BYTES];
    format_put_u64(drop->id, value);
    store_put(&txn, STORE_META, marker(drop->id, name), (struct slice){ value, sizeof value });
    return catalog_commit(job->catalog, &txn, 0, err);
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

/* A bounded part of what is marked. */
static int run_step(struct writer_job *job, struct error *err)
{
    struct drop_job *drop = (struct drop_job *)(void *)job;
    uint64_t id = drop->id;
    if (drop->context != NULL) writer_forget(job->catalog->writer, drop->context);
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(job->catalog->store, true, &txn, err);
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
    rc = catalog_commit(job->catalog, &txn, delta, err);
    if (rc < 0) return rc;
    drop->bytes += (uint64_t)-delta;
    drop->done = done;
    return 0;
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
static void release(struct catalog *catalog, struct context *context)
{
    pthread_mutex_lock(&catalog->lock);
    map_remove(&catalog->residents, context->id);
    list_remove(&context->lru_link);
    builder_remove(catalog->builder, context);
    atomic_fetch_sub(&catalog->resident_count, 1);
    pthread_mutex_unlock(&catalog->lock);
    context_free(context);
}

/* Nothing was changed: give it back to others. */
static void unclaim(struct catalog *catalog, struct context *context)
{
    bool placeholder = context->record == NULL;
    pthread_mutex_lock(&catalog->lock);
    context->dropping = placeholder;
    if (!placeholder) builder_add(catalog->builder, context); /* it passed over the context */
    pthread_mutex_unlock(&catalog->lock);
    if (placeholder) release(catalog, context);
}

/* Nobody pins it any more. With `dropping` set none can come. */
static void wait_unpinned(struct catalog *catalog, struct context *context)
{
    pthread_mutex_lock(&catalog->lock);
    while (context->pins > 0) pthread_cond_wait(&catalog->unpinned, &catalog->lock);
    pthread_mutex_unlock(&catalog->lock);
}

/* On the writer's own thread at once, from any other in its turn. */
static int run(struct drop_job *drop, int (*movement)(struct writer_job *job, struct error *err),
               struct error *err)
{
    struct writer *writer = drop->job.catalog->writer;
    drop->job.run = movement;
    return drop->here ? writer_run_here(writer, &drop->job, err)
                      : writer_run(writer, &drop->job, err);
}

static int remove_all(struct drop_job *drop, struct error *err)
{
    int rc = 0;
    while (rc == 0 && !drop->done) rc = run(drop, run_step, err);
    return rc;
}

/* *ret_gone: the name is, and the rest will be. */
static int drop_claimed(struct drop_job *drop, bool *ret_gone, struct error *err)
{
    struct catalog *catalog = drop->job.catalog;
    int rc = run(drop, run_begin, err);
    *ret_gone = rc == 0;
    if (rc < 0) {
        unclaim(catalog, drop->context);
        return rc;
    }
    wait_unpinned(catalog, drop->context); /* of an eviction: the builder, which lets go at once */
    rc = remove_all(drop, err);
    release(catalog, drop->context);
    if (rc < 0) writer_wish_drops(catalog->writer);
    return rc;
}

int catalog_drop(struct catalog *catalog, uint64_t context_id, uint64_t *ret_bytes,
                 struct error *err)
{
    struct drop_job drop = { .job = { .catalog = catalog, .frees = true }, .id = context_id };
    bool gone = false;
    pthread_mutex_lock(&catalog->load_lock);
    int rc = drop_claim(catalog, context_id, false, &drop.context, err);
    pthread_mutex_unlock(&catalog->load_lock);
    if (rc == 0) rc = drop_claimed(&drop, &gone, err);
    if (rc == 0) *ret_bytes = drop.bytes;
    return rc;
}

int drop_here(struct catalog *catalog, struct context *context, struct error *err)
{
    struct drop_job drop = { .job = { .catalog = catalog, .frees = true }, .id = context->id,
                             .context = context, .here = true };
    bool gone = false;
    int rc = drop_claimed(&drop, &gone, err);
    return gone ? 0 : rc;
}

/* What somebody drops now is not left over. */
static bool is_under_way(struct catalog *catalog, uint64_t id)
{
    pthread_mutex_lock(&catalog->lock);
    const struct context *context = map_get(&catalog->residents, id);
    bool dropping = context != NULL && context->dropping;
    pthread_mutex_unlock(&catalog->lock);
    return dropping;
}

/* The first context behind `after` whose drop was begun and left. 1, 0: there is none. */
static int next_left(struct catalog *catalog, uint64_t after, uint64_t *ret_id, struct error *err)
{
    char name[MARKER_BYTES];
    struct slice prefix = { MARKER_PREFIX, strlen(MARKER_PREFIX) };
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    struct store_cursor cursor;
    bool found = store_seek(&txn, STORE_META, marker(after + 1, name), &cursor), left = false;
    for (; found && !left; found = store_next(&cursor)) {
        if (cursor.key.bytes <= prefix.bytes ||
            memcmp(cursor.key.data, prefix.data, prefix.bytes) != 0)
            break;
        left = format_read_u64(cursor.value.data, cursor.value.bytes, ret_id) &&
               !is_under_way(catalog, *ret_id);
    }
    store_cursor_close(&cursor);
    rc = store_failed(&txn, err);
    return rc < 0 ? rc : left;
}

/* Damage is of one context as a rule, and stays: it holds up nobody else, and no timer is set for
 * it. */
int drop_resume(struct catalog *catalog, struct error *err)
{
    uint64_t id = 0, damaged = 0;
    int first = 0, rc;
    while ((rc = next_left(catalog, id, &id, err)) > 0) {
        struct drop_job drop = { .job = { .catalog = catalog, .frees = true }, .id = id,
                                 .here = true };
        rc = remove_all(&drop, first == 0 ? err : NULL);
        damaged += rc == MEMD_ECORRUPT;
        if (first == 0 && rc != MEMD_ECORRUPT) first = rc;
    }
    atomic_store(&catalog->damaged_drops, damaged);
    if (first == 0) first = rc;
    if (first < 0) writer_wish_drops(catalog->writer);
    return first;
}
