/* SPDX-License-Identifier: Apache-2.0 */
/* context_truncate.c — cut every layer at one position, in one transaction.
 *
 * The slot that the cut goes through is rewritten as one tail record, whether it was sealed
 * (then its segment is released, and a fork that shares it keeps it) or a tail of many records.
 * So there is one rule for all cases, and the rows below the cut are again in a block that can
 * grow.
 *
 * Recovery after an unclean end is the same cut at the common token count (context_load.c).
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"

struct truncate_job {
    struct writer_job job;
    struct context *context;
    uint64_t position;
    bool recovering;
};

/* Kept queries of a segment that is opened again. They are a help, not data: without memory, or
 * damaged, they are gone. */
static void bring_back_queries(struct context *context, struct slot *slot, size_t rows)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    if (slot->kept != NULL || store_begin(context->catalog->store, false, &txn, NULL) < 0) return;
    struct kept *kept = NULL;
    if (kept_load(context, &txn, slot->segment, &kept, NULL) < 0) return;
    kept_cut(kept, rows);
    pthread_mutex_lock(&context->lock);
    slot->kept = kept;
    pthread_mutex_unlock(&context->lock);
}

/* The cut slot needs its rows in a block. They may stay there if the transaction fails: same
 * bytes. */
static int bring_back(struct context *context, struct layer *layer, size_t idx, size_t rows,
                      struct error *err)
{
    struct slot *slot = &layer->slots[idx];
    if (slot->block != NULL) return 0;
    int rc = context_prove_slots(context, layer, idx, idx + 1, err);
    if (rc < 0) return rc;
    struct block *block = block_new(&context->catalog->blocks, &context->shape);
    if (block == NULL) return error_set(err, MEMD_ENOMEM, "no memory for 1024 tokens of a layer");
    size_t bytes = rows * context->shape.row_bytes;
    for (uint32_t head = 0; head < context->shape.heads; head++) {
        memcpy(block_rows(block, &context->shape, head, FORMAT_KIND_K), slot->values[head], bytes);
        memcpy(block_rows(block, &context->shape, head, FORMAT_KIND_V),
               slot->values[context->shape.heads + head], bytes);
    }
    block->has_ids = slot->ids != NULL;
    if (block->has_ids)
        memcpy(block_ids(block, &context->shape), slot->ids, rows * sizeof(uint32_t));
    size_t token_bytes = context->shape.columns.token_bytes;
    if (token_bytes > 0)
        memcpy(block_columns(block, &context->shape), slot->columns, rows * token_bytes);
    pthread_mutex_lock(&context->lock);
    slot->block = block;
    pthread_mutex_unlock(&context->lock);
    if (context->method->keeps_queries) bring_back_queries(context, slot, rows);
    return 0;
}

static int write_tail(struct context *context, const struct tail_key *key,
                      const struct block *block, size_t rows, struct store_txn *txn, int64_t *delta)
{
    size_t bytes = block_tail_bytes(&context->shape, rows, block->has_ids);
    CLEANUP(free_ptr) unsigned char *value = malloc(bytes);
    if (value == NULL) return MEMD_ENOMEM;
    block_tail_encode(block, &context->shape, key->position, rows, block->has_ids, value);
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_tail(key->context, key->layer, key->position, buffer);
    store_put(txn, STORE_TAILS, (struct slice){ buffer, key_bytes },
              (struct slice){ value, bytes });
    *delta += (int64_t)bytes;
    return 0;
}

static int cut_stored(struct context *context, uint32_t layer_idx, uint64_t position,
                      struct store_txn *txn, int64_t *delta, struct error *err)
{
    struct layer *layer = &context->layers[layer_idx];
    if (layer->committed <= position) return 0;
    if (layer->selection != NULL && layer->selection->tokens > position)
        context_remove_selection(context, layer_idx, txn, delta);
    int rc = mass_cut_stored(context, layer_idx, position, txn, delta, err);
    if (rc < 0) return rc;
    ring_cut_stored(context, layer_idx, position, txn, delta);
    size_t idx = position / FORMAT_SEGMENT_TOKENS, rows = position % FORMAT_SEGMENT_TOKENS;
    struct chain_key chain = { context->id, layer_idx, (uint32_t)idx };
    struct tail_key tail = { context->id, layer_idx, position - rows };
    chain_cut(txn, &chain, UINT64_MAX, delta);
    chain_cut_tails(txn, &tail, UINT64_MAX, delta);
    chain_cut_index(txn, &(struct layer_key){ context->id, layer_idx }, position, delta);
    rc = rows == 0 ? 0 : write_tail(context, &tail, layer->slots[idx].block, rows, txn, delta);
    return rc < 0 ? error_set(err, rc, "no memory for a tail record") : 0;
}

