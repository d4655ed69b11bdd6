/* SPDX-License-Identifier: Apache-2.0 */
/* rebuild.c — taking derived data away: from every resident context first, so that nobody reads
 * what is deleted, then from the store, a few segments per transaction.
 *
 * A segment may be shared by forks, resident or not; the store does not say by whom, and it need
 * not: residents are few, and each is asked for the segments it holds.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "memory/build.h"
#include "memory/builder.h"
#include "memory/chain.h"
#include "memory/derived.h"

enum { STEP_SEGMENTS = 64 };
#define MARGIN_BYTES_MAX (UINT64_C(256) << 20)

/* Rows must find room where derived data would have taken the last of it. */
int build_check_room(struct catalog *catalog, uint64_t bytes, struct error *err)
{
    uint64_t budget = atomic_load(&catalog->budget_bytes),
             stored = atomic_load(&catalog->stored_bytes);
    uint64_t margin = catalog->map_bytes / 16 < MARGIN_BYTES_MAX ? catalog->map_bytes / 16
                                                                 : MARGIN_BYTES_MAX;
    /* The last tenth is for rows alone: what was derived before they came is not taken back. */
    if (budget > 0 && stored + bytes > budget / 10 * 9)
        return error_set(err, MEMD_EFULL, "the budget has no room for derived data");
    if (store_disk_bytes(catalog->store) < bytes + margin)
        return error_set(err, MEMD_EFULL, "the disk has no room for derived data");
    struct store_space space;
    store_get_space(catalog->store, &space);
    uint64_t room = space.map_bytes > space.used_bytes ? space.map_bytes - space.used_bytes : 0;
    if (room >= bytes + margin) return 0;
    struct store_ask ask = { .bytes = bytes + margin - room };
    struct store_free pages;
    store_find_free(catalog->store, &ask, &pages);
    if (pages.usable_bytes >= ask.bytes) return 0;
    return error_set(err, MEMD_EFULL, "the map has no room for derived data");
}

struct ids {
    uint64_t *ids;
    size_t count, capacity;
};

static void free_ids(struct ids *ids)
{
    free(ids->ids);
}

