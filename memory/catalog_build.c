/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_build.c — what an operator may ask of the builder: how far it is, to wait for it, to make
 * everything again. */
#include <inttypes.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"

enum { PIN_BYTES = 64 << 10 };

/* With context->lock held. */
static void count_layer(const struct context *context, const struct layer *layer,
                        struct build_progress *progress)
{
    const struct layer_index_type *type = context->method->layer;
    for (size_t i = 0; context->method->planes && i < layer->slot_count; i++) {
        if (layer->slots[i].segment == 0) continue;
        progress->segments++;
        progress->built += layer->slots[i].planes != NULL;
    }
    uint64_t tokens = layer->committed / FORMAT_SEGMENT_TOKENS * FORMAT_SEGMENT_TOKENS;
    if (!method_builds(context->method) || tokens < type->step_tokens) return;
    uint64_t covered = layer->version == NULL ? 0 : layer->version->tokens;
    progress->indexes++;
    progress->built_indexes += tokens < covered + type->step_tokens;
}

static void fill_progress(struct context *context, struct build_progress *ret_progress)
{
    struct build_progress progress = { 0 };
    pthread_mutex_lock(&context->catalog->lock);
    progress.failures = context->build.failures;
    progress.last_failure = context->build.last_failure;
    pthread_mutex_unlock(&context->catalog->lock);
    pthread_mutex_lock(&context->lock);
    for (uint32_t i = 0; i < context->record->model.layers; i++)
        count_layer(context, &context->layers[i], &progress);
    pthread_mutex_unlock(&context->lock);
    *ret_progress = progress;
}

int catalog_built(struct catalog *catalog, uint64_t context_id, struct build_progress *ret_progress,
                  struct error *err)
{
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, PIN_BYTES);
    struct context *context = NULL;
    int rc = catalog_pin(catalog, context_id, &arena, &context, err);
    if (rc == 0) fill_progress(context, ret_progress);
    return rc;
}

int catalog_wait_built(struct catalog *catalog, uint64_t context_id, int (*stop)(void *arg),
                       void *stop_arg, struct build_progress *ret_progress, struct error *err)
{
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, PIN_BYTES);
    struct context *context = NULL;
    int rc = catalog_pin(catalog, context_id, &arena, &context, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&catalog->lock);
    while (rc == 0 && builder_is_busy(catalog->builder, context)) {
        builder_wait(catalog->builder);
        if (stop == NULL) continue;
        pthread_mutex_unlock(&catalog->lock);
        rc = stop(stop_arg);
        pthread_mutex_lock(&catalog->lock);
    }
    pthread_mutex_unlock(&catalog->lock);
    if (rc < 0) return error_set(err, rc, "stopped while waiting for the builder");
    fill_progress(context, ret_progress);
    return 0;
}

/* The first context with an id above `after`; 0 when there is none. */
static int next_context(struct catalog *catalog, uint64_t after, uint64_t *ret_id,
                        struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    struct store_cursor cursor;
    *ret_id = 0;
    bool found = store_seek(&txn, STORE_CONTEXTS,
                            (struct slice){ key, format_key_id(after + 1, key) }, &cursor);
    if (found) format_read_id(cursor.key.data, cursor.key.bytes, ret_id);
    store_cursor_close(&cursor);
    return store_failed(&txn, err);
}

/* Delete what one context has; it becomes resident, so that the builder sees it. */
static int rebuild(struct catalog *catalog, uint64_t context_id, struct rebuild_step *step,
                   struct error *err)
{
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, PIN_BYTES);
    struct context *context = NULL;
    int rc = catalog_pin(catalog, context_id, &arena, &context, err);
    step->context_id = context_id;
    return rc < 0 ? rc : builder_rebuild(catalog->builder, context_id, step, err);
}

int catalog_rebuild(struct catalog *catalog, const struct walk_args *args, struct arena *arena,
                    struct rebuild_step *ret_step, struct error *err)
{
    struct rebuild_step step = { 0 };
    uint64_t id = args->context_id, after = 0;
    if (id == 0 && args->cursor_bytes > 0 &&
        !format_read_id(args->cursor, args->cursor_bytes, &after))
        return error_set(err, MEMD_EINVAL, "a cursor of %zu bytes that memd did not make",
                         args->cursor_bytes);
    int rc = id == 0 ? next_context(catalog, after, &id, err) : 0;
    if (rc < 0) return rc;
    if (id == 0) { /* behind the last one */
        *ret_step = step;
        return 0;
    }
    rc = rebuild(catalog, id, &step, err);
    if (rc == MEMD_ENOCONTEXT && args->context_id == 0) rc = 0; /* dropped meanwhile */
    if (rc < 0) return rc;
    if (args->context_id == 0) {
        unsigned char *cursor = arena_alloc(arena, FORMAT_KEY_BYTES_MAX);
        if (cursor == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a cursor");
        step.cursor_bytes = format_key_id(id, cursor);
        step.cursor = cursor;
    }
    *ret_step = step;
    return 0;
}
