/* SPDX-License-Identifier: Apache-2.0 */
/* context_append.c — all or nothing: check everything, get all memory, copy, then make it
 * visible at once.
 *
 * Rows are copied straight into the layout of a segment (block.h), and a block that becomes full is
 * checksummed here, on the caller's thread, so that the writer only puts bytes. Room for
 * uncommitted bytes is reserved first, or refused at once: waiting is the caller's, who knows
 * whether it holds a worker.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/half.h"
#include "memory/catalog_state.h"

struct appending {
    struct context *context;
    const struct append_layer *layers;
    size_t count;
};

static size_t rows_of(const struct append_layer *part)
{
    if (part->states.dims != 0) return part->states.shape[0];
    assert(part->k.dims == 3 && part->v.dims == 3);
    return part->k.shape[0];
}

/* Rows [skip, skip + count) of a part. The halves of a state are its K and its V (block.h). */
static struct given_rows rows_from(const struct context *context, const struct append_layer *part,
                                   size_t skip, size_t count)
{
    size_t half = block_token_bytes(&context->shape) / 2;
    bool states = part->states.dims != 0;
    const unsigned char *k = states ? part->states.data : part->k.data,
                        *v = states ? k + half : part->v.data;
    size_t stride = states ? 2 * half : half;
    assert(skip + count <= rows_of(part));
    return (struct given_rows){
        .k = k + skip * stride,
        .v = v + skip * stride,
        .stride_bytes = stride,
        .ids = part->token_ids == NULL ? NULL : part->token_ids + skip,
        .count = count,
    };
}

static int check_states(const struct context *context, const struct append_layer *part,
                        struct error *err)
{
    const struct tensor *states = &part->states;
    size_t width = context->shape.state_width;
    if (width == 0)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "method %s keeps keys and values, the append to layer %" PRIu32
                         " has states",
                         context->method->name, part->layer);
    if (part->k.dims != 0 || part->v.dims != 0)
        return error_set(err, MEMD_ESHAPE,
                         "the append to layer %" PRIu32 " has states, and keys or values too",
                         part->layer);
    if (states->dims == 2 && states->shape[1] == width && states->dtype == context->shape.dtype)
        return 0;
    return error_set(err, MEMD_ESHAPE,
                     "states of layer %" PRIu32 " are %s (%zu, %zu), not %s (n, %zu)", part->layer,
                     dtype_name(states->dtype), states->shape[0], states->shape[1],
                     dtype_name(context->shape.dtype), width);
}

/* Rows or states, as the method keeps them. Before any lock: this never changes. */
static int check_given(const struct context *context, const struct append_layer *part,
                       struct error *err)
{
    if (part->states.dims != 0)
        return check_states(context, part, err);
    if (context->shape.state_width == 0) return 0;
    return error_set(err, MEMD_EINVAL,
                     "method %s keeps states, the append to layer %" PRIu32 " has none",
                     context->method->name, part->layer);
}

static int check_position(struct context *context, const struct append_layer *part,
                          struct error *err)
{
    if (part->layer >= context->record->model.layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         part->layer, context->record->model.layers);
    uint64_t tokens = layer_tokens(&context->layers[part->layer]);
    if (part->position > tokens)
        return error_set(err, MEMD_EPOSITION,
                         "layer %" PRIu32 " holds %" PRIu64
                         " tokens, the append starts at %" PRIu64,
                         part->layer, tokens, part->position);
    if (rows_of(part) > LIMIT_TOKENS - part->position)
        return error_set(err, MEMD_ELIMIT, "layer %" PRIu32 " would pass %" PRIu64 " tokens",
                         part->layer, LIMIT_TOKENS);
    return 0;
}

static int check_once(const struct appending *appending, struct error *err)
{
    unsigned char named[LIMIT_LAYERS / 8] = { 0 };
    for (size_t i = 0; i < appending->count; i++) {
        uint32_t layer = appending->layers[i].layer;
        if ((named[layer / 8] >> (layer % 8) & 1) != 0)
            return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " stands twice in one append",
                             layer);
        named[layer / 8] = (unsigned char)(named[layer / 8] | 1u << (layer % 8));
    }
    return 0;
}

