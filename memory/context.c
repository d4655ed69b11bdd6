/* SPDX-License-Identifier: Apache-2.0 */
/* context.c — the life of a resident context and its counters; the verbs have files of their
 * own. */
#include "memory/context.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "attention/cuda/accelerator.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "memory/catalog_state.h"
#include "memory/uploads.h"

/* Readers come without a pause; who wants it alone must get its turn. */
static void init_shared_lock(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
}

static void init_locks(struct context *context)
{
    pthread_mutex_init(&context->append_lock, NULL);
    pthread_mutex_init(&context->map_lock, NULL);
    pthread_mutex_init(&context->lock, NULL);
    init_shared_lock(&context->use);
}

static int init_model(struct context *context, struct error *err)
{
    const struct record *record = context->record;
    context->method = method_find(record->method);
    if (context->method == NULL)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "context %" PRIu64 " uses method \"%s\", which this build lacks",
                         context->id, record->method);
    int rc = method_parse(context->method, record->parameters, record->parameter_count,
                          context->options, err);
    if (rc < 0) return rc;
    block_shape_init(&record->model, method_columns(context->method, context->options),
                     method_state_width(context->method, context->options), &context->shape);
    context->layers = calloc(record->model.layers, sizeof *context->layers);
    if (context->layers == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a context");
    for (uint32_t i = 0; i < record->model.layers; i++) {
        pthread_mutex_init(&context->layers[i].observed.lock, NULL);
        init_shared_lock(&context->layers[i].folding.lock);
    }
    planes_layout_init(context->shape.head_dim, &context->layout);
    /* A state is no key. */
    if (!model_rotates(&record->model) || context->shape.state_width > 0) return 0;
    context->rope = malloc(sizeof *context->rope);
    if (context->rope == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a context");
    return rope_init(&record->model.rope, record->model.head_dim, context->rope, err);
}

int context_new(struct catalog *catalog, uint64_t id, struct record *record,
                struct context **ret_context, struct error *err)
{
    CLEANUP(context_freep) struct context *context = calloc(1, sizeof *context);
    if (context == NULL) {
        free(record);
        return error_set(err, MEMD_ENOMEM, "no memory for a context");
    }
    context->catalog = catalog;
    context->id = id;
    context->record = record;
    context->build.retry_ns = UINT64_MAX;
    init_locks(context);
    if (record != NULL) {
        atomic_init(&context->used_unix_ms, record->used_unix_ms);
        int rc = init_model(context, err);
        if (rc < 0) return rc;
        context_open_windows(context);
    }
    *ret_context = TAKE(context);
    return 0;
}

void slot_drop_planes(struct slot *slot)
{
    free(slot->planes);
    free(slot->tabled);
    slot->planes = NULL;
    slot->tabled = NULL;
}

static void free_slot(struct slot *slot)
{
    block_put(slot->block);
    free((void *)slot->values);
    slot_drop_planes(slot);
    kept_free(slot->kept);
    *slot = (struct slot){ 0 };
}

void context_free(struct context *context)
{
    if (context == NULL) return;
    assert(!list_linked(&context->dirty_link) && !list_linked(&context->unsynced_link));
    assert(!list_linked(&context->batch_link) && !list_linked(&context->lru_link));
    assert(!list_linked(&context->build_link));
    size_t layers = context->layers == NULL ? 0 : context->record->model.layers;
    for (size_t i = 0; i < layers; i++) {
        struct layer *layer = &context->layers[i];
        for (size_t j = 0; j < layer->slot_count; j++) free_slot(&layer->slots[j]);
        free(layer->slots);
        tables_free(context, layer);
        layer_index_put(layer->version);
        observed_fini(context, &layer->observed);
        window_free(layer->window);
        fold_drop(context, layer);
        mass_forget(context, layer);
        ring_free(context, layer);
        selection_free(layer->selection);
        pthread_rwlock_destroy(&layer->folding.lock);
    }
    free(context->layers);
    uploads_put(context->uploads);
    free(context->rope);
    free(context->record);
    pthread_mutex_destroy(&context->append_lock);
    pthread_mutex_destroy(&context->map_lock);
    pthread_mutex_destroy(&context->lock);
    pthread_rwlock_destroy(&context->use);
    free(context);
}

void context_freep(struct context **context)
{
    context_free(*context);
}

int context_grow(struct layer *layer, size_t idx, struct error *err)
{
    if (idx >= layer->slot_capacity) {
        size_t capacity = layer->slot_capacity == 0 ? 4 : layer->slot_capacity * 2;
        if (capacity <= idx) capacity = idx + 1;
        struct slot *slots = realloc(layer->slots, capacity * sizeof *slots);
        if (slots == NULL)
            return error_set(err, MEMD_ENOMEM, "no memory for %zu segments", capacity);
        memset(slots + layer->slot_capacity, 0, (capacity - layer->slot_capacity) * sizeof *slots);
        layer->slots = slots;
        layer->slot_capacity = capacity;
    }
    if (layer->slot_count <= idx) layer->slot_count = idx + 1;
    return 0;
}

void context_cut_layer(struct context *context, struct layer *layer, uint64_t tokens)
{
    assert(tokens <= layer_tokens(layer));
    size_t keep = (size_t)((tokens + FORMAT_SEGMENT_TOKENS - 1) / FORMAT_SEGMENT_TOKENS);
    for (size_t i = keep; i < layer->slot_count; i++) {
        struct slot *slot = &layer->slots[i];
        if (slot->segment != 0 && slot->block == NULL && !slot->mapped) layer->unmapped--;
        free_slot(slot);
    }
    if (layer->slot_count > keep) layer->slot_count = keep;
    if (keep > 0 && layer->slots[keep - 1].segment == 0) {
        struct slot *slot = &layer->slots[keep - 1];
        slot->writing = 0;
        kept_cut(slot->kept, (size_t)(tokens - (uint64_t)(keep - 1) * FORMAT_SEGMENT_TOKENS));
    }
    if (layer->version != NULL && layer->version->tokens > tokens) {
        layer_index_put(layer->version);
        layer->version = NULL;
    }
    atomic_store_explicit(&layer->tokens, tokens, memory_order_release);
    if (layer->committed > tokens) layer->committed = tokens;
    if (layer->synced > tokens) layer->synced = tokens;
    fold_cut(context, layer, tokens);
    context_cut_selection(layer, tokens);
}

void context_lock_alone(struct context *context)
{
    atomic_fetch_add(&context->wish_alone, 1);
    pthread_rwlock_wrlock(&context->use);
    atomic_fetch_sub(&context->wish_alone, 1);
}

void context_unlock_alone(struct context *context)
{
    pthread_rwlock_unlock(&context->use);
}

/* Remember that the appends first … last are gone; the oldest two entries join when there are
 * too many, which reports some that were committed as failed: a retry finds them and is told so. */
static void note_failure(struct context *context, uint64_t first, uint64_t last, int code)
{
    struct failure *failures = context->failures;
    if (context->failure_count > 0 && failures[context->failure_count - 1].last + 1 == first) {
        failures[context->failure_count - 1].last = last;
        return;
    }
    if (context->failure_count == FAILURES_MAX) {
        failures[1].first = failures[0].first;
        memmove(failures, failures + 1, (FAILURES_MAX - 1) * sizeof *failures);
        context->failure_count--;
    }
    failures[context->failure_count++] = (struct failure){ first, last, code };
}

uint64_t context_roll_back(struct context *context, int code)
{
    uint64_t tokens = 0, bytes = 0;
    context_lock_alone(context);
    pthread_mutex_lock(&context->lock);
    context->in_round = false;
    context->cuts++;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        tokens += layer_tokens(layer) - layer->committed;
        /* No fold that stays has taken any of it in: that needed rows that came later. */
        bytes += mass_forget(context, layer);
        ring_roll_back(layer);
        context_cut_layer(context, layer, layer->committed);
    }
    if (context->sequence > context->committed_sequence) {
        note_failure(context, context->committed_sequence + 1, context->sequence, code);
        context->unreported_code = code;
    }
    context->committed_sequence = context->sequence;
    pthread_mutex_unlock(&context->lock);
    context_cut_windows(context);
    context_unlock_alone(context);
    return bytes + tokens * block_stored_bytes(&context->shape);
}

