/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_list.c — what is there: one context in full, many by name.
 *
 * Counts of a resident context come from memory, of others from the ends of their chains and
 * tails, so that a list loads nothing. How much of a context is shared costs a look at each
 * segment's count: stat says it, and a list says it until it has looked at LOOKS_MAX of them,
 * then it ends early and says `more`.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"
#include "memory/derived.h"
#include "memory/owned.h"

enum { LOOKS_MAX = 200 * 1000 };

static int copy_record(const struct record *record, struct arena *arena, struct context_info *info,
                       struct error *err)
{
    memcpy(info->name, record->name, sizeof info->name);
    memcpy(info->method, record->method, sizeof info->method);
    info->parent_id = record->parent_id;
    info->model = record->model;
    info->created_unix_ms = record->created_unix_ms;
    info->used_unix_ms = record->used_unix_ms;
    info->retained_until_unix_ms = record->retained_until_unix_ms;
    info->parameter_count = record->parameter_count;
    struct parameter *parameters = arena_calloc(arena, record->parameter_count, sizeof *parameters);
    uint64_t *layer_tokens = arena_calloc(arena, record->model.layers, sizeof *layer_tokens);
    if (parameters == NULL || layer_tokens == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for a context");
    memcpy(parameters, record->parameters, record->parameter_count * sizeof *parameters);
    info->parameters = parameters;
    info->layer_tokens = layer_tokens;
    return 0;
}

/* Bytes of all segments, and of those that other contexts hold too. */
static void count_segments(struct store_txn *txn, struct context_info *info, uint64_t *looks)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    struct store_cursor cursor;
    struct chain_key key;
    bool found = store_seek(txn, STORE_CHAINS,
                            (struct slice){ buffer, format_key_chain(info->id, 0, 0, buffer) },
                            &cursor);
    while (found && format_read_chain(cursor.key.data, cursor.key.bytes, &key) &&
           key.context == info->id) {
        uint64_t segment = 0;
        struct segment_ref ref = { 0 };
        struct slice value;
        unsigned char id[FORMAT_KEY_BYTES_MAX];
        if (format_read_u64(cursor.value.data, cursor.value.bytes, &segment) &&
            store_get(txn, STORE_REFS, (struct slice){ id, format_key_id(segment, id) }, &value) &&
            format_read_ref(value.data, value.bytes, &ref)) {
            info->stored_bytes += ref.bytes;
            if (ref.count > 1) info->shared_bytes += ref.bytes;
        }
        uint64_t derived = derived_bytes(txn, segment, info->model.kv_heads); /* rows, no states */
        info->derived_bytes += derived;
        info->built_segments += derived > 0;
        info->sealed_segments++;
        (*looks)++;
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
}

/* Saved indexes; what they cover, as far as every layer in use has one. */
static void count_indexes(struct store_txn *txn, struct context_info *info)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < info->model.layers; i++) {
        unsigned char key[FORMAT_KEY_BYTES_MAX];
        struct slice value;
        struct value_header header = { 0 };
        bool saved = store_get(txn, STORE_INDEXES,
                               (struct slice){ key, format_key_layer(info->id, i, key) }, &value);
        if (saved) info->stored_bytes += value.bytes;
        if (saved) info->derived_bytes += value.bytes;
        if (!saved || format_decode(value.data, value.bytes, &header, NULL) < 0)
            header.position = 0;
        if (info->layer_tokens[i] > 0 && header.position < least) least = header.position;
    }
    info->indexed_tokens = least == UINT64_MAX ? 0 : least;
}

/* What those of a resident cover, saved or not. With context->lock held. */
static uint64_t indexed_tokens(const struct context *context)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        const struct layer *layer = &context->layers[i];
        uint64_t covered = layer->version == NULL ? 0 : layer->version->tokens;
        if (layer_tokens(layer) > 0 && covered < least) least = covered;
    }
    return least == UINT64_MAX ? 0 : least;
}

static void count_stored_layers(struct store_txn *txn, struct context_info *info,
                                uint64_t *layer_counts)
{
    uint64_t least = UINT64_MAX, segments = 0;
    for (uint32_t i = 0; i < info->model.layers; i++) {
        layer_counts[i] = chain_tokens(txn, info->id, i, &segments);
        if (layer_counts[i] > 0 && layer_counts[i] < least) least = layer_counts[i];
    }
    info->tokens = info->committed_tokens = info->synced_tokens = least == UINT64_MAX ? 0 : least;
}

/* False when it is not resident. */
static bool count_resident_layers(struct catalog *catalog, struct context_info *info,
                                  uint64_t *layer_counts, uint64_t *ret_indexed)
{
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, info->id);
    bool resident = context != NULL && !context->dropping;
    if (resident) {
        pthread_mutex_lock(&context->lock);
        for (uint32_t i = 0; i < info->model.layers; i++)
            layer_counts[i] = layer_tokens(&context->layers[i]);
        info->tokens = context_common(context, layer_tokens);
        info->committed_tokens = context_common(context, layer_committed);
        info->synced_tokens = context_common(context, layer_synced);
        *ret_indexed = indexed_tokens(context);
        pthread_mutex_unlock(&context->lock);
        info->used_unix_ms = atomic_load(&context->used_unix_ms);
        info->retained_until_unix_ms = context->record->retained_until_unix_ms;
        info->resident = true;
    }
    pthread_mutex_unlock(&catalog->lock);
    return resident;
}