/* One of k (n, G, D), v (n, G, D) and states (n, W); the others are empty. */
static int check_finite(struct context *context, const struct append_layer *part, size_t skip,
                        const struct tensor *tensor, struct error *err)
{
    if (tensor->dims == 0) return 0;
    size_t dim = tensor->shape[tensor->dims - 1], heads = tensor->dims == 3 ? tensor->shape[1] : 1;
    size_t offset = skip * heads * dim, count = (rows_of(part) - skip) * heads * dim, bad = 0;
    const unsigned char *data = (const unsigned char *)tensor->data +
                                offset * dtype_bytes(tensor->dtype);
    size_t at = half_find_nonfinite(data, tensor->dtype, count, &bad);
    if (at == count) return 0;
    CATALOG_COUNT(context->catalog, nonfinite_rejected_total, bad);
    return error_set(err, MEMD_ENONFINITE,
                     "layer %" PRIu32 " %s at position %" PRIu64 " head %zu dimension %zu "
                     "is NaN or infinite, %zu such values",
                     part->layer,
                     tensor == &part->k   ? "k"
                     : tensor == &part->v ? "v"
                                          : "state",
                     part->position + skip + at / (heads * dim), at / dim % heads, at % dim, bad);
}

/* Are rows [done, done + count) of the part what is stored there, all inside one slot? */
static bool slot_equals(struct context *context, const struct append_layer *part, size_t done,
                        size_t count)
{
    const struct layer *layer = &context->layers[part->layer];
    uint64_t position = part->position + done;
    size_t idx = position / FORMAT_SEGMENT_TOKENS, first = position % FORMAT_SEGMENT_TOKENS;
    struct given_rows rows = rows_from(context, part, done, count);
    pthread_mutex_lock(&context->lock);
    struct slot slot = layer->slots[idx];
    if (slot.block != NULL) block_get(slot.block);
    pthread_mutex_unlock(&context->lock);
    const struct block_shape *shape = &context->shape;
    bool equal = slot.block != NULL ? block_equals(slot.block, shape, first, &rows)
                                    : block_values_equal(slot.values, shape, first, &rows);
    if (equal && shape->columns.token_bytes > 0) {
        const unsigned char *records = slot.block != NULL ? block_columns(slot.block, shape)
                                                          : slot.columns;
        equal = columns_repeat(context, part, done, count,
                               records + first * shape->columns.token_bytes);
    }
    block_put(slot.block);
    return equal;
}

/* The part of an append that lies below the token count must repeat it. *ret_skip = rows that
 * do. */
static int check_repeat(struct context *context, const struct append_layer *part, size_t *ret_skip,
                        struct error *err)
{
    struct layer *layer = &context->layers[part->layer];
    uint64_t tokens = layer_tokens(layer), position = part->position;
    size_t overlap = tokens - position < rows_of(part) ? (size_t)(tokens - position)
                                                       : rows_of(part);
    *ret_skip = overlap;
    if (overlap == 0) return 0;
    size_t first = (size_t)(position / FORMAT_SEGMENT_TOKENS),
           last = (size_t)((position + overlap - 1) / FORMAT_SEGMENT_TOKENS);
    int rc = context_prove_slots(context, layer, first, last + 1, err);
    for (size_t done = 0; rc == 0 && done < overlap;) {
        size_t room = FORMAT_SEGMENT_TOKENS - (position + done) % FORMAT_SEGMENT_TOKENS;
        size_t count = overlap - done < room ? overlap - done : room;
        if (!slot_equals(context, part, done, count))
            return error_set(err, MEMD_EPOSITION,
                             "layer %" PRIu32 " holds %" PRIu64 " tokens and other bytes than "
                             "the append at %" PRIu64 " to %" PRIu64,
                             part->layer, tokens, position + done, position + done + count);
        done += count;
    }
    return rc;
}

static int get_block(struct context *context, struct layer *layer, size_t idx, struct error *err)
{
    pthread_mutex_lock(&context->lock);
    int rc = context_grow(layer, idx, err);
    struct slot *slot = rc == 0 ? &layer->slots[idx] : NULL;
    if (slot != NULL && slot->block == NULL)
        slot->block = block_new(&context->catalog->blocks, &context->shape);
    if (slot != NULL && slot->values == NULL) slot->values = values_new(context);
    bool got = slot != NULL && slot->block != NULL && slot->values != NULL;
    pthread_mutex_unlock(&context->lock);
    return got || rc < 0 ? rc : error_set(err, MEMD_ENOMEM, "no memory for 1024 tokens of a layer");
}