/* In memory; uncommitted bytes that are gone with it. With lock held. */
static uint64_t cut_resident(struct context *context, struct layer *layer, uint64_t position)
{
    uint64_t before = layer_tokens(layer) - layer->committed;
    size_t idx = position / FORMAT_SEGMENT_TOKENS;
    bool cut_slot = position % FORMAT_SEGMENT_TOKENS != 0 && layer->committed > position;
    if (cut_slot) {
        struct slot *slot = &layer->slots[idx];
        assert(slot->block != NULL);
        slot->segment = 0; /* its place in `values` waits for the next sealing */
        slot->mapped = false;
        slot->ids = slot->columns = NULL;
        slot_drop_planes(slot);
        slot->build = SLOT_UNSEEN;
    }
    context_cut_layer(context, layer, position);
    return before - (layer_tokens(layer) - layer->committed);
}

/* A prompt that was compressed stays: what was chosen of it was chosen with all of it there. And a
 * ring is not cut where states that left it would have to come back. But a kill may leave less than
 * that in another layer: then the choice is gone, and the ring is what is left of it. */
static int check(struct context *context, uint64_t position, bool recovering, struct error *err)
{
    uint64_t tokens = context_tokens(context);
    if (position > tokens)
        return error_set(err, MEMD_EPOSITION,
                         "the context holds %" PRIu64 " tokens, it cannot be cut at %" PRIu64,
                         tokens, position);
    for (uint32_t i = 0; !recovering && i < context->record->model.layers; i++) {
        const struct selection *selection = context->layers[i].selection;
        if (selection != NULL && selection->tokens > position)
            return error_set(err, MEMD_EUNSUPPORTED,
                             "the first %" PRIu64 " tokens of layer %" PRIu32
                             " were compressed, they cannot be cut at %" PRIu64,
                             selection->tokens, i, position);
        int rc = ring_check_cut(&context->layers[i], i, position, err);
        if (rc < 0) return rc;
    }
    return 0;
}

static int truncate_stored(struct context *context, uint64_t position, struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(context->catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    int64_t delta = 0;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        rc = cut_stored(context, i, position, &txn, &delta, err);
        if (rc < 0) return rc;
    }
    return catalog_commit(context->catalog, &txn, delta, err);
}

/* With use held exclusively, on the writer. */
static int truncate_all(struct context *context, uint64_t position, bool recovering,
                        struct error *err)
{
    int rc = check(context, position, recovering, err);
    size_t rows = position % FORMAT_SEGMENT_TOKENS;
    for (uint32_t i = 0; rc == 0 && rows > 0 && i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        if (layer->committed > position)
            rc = bring_back(context, layer, position / FORMAT_SEGMENT_TOKENS, rows, err);
    }
    if (rc == 0) rc = truncate_stored(context, position, err);
    if (rc < 0) return rc;
    uint64_t gone = 0, mass = 0;
    pthread_mutex_lock(&context->lock);
    context->cuts++;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        if (layer_tokens(layer) <= position) continue;
        gone += cut_resident(context, layer, position);
        mass += mass_cut(context, layer, position);
        ring_cut(layer, position);
    }
    pthread_mutex_unlock(&context->lock);
    context_cut_windows(context);
    writer_release(context->catalog->writer,
                   gone * block_stored_bytes(&context->shape) + mass);
    return 0;
}

static int run(struct writer_job *job, struct error *err)
{
    struct truncate_job *truncate = (struct truncate_job *)(void *)job;
    context_lock_alone(truncate->context);
    int rc = truncate_all(truncate->context, truncate->position, truncate->recovering, err);
    context_unlock_alone(truncate->context);
    return rc;
}

static int truncate_context(struct context *context, uint64_t position, bool recovering,
                            struct error *err)
{
    struct truncate_job truncate = {
        .job = { .run = run, .catalog = context->catalog, .frees = true },
        .context = context,
        .position = position,
        .recovering = recovering,
    };
    return writer_run(context->catalog->writer, &truncate.job, err);
}

int context_even_out(struct context *context, uint64_t position, struct error *err)
{
    return truncate_context(context, position, true, err);
}

int context_truncate(struct context *context, uint64_t position, struct error *err)
{
    int rc = truncate_context(context, position, false, err);
    /* An index that reached behind the cut is gone: one of what is left is to come. */
    if (rc == 0) builder_wake(context->catalog->builder, context);
    return rc;
}
