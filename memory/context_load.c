/* SPDX-License-Identifier: Apache-2.0 */
/* context_load.c — a context from its chain entries and tail records, without touching a sealed
 * value.
 *
 * Chain entries of a layer must be 0, 1, 2, …, tail records must go on where they end: a hole is
 * MEMD_ECORRUPT, never a shorter past. Uneven layers are possible and legal (a client at work);
 * after an unclean end they are cut by whoever loads the context first, see catalog_pin.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"

static int add_segment(struct context *context, const struct chain_key *key, struct slice value,
                       struct error *err)
{
    uint64_t segment = 0;
    if (key->layer >= context->record->model.layers ||
        !format_read_u64(value.data, value.bytes, &segment) || segment == 0)
        return error_set(err, MEMD_ECORRUPT,
                         "context %" PRIu64 " has a malformed chain entry in layer %" PRIu32,
                         context->id, key->layer);
    struct layer *layer = &context->layers[key->layer];
    if (key->sequence != layer->slot_count)
        return error_set(err, MEMD_ECORRUPT,
                         "context %" PRIu64 " layer %" PRIu32 ": segment %zu is missing",
                         context->id, key->layer, layer->slot_count);
    int rc = context_grow(layer, key->sequence, err);
    if (rc < 0) return rc;
    layer->slots[key->sequence].segment = segment;
    layer->unmapped++;
    atomic_init(&layer->tokens, ((uint64_t)key->sequence + 1) * FORMAT_SEGMENT_TOKENS);
    return 0;
}

static int load_chains(struct context *context, struct store_txn *txn, struct error *err)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_chain(context->id, 0, 0, buffer);
    struct store_cursor cursor;
    struct chain_key key;
    int rc = 0;
    bool found = store_seek(txn, STORE_CHAINS, (struct slice){ buffer, bytes }, &cursor);
    while (rc == 0 && found && format_read_chain(cursor.key.data, cursor.key.bytes, &key) &&
           key.context == context->id) {
        rc = add_segment(context, &key, cursor.value, err);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
    return rc;
}

static int check_tail(struct context *context, const struct tail_key *key, struct slice value,
                      struct value_header *ret_header, struct error *err)
{
    struct error why = { 0 };
    int rc = format_decode(value.data, value.bytes, ret_header, &why);
    if (rc == 0 && (ret_header->kind != FORMAT_KIND_TAIL || ret_header->position != key->position ||
                    ret_header->model_hash != context->shape.model_hash ||
                    ret_header->heads != context->shape.heads ||
                    ret_header->head_dim != context->shape.head_dim ||
                    format_columns_bytes(ret_header) != context->shape.columns.token_bytes ||
                    ret_header->dtype != context->shape.dtype))
        rc = error_set(&why, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0) rc = format_verify(value.data, value.bytes, &why);
    if (rc == 0 && key->layer >= context->record->model.layers)
        rc = error_set(&why, MEMD_ECORRUPT, "the model has no such layer");
    if (rc == 0) {
        uint64_t tokens = layer_tokens(&context->layers[key->layer]);
        if (key->position != tokens ||
            key->position % FORMAT_SEGMENT_TOKENS + ret_header->tokens > FORMAT_SEGMENT_TOKENS)
            rc = error_set(&why, MEMD_ECORRUPT,
                           "it does not continue the %" PRIu64 " tokens before it", tokens);
    }
    if (rc == 0) return 0;
    CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
    return error_set(err, rc, "context %" PRIu64 " layer %" PRIu32 " tail at %" PRIu64 ": %s",
                     context->id, key->layer, key->position, why.text);
}

/* The payload of a tail record, checked, into its block. */
static void write_rows(const struct context *context, struct block *block, size_t first,
                       const struct value_header *header, const unsigned char *payload)
{
    const struct block_shape *shape = &context->shape;
    size_t stride = shape->heads * shape->row_bytes, half = header->tokens * stride;
    bool has_ids = (header->flags & FORMAT_FLAG_IDS) != 0;
    struct given_rows rows = {
        .k = payload,
        .v = payload + half,
        .stride_bytes = stride,
        .ids = has_ids ? payload + 2 * half : NULL,
        .count = header->tokens,
    };
    block_write(block, shape, first, &rows);
    size_t token_bytes = shape->columns.token_bytes;
    if (token_bytes == 0) return;
    const unsigned char *records = payload + 2 * half +
                                   (has_ids ? header->tokens * sizeof(uint32_t) : 0);
    memcpy(block_columns(block, shape) + first * token_bytes, records,
           header->tokens * token_bytes);
}