/* All memory that the part needs: a slot with a block for every row. */
static int prepare(struct context *context, const struct append_layer *part, size_t skip,
                   struct error *err)
{
    struct layer *layer = &context->layers[part->layer];
    uint64_t end = part->position + rows_of(part);
    if (rows_of(part) == skip) return 0;
    int rc = 0;
    for (size_t idx = (part->position + skip) / FORMAT_SEGMENT_TOKENS;
         rc == 0 && idx <= (end - 1) / FORMAT_SEGMENT_TOKENS; idx++) {
        rc = get_block(context, layer, idx, err);
    }
    return rc;
}

/* The first append of a layer has to bring queries where an index is made from them: better a
 * refusal then than a context that never gets its index. */
static int keep_queries(struct context *context, const struct append_layer *part, size_t skip,
                        struct error *err)
{
    if (!context->method->keeps_queries || rows_of(part) == skip) return 0;
    struct layer *layer = &context->layers[part->layer];
    if (part->q.dims != 0) return kept_add(context, layer, part, skip, err);
    if (layer_tokens(layer) > 0) return 0;
    return error_set(err, MEMD_EINVAL,
                     "method %s is made from queries, the first append of layer %" PRIu32
                     " has none",
                     context->method->name, part->layer);
}

static void copy_rows(struct context *context, const struct append_layer *part, size_t skip)
{
    struct layer *layer = &context->layers[part->layer];
    size_t token_bytes = context->shape.columns.token_bytes;
    for (size_t done = skip; done < rows_of(part);) {
        uint64_t position = part->position + done;
        size_t idx = position / FORMAT_SEGMENT_TOKENS, first = position % FORMAT_SEGMENT_TOKENS;
        size_t room = FORMAT_SEGMENT_TOKENS - first;
        size_t count = rows_of(part) - done < room ? rows_of(part) - done : room;
        struct given_rows rows = rows_from(context, part, done, count);
        pthread_mutex_lock(&context->lock);
        struct block *block = layer->slots[idx].block;
        block->has_ids = (first == 0 || block->has_ids) && rows.ids != NULL;
        if (part->q.dims == 0) kept_cut(layer->slots[idx].kept, first);
        bool has_ids = block->has_ids;
        pthread_mutex_unlock(&context->lock);
        block_write(block, &context->shape, first, &rows);
        if (token_bytes > 0)
            columns_write(context, part, done, count,
                          block_columns(block, &context->shape) + first * token_bytes);
        if (count == room) block_seal(block, &context->shape, position - first, has_ids);
        done += count;
    }
}

static void publish(const struct appending *appending, struct progress *ret_progress)
{
    struct context *context = appending->context;
    uint64_t least = UINT64_MAX;
    pthread_mutex_lock(&context->lock);
    for (size_t i = 0; i < appending->count; i++) {
        const struct append_layer *part = &appending->layers[i];
        struct layer *layer = &context->layers[part->layer];
        uint64_t end = part->position + rows_of(part), tokens = layer_tokens(layer);
        if (end > tokens) atomic_store_explicit(&layer->tokens, tokens = end, memory_order_release);
        if (tokens < least) least = tokens;
    }
    ret_progress->sequence = ++context->sequence;
    ret_progress->tokens = least == UINT64_MAX ? 0 : least;
    ret_progress->committed_tokens = context_common(context, layer_committed);
    ret_progress->synced_tokens = context_common(context, layer_synced);
    pthread_mutex_unlock(&context->lock);
}

/* An earlier failure that nobody asked for: said once, before anything is taken. */
static int tell_failure(struct context *context, struct error *err)
{
    pthread_mutex_lock(&context->lock);
    int code = context->unreported_code;
    context->unreported_code = 0;
    pthread_mutex_unlock(&context->lock);
    if (code == 0) return 0;
    return error_set(err, code,
                     "an earlier commit of this context failed (%s), its tokens were taken back; "
                     "nothing of this append was taken",
                     error_text(code));
}

static void observe(struct context *context, const struct append_layer *part)
{
    if (part->q.dims == 0 || context->method == &method_full) return;
    context_observe(context, &(struct observation){ .layer = part->layer,
                                                    .q = &part->q,
                                                    .first = part->position,
                                                    .appended = true });
}

/* The new tokens of a part whose attention mass comes along. */
static struct mass_span span_of(const struct append_layer *part, size_t skip)
{
    if (part->scores.dims == 0) return (struct mass_span){ .layer = part->layer };
    return (struct mass_span){ part->layer, part->position + skip, rows_of(part) - skip };
}