uint64_t layer_tokens(const struct layer *layer)
{
    return atomic_load_explicit(&layer->tokens, memory_order_acquire);
}

uint64_t layer_committed(const struct layer *layer)
{
    return layer->committed;
}

uint64_t layer_synced(const struct layer *layer)
{
    return layer->synced;
}

uint64_t context_common(const struct context *context, uint64_t (*count)(const struct layer *layer))
{
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        const struct layer *layer = &context->layers[i];
        if (layer_tokens(layer) == 0) continue;
        uint64_t tokens = count(layer);
        if (tokens < least) least = tokens;
    }
    return least == UINT64_MAX ? 0 : least;
}

const struct model *context_model(const struct context *context)
{
    return &context->record->model;
}

size_t context_state_width(const struct context *context)
{
    return context->shape.state_width;
}

size_t context_query_values(const struct context *context)
{
    const struct model *model = &context->record->model;
    return (size_t)model->query_heads * model->head_dim;
}

uint64_t context_id(const struct context *context)
{
    return context->id;
}

uint64_t context_tokens(struct context *context)
{
    return context_common(context, layer_tokens);
}

uint64_t context_layer_tokens(struct context *context, uint32_t layer)
{
    if (layer >= context->record->model.layers) return 0;
    return layer_tokens(&context->layers[layer]);
}

uint64_t context_attend_bytes(struct context *context, uint32_t layer)
{
    return context_layer_tokens(context, layer) * block_token_bytes(&context->shape);
}

/* With lock held. 0 when the append with this sequence was not taken back. */
static int failure_of(struct context *context, uint64_t sequence)
{
    for (size_t i = 0; i < context->failure_count; i++) {
        const struct failure *failure = &context->failures[i];
        if (sequence >= failure->first && sequence <= failure->last) return failure->code;
    }
    return 0;
}

int context_reached(struct context *context, uint64_t sequence, enum durability level,
                    struct progress *ret_progress, struct error *err)
{
    pthread_mutex_lock(&context->lock);
    assert(sequence <= context->sequence);
    int failed = failure_of(context, sequence);
    if (failed != 0) context->unreported_code = 0;
    bool committed = sequence <= context->committed_sequence;
    bool synced = sequence <= context->synced_sequence;
    uint64_t committed_tokens = context_common(context, layer_committed);
    uint64_t synced_tokens = context_common(context, layer_synced);
    pthread_mutex_unlock(&context->lock);
    if (failed != 0)
        return error_set(
            err, failed,
            "the commit failed (%s); the tokens were taken back, the context holds %" PRIu64
            " committed tokens",
            error_text(failed), committed_tokens);
    if (level == DURABLE_SYNCED && !synced) writer_wish_sync(context->catalog->writer);
    bool reached = level == DURABLE_MEMORY || (level == DURABLE_COMMITTED ? committed : synced);
    if (!reached) return 0;
    ret_progress->committed_tokens = committed_tokens;
    ret_progress->synced_tokens = synced_tokens;
    return 1;
}