static int fill_info(struct catalog *catalog, struct store_txn *txn, struct arena *arena,
                     struct context_info *info, uint64_t *looks, struct error *err)
{
    CLEANUP(free_ptr) struct record *record = NULL;
    int rc = catalog_read_record(catalog, txn, info->id, &record, err);
    if (rc == 0) rc = copy_record(record, arena, info, err);
    if (rc < 0) return rc;
    uint64_t *layer_counts = (uint64_t *)(uintptr_t)info->layer_tokens; /* ours, just made */
    uint64_t indexed = 0;
    bool resident = count_resident_layers(catalog, info, layer_counts, &indexed);
    if (!resident) count_stored_layers(txn, info, layer_counts);
    count_segments(txn, info, looks);
    info->stored_bytes += owned_bytes(txn, STORE_TAILS, info->id) +
                          owned_bytes(txn, STORE_NOTES, info->id) +
                          owned_bytes(txn, STORE_PARAMS, info->id);
    count_indexes(txn, info);
    if (resident) info->indexed_tokens = indexed;
    return store_failed(txn, err);
}

int catalog_stat(struct catalog *catalog, uint64_t context_id, struct arena *arena,
                 struct context_info *ret_info, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    uint64_t looks = 0;
    *ret_info = (struct context_info){ .id = context_id };
    return fill_info(catalog, &txn, arena, ret_info, &looks, err);
}

/* Stand on the first name to list. */
static bool seek_name(struct store_txn *txn, const char *prefix, const char *after,
                      struct store_cursor *cursor)
{
    const char *from = strcmp(after, prefix) > 0 ? after : prefix;
    bool found = store_seek(txn, STORE_NAMES, (struct slice){ from, strlen(from) }, cursor);
    bool same = found && cursor->key.bytes == strlen(after) &&
                memcmp(cursor->key.data, after, cursor->key.bytes) == 0;
    return same ? store_next(cursor) : found;
}

/* Fill the page from the cursor on; whether there is more. */
static int fill_page(struct catalog *catalog, struct store_cursor *cursor,
                     const struct list_args *args, struct arena *arena, struct list_page *page,
                     struct error *err)
{
    size_t prefix_bytes = strlen(args->prefix);
    uint64_t looks = 0;
    int rc = 0;
    for (bool found = cursor->key.data != NULL; rc == 0; found = store_next(cursor)) {
        page->more = found && cursor->key.bytes >= prefix_bytes &&
                     memcmp(cursor->key.data, args->prefix, prefix_bytes) == 0;
        if (!page->more || page->count == args->limit || looks > LOOKS_MAX) break;
        struct context_info *info = &page->infos[page->count++];
        if (!format_read_u64(cursor->value.data, cursor->value.bytes, &info->id))
            return error_set(err, MEMD_ECORRUPT, "a name has a malformed id");
        rc = fill_info(catalog, cursor->txn, arena, info, &looks, err);
    }
    return rc < 0 ? rc : store_failed(cursor->txn, err);
}

int catalog_list(struct catalog *catalog, const struct list_args *args, struct arena *arena,
                 struct list_page *ret_page, struct error *err)
{
    struct list_args bounded = *args;
    if (bounded.limit == 0 || bounded.limit > LIMIT_LIST) bounded.limit = LIMIT_LIST;
    struct list_page page = { .infos = arena_calloc(arena, bounded.limit, sizeof *page.infos) };
    if (page.infos == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu contexts", bounded.limit);
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    struct store_cursor cursor;
    if (!seek_name(&txn, args->prefix, args->after, &cursor)) cursor.key.data = NULL;
    rc = fill_page(catalog, &cursor, &bounded, arena, &page, err);
    store_cursor_close(&cursor);
    if (rc < 0) return rc;
    *ret_page = page;
    return 0;
}

struct retain_job {
    struct writer_job job;
    uint64_t id, until_unix_ms;
};

static int run_retain(struct writer_job *job, struct error *err)
{
    struct retain_job *retain = (struct retain_job *)(void *)job;
    struct catalog *catalog = job->catalog;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, true, &txn, err);
    CLEANUP(free_ptr) struct record *record = NULL;
    if (rc == 0) rc = catalog_read_record(catalog, &txn, retain->id, &record, err);
    if (rc < 0) return rc;
    record->retained_until_unix_ms = retain->until_unix_ms;
    catalog_put_record(&txn, retain->id, record);
    rc = catalog_commit(catalog, &txn, 0, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, retain->id);
    if (context != NULL && context->record != NULL)
        context->record->retained_until_unix_ms = retain->until_unix_ms;
    pthread_mutex_unlock(&catalog->lock);
    return 0;
}

int catalog_retain(struct catalog *catalog, uint64_t context_id, uint64_t seconds,
                   uint64_t *ret_until_unix_ms, struct error *err)
{
    if (seconds > LIMIT_PIN_SECONDS)
        return error_set(err, MEMD_ELIMIT, "%" PRIu64 " seconds, %" PRIu64 " are the most", seconds,
                         LIMIT_PIN_SECONDS);
    struct retain_job retain = {
        .job = { .run = run_retain, .catalog = catalog },
        .id = context_id,
        .until_unix_ms = seconds == 0 ? 0 : catalog_now_ms() + seconds * 1000,
    };
    int rc = writer_run(catalog->writer, &retain.job, err);
    if (rc == 0) *ret_until_unix_ms = retain.until_unix_ms;
    return rc;
}