static int add_tail(struct context *context, const struct tail_key *key, struct slice value,
                    struct error *err)
{
    struct value_header header;
    int rc = check_tail(context, key, value, &header, err);
    if (rc < 0) return rc;
    struct layer *layer = &context->layers[key->layer];
    size_t idx = key->position / FORMAT_SEGMENT_TOKENS,
           first = key->position % FORMAT_SEGMENT_TOKENS;
    rc = context_grow(layer, idx, err);
    if (rc < 0) return rc;
    struct slot *slot = &layer->slots[idx];
    if (slot->block == NULL) slot->block = block_new(&context->catalog->blocks, &context->shape);
    if (slot->values == NULL) slot->values = values_new(context);
    if (slot->block == NULL || slot->values == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for 1024 tokens of a layer");
    write_rows(context, slot->block, first, &header,
               (const unsigned char *)value.data + FORMAT_HEADER_BYTES);
    bool has_ids = (header.flags & FORMAT_FLAG_IDS) != 0;
    slot->block->has_ids = (first == 0 || slot->block->has_ids) && has_ids;
    atomic_init(&layer->tokens, key->position + header.tokens);
    return 0;
}

static int load_tails(struct context *context, struct store_txn *txn, struct error *err)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    size_t bytes = format_key_tail(context->id, 0, 0, buffer);
    struct store_cursor cursor;
    struct tail_key key;
    int rc = 0;
    bool found = store_seek(txn, STORE_TAILS, (struct slice){ buffer, bytes }, &cursor);
    while (rc == 0 && found && format_read_tail(cursor.key.data, cursor.key.bytes, &key) &&
           key.context == context->id) {
        rc = add_tail(context, &key, cursor.value, err);
        found = store_next(&cursor);
    }
    store_cursor_close(&cursor);
    return rc;
}

/* What was kept of prompts, and rings. Mass is read when it is needed. */
static int load_notes(struct context *context, struct store_txn *txn, struct error *err)
{
    unsigned char buffer[FORMAT_KEY_BYTES_MAX];
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < context->record->model.layers; i++) {
        size_t bytes = format_key_note(context->id, i, NOTE_SELECTION, 0, buffer);
        struct slice value;
        if (store_get(txn, STORE_NOTES, (struct slice){ buffer, bytes }, &value))
            rc = context_load_selection(context, i, value, err);
        bytes = format_key_note(context->id, i, NOTE_RING, 0, buffer);
        if (rc == 0 && store_get(txn, STORE_NOTES, (struct slice){ buffer, bytes }, &value))
            rc = context_load_ring(context, i, value, err);
    }
    return rc;
}

int context_load(struct catalog *catalog, uint64_t id, struct context **ret_context,
                 struct error *err)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    struct record *record = NULL;
    rc = catalog_read_record(catalog, &txn, id, &record, err);
    if (rc < 0) return rc;
    CLEANUP(context_freep) struct context *context = NULL;
    rc = context_new(catalog, id, record, &context, err);
    if (rc == 0) rc = load_chains(context, &txn, err);
    if (rc == 0) rc = load_tails(context, &txn, err);
    if (rc == 0) rc = load_notes(context, &txn, err);
    if (rc == 0) rc = context_load_uploads(context, &txn, err);
    if (rc == 0) rc = store_failed(&txn, err);
    if (rc < 0) return rc;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        layer->committed = layer->synced = layer_tokens(layer);
    }
    *ret_context = TAKE(context);
    return 0;
}