/* For all parts or none. */
static int hold_mass(const struct appending *appending, const size_t *skip, uint64_t *bytes,
                     struct error *err)
{
    int rc = 0;
    size_t held = 0;
    for (; rc == 0 && held < appending->count; held += rc == 0) {
        struct mass_span span = span_of(&appending->layers[held], skip[held]);
        rc = mass_hold(appending->context, &span, bytes, err);
    }
    for (size_t i = 0; rc < 0 && i < held; i++) {
        struct mass_span span = span_of(&appending->layers[i], skip[i]);
        mass_unhold(appending->context, &span);
    }
    return rc;
}

/* *ret_bytes: what of the append was new; also when it failed. */
static int append(const struct appending *appending, uint64_t *ret_bytes,
                  struct progress *ret_progress, struct error *err)
{
    struct context *context = appending->context;
    size_t skip[LIMIT_APPEND_LAYERS];
    uint64_t fresh = 0;
    int rc = tell_failure(context, err);
    for (size_t i = 0; rc == 0 && i < appending->count; i++) {
        rc = check_position(context, &appending->layers[i], err);
    }
    if (rc == 0) rc = check_once(appending, err);
    for (size_t i = 0; rc == 0 && i < appending->count; i++) {
        const struct append_layer *part = &appending->layers[i];
        rc = columns_check(context, part, rows_of(part), err);
        if (rc == 0 && part->scores.dims != 0)
            rc = mass_check(context, &part->scores, rows_of(part), err);
        if (rc == 0) rc = check_repeat(context, part, &skip[i], err);
        if (rc == 0) rc = check_finite(context, part, skip[i], &part->k, err);
        if (rc == 0) rc = check_finite(context, part, skip[i], &part->v, err);
        if (rc == 0) rc = check_finite(context, part, skip[i], &part->states, err);
        if (rc == 0) rc = prepare(context, part, skip[i], err);
        if (rc == 0) rc = keep_queries(context, part, skip[i], err);
        if (rc == 0) fresh += rows_of(part) - skip[i];
    }
    uint64_t mass_bytes = 0;
    if (rc == 0) rc = hold_mass(appending, skip, &mass_bytes, err);
    *ret_bytes = mass_bytes;
    if (rc != 0) return rc;
    for (size_t i = 0; i < appending->count; i++) {
        struct mass_span span = span_of(&appending->layers[i], skip[i]);
        copy_rows(context, &appending->layers[i], skip[i]);
        if (span.count > 0) mass_add(context, &span, &appending->layers[i].scores, skip[i]);
    }
    publish(appending, ret_progress);
    for (size_t i = 0; i < appending->count; i++)
        context_feed_window(context, &appending->layers[i], skip[i]);
    for (size_t i = 0; i < appending->count; i++) observe(context, &appending->layers[i]);
    *ret_bytes += fresh * block_stored_bytes(&context->shape);
    CATALOG_COUNT(context->catalog, appended_tokens_total, fresh);
    CATALOG_COUNT(context->catalog, appended_bytes_total, *ret_bytes);
    return 0;
}

int context_append(struct context *context, const struct append_layer *layers, size_t count,
                   struct progress *ret_progress, struct error *err)
{
    if (count > LIMIT_APPEND_LAYERS)
        return error_set(err, MEMD_ELIMIT, "append names %zu layers, %u are allowed", count,
                         LIMIT_APPEND_LAYERS);
    struct appending appending = { context, layers, count };
    uint64_t reserved = 0, taken = 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = check_given(context, &layers[i], err);
        if (rc == 0) reserved += rows_of(&layers[i]) * block_stored_bytes(&context->shape);
        if (rc == 0 && layers[i].scores.dims != 0)
            reserved += mass_reserved_bytes(context, rows_of(&layers[i]));
    }
    struct writer *writer = context->catalog->writer;
    if (rc == 0) rc = writer_reserve(writer, reserved, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&context->append_lock);
    pthread_rwlock_rdlock(&context->use);
    rc = append(&appending, &taken, ret_progress, err);
    if (rc == 0) writer_mark(writer, context);
    pthread_rwlock_unlock(&context->use);
    pthread_mutex_unlock(&context->append_lock);
    writer_release(writer, reserved - taken);
    if (rc == 0 && catalog_is_crowded(context->catalog)) catalog_unload_idle(context->catalog);
    return rc;
}