static int add_id(struct ids *ids, uint64_t id)
{
    if (ids->count == ids->capacity) {
        size_t capacity = ids->capacity == 0 ? 64 : 2 * ids->capacity;
        uint64_t *larger = realloc(ids->ids, capacity * sizeof *larger);
        if (larger == NULL) return MEMD_ENOMEM;
        ids->ids = larger;
        ids->capacity = capacity;
    }
    ids->ids[ids->count++] = id;
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static int list_residents(struct catalog *catalog, struct ids *ids)
{
    int rc = 0;
    pthread_mutex_lock(&catalog->lock);
    size_t at = 0;
    for (struct context *context;
         rc == 0 && (context = map_next(&catalog->residents, &at)) != NULL;) {
        if (context->record != NULL && !context->dropping) rc = add_id(ids, context->id);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

/* With use held exclusively and lock held; whether there was anything. */
static bool take_planes(struct context *context, const uint64_t *segments, size_t count)
{
    bool any = false;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        const struct layer *layer = &context->layers[i];
        for (size_t j = 0; j < layer->slot_count; j++) {
            struct slot *slot = &layer->slots[j];
            if (slot->segment == 0 || bsearch(&slot->segment, segments, count, sizeof *segments,
                                              compare_ids) == NULL)
                continue;
            slot_drop_planes(slot);
            slot->build = SLOT_UNSEEN;
            any = true;
        }
    }
    return any;
}

static bool holds_any(struct context *context, const uint64_t *segments, size_t count)
{
    bool any = false;
    pthread_mutex_lock(&context->lock);
    for (uint32_t i = 0; !any && i < context->record->model.layers; i++) {
        const struct layer *layer = &context->layers[i];
        for (size_t j = 0; !any && j < layer->slot_count; j++) {
            const struct slot *slot = &layer->slots[j];
            any = slot->planes != NULL && bsearch(&slot->segment, segments, count,
                                                  sizeof *segments, compare_ids) != NULL;
        }
    }
    pthread_mutex_unlock(&context->lock);
    return any;
}

int build_unpublish(struct catalog *catalog, const uint64_t *segments, size_t count,
                    struct error *err)
{
    CLEANUP(free_ids) struct ids residents = { 0 };
    if (list_residents(catalog, &residents) < 0)
        return error_set(err, MEMD_ENOMEM, "no memory for a list of contexts");
    for (size_t i = 0; i < residents.count; i++) {
        struct build other = { .catalog = catalog, .context_id = residents.ids[i] };
        if (!build_pin(&other)) continue;
        struct context *context = other.context;
        if (holds_any(context, segments, count)) {
            context_lock_alone(context);
            pthread_mutex_lock(&context->lock);
            take_planes(context, segments, count);
            pthread_mutex_unlock(&context->lock);
            context_unlock_alone(context);
            builder_wake(catalog->builder, context);
        }
        build_unpin(&other);
    }
    return 0;
}

struct delete_job {
    struct writer_job job;
    const uint64_t *segments;
    size_t count;
    uint64_t deleted, bytes;
    struct layer_key index; /* or context 0 */
};

static int run_delete(struct writer_job *job, struct error *err)
{
    struct delete_job *delete = (struct delete_job *)(void *)job;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    int64_t delta = 0;
    uint64_t deleted = 0;
    for (size_t i = 0; i < delete->count; i++)
        deleted += derived_delete(&txn, delete->segments[i], &delta);
    if (delete->index.context != 0) chain_cut_index(&txn, &delete->index, 0, &delta);
    rc = catalog_commit(job->catalog, &txn, delta, err);
    if (rc < 0) return rc;
    delete->deleted += deleted;
    delete->bytes += (uint64_t)-delta;
    return 0;
}

static int list_segments(struct catalog *catalog, uint64_t context_id, struct ids *ids,
                         struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_chain(context_id, 0, 0, buffer);
    struct store_cursor cursor;
    struct chain_key key;
    uint64_t segment = 0;
    bool found = store_seek(&txn, STORE_CHAINS, (struct slice){ buffer, bytes }, &cursor);
    for (; rc == 0 && found && format_read_chain(cursor.key.data, cursor.key.bytes, &key) &&
           key.context == context_id;
         found = store_next(&cursor)) {
        if (format_read_u64(cursor.value.data, cursor.value.bytes, &segment))
            rc = add_id(ids, segment);
    }
    store_cursor_close(&cursor);
    if (rc < 0) return error_set(err, rc, "no memory for a list of segments");
    if (ids->count > 1) qsort(ids->ids, ids->count, sizeof *ids->ids, compare_ids);
    return store_failed(&txn, err);
}

static int delete_planes(struct delete_job *delete, const struct ids *segments, struct error *err)
{
    struct catalog *catalog = delete->job.catalog;
    int rc = 0;
    for (size_t first = 0; rc == 0 && first < segments->count; first += STEP_SEGMENTS) {
        delete->segments = segments->ids + first;
        delete->count = segments->count - first < STEP_SEGMENTS ? segments->count - first
                                                                : STEP_SEGMENTS;
        pthread_rwlock_wrlock(&catalog->planes_lock);
        rc = build_unpublish(catalog, delete->segments, delete->count, err);
        if (rc == 0) rc = writer_run(catalog->writer, &delete->job, err);
        pthread_rwlock_unlock(&catalog->planes_lock);
    }
    delete->count = 0;
    return rc;
}

/* Those of every layer; how many may be saved. Readers keep their reference. */
static uint32_t take_versions(struct catalog *catalog, uint64_t context_id)
{
    struct build build = { .catalog = catalog, .context_id = context_id };
    if (!build_pin(&build)) return 0;
    struct context *context = build.context;
    const struct method *method = context->method;
    bool any = method->layer != NULL || method->fold != NULL;
    uint32_t layers = any ? context->record->model.layers : 0;
    for (uint32_t i = 0; i < layers; i++) {
        pthread_mutex_lock(&context->lock);
        struct layer_index *version = context->layers[i].version;
        context->layers[i].version = NULL;
        pthread_mutex_unlock(&context->lock);
        layer_index_put(version);
    }
    build_unpin(&build);
    return layers;
}

/* When their checkpoints are gone. */
static void take_folds(struct context *context)
{
    if (context->method->fold == NULL) return;
    context_lock_alone(context);
    for (uint32_t i = 0; i < context->record->model.layers; i++)
        fold_drop(context, &context->layers[i]);
    context_unlock_alone(context);
}

int build_delete(struct catalog *catalog, uint64_t context_id, struct rebuild_step *step,
                 struct error *err)
{
    CLEANUP(free_ids) struct ids segments = { 0 };
    struct delete_job delete = { .job = { .run = run_delete, .catalog = catalog, .frees = true } };
    int rc = list_segments(catalog, context_id, &segments, err);
    if (rc == 0) rc = delete_planes(&delete, &segments, err);
    uint32_t layers = take_versions(catalog, context_id);
    for (uint32_t i = 0; rc == 0 && i < layers; i++) {
        delete.index = (struct layer_key){ context_id, i };
        rc = writer_run(catalog->writer, &delete.job, err);
    }
    struct build build = { .catalog = catalog, .context_id = context_id };
    if (build_pin(&build)) {
        take_folds(build.context);
        builder_wake(catalog->builder, build.context);
    }
    build_unpin(&build);
    if (rc < 0) return rc;
    step->segments = delete.deleted;
    step->bytes = delete.bytes;
    return 0;
}
