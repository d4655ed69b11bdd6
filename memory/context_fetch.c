/* SPDX-License-Identifier: Apache-2.0 */
/* context_fetch.c — rows by position, copied out as they were appended.
 *
 * Slots are looked up once per run of ids in the same slot (clients ask for neighbours), and the
 * segments that are asked for are verified first, so that a corrupt one is an error before a
 * byte is written.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "memory/catalog_state.h"

/* Does the caller have room for what is kept? */
static int check_out(const struct context *context, const struct fetch_out *out, struct error *err)
{
    bool keeps_states = context->shape.state_width > 0;
    if (keeps_states ? out->states != NULL : out->k != NULL && out->v != NULL) return 0;
    return error_set(err, MEMD_EUNSUPPORTED, "method %s keeps %s of a token", context->method->name,
                     keeps_states ? "states, no keys and values" : "keys and values, no states");
}

static int check_ids(const struct layer *layer, uint32_t layer_idx, const uint64_t *ids,
                     size_t count, struct error *err)
{
    uint64_t tokens = layer_tokens(layer);
    for (size_t i = 0; i < count; i++) {
        if (ids[i] >= tokens)
            return error_set(err, MEMD_ENOROW,
                             "layer %" PRIu32 " has no token %" PRIu64 ", it holds %" PRIu64,
                             layer_idx, ids[i], tokens);
    }
    return 0;
}

/* Every slot that one of the ids lies in. */
static int prove_slots(struct context *context, struct layer *layer, const uint64_t *ids,
                       size_t count, struct error *err)
{
    int rc = 0;
    size_t before = SIZE_MAX;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        size_t idx = (size_t)(ids[i] / FORMAT_SEGMENT_TOKENS);
        if (idx != before) rc = context_prove_slots(context, layer, idx, idx + 1, err);
        before = idx;
    }
    return rc;
}

/* The slot with a reference on its block, whose ids count when *ret_has_ids. */
static struct slot hold_slot(struct context *context, const struct layer *layer, size_t idx,
                             bool *ret_has_ids)
{
    pthread_mutex_lock(&context->lock);
    struct slot slot = layer->slots[idx];
    if (slot.block != NULL) block_get(slot.block);
    *ret_has_ids = slot.block != NULL && slot.block->has_ids;
    pthread_mutex_unlock(&context->lock);
    return slot;
}

static void copy_row(const struct context *context, const struct slot *slot, size_t row,
                     unsigned char *k, unsigned char *v)
{
    const struct block_shape *shape = &context->shape;
    for (uint32_t head = 0; head < shape->heads; head++) {
        const unsigned char *keys = slot->block != NULL
                                        ? block_rows(slot->block, shape, head, FORMAT_KIND_K)
                                        : slot->values[head];
        const unsigned char *values = slot->block != NULL
                                          ? block_rows(slot->block, shape, head, FORMAT_KIND_V)
                                          : slot->values[shape->heads + head];
        memcpy(k + head * shape->row_bytes, keys + row * shape->row_bytes, shape->row_bytes);
        memcpy(v + head * shape->row_bytes, values + row * shape->row_bytes, shape->row_bytes);
    }
}

/* False when the slot has no ids. */
static bool copy_id(const struct context *context, const struct slot *slot, bool has_ids,
                    size_t row, uint32_t *ret_id)
{
    if (slot->block == NULL && slot->ids != NULL) {
        memcpy(ret_id, slot->ids + row * sizeof *ret_id, sizeof *ret_id);
        return true;
    }
    if (slot->block == NULL || !has_ids) return false;
    *ret_id = block_ids(slot->block, &context->shape)[row];
    return true;
}

static void copy_rows(struct context *context, struct layer *layer, const uint64_t *ids,
                      size_t count, struct fetch_out *ret_rows)
{
    size_t half = block_token_bytes(&context->shape) / 2, stride = half;
    unsigned char *k = ret_rows->k, *v = ret_rows->v;
    if (context->shape.state_width > 0) {
        k = ret_rows->states;
        v = k + half;
        stride = 2 * half;
    }
    bool all_ids = ret_rows->token_ids != NULL;
    for (size_t i = 0; i < count;) {
        size_t idx = ids[i] / FORMAT_SEGMENT_TOKENS;
        bool has_ids = false;
        struct slot slot = hold_slot(context, layer, idx, &has_ids);
        for (; i < count && ids[i] / FORMAT_SEGMENT_TOKENS == idx; i++) {
            size_t row = ids[i] % FORMAT_SEGMENT_TOKENS;
            copy_row(context, &slot, row, k + i * stride, v + i * stride);
            if (all_ids) all_ids = copy_id(context, &slot, has_ids, row, &ret_rows->token_ids[i]);
        }
        block_put(slot.block);
    }
    ret_rows->has_ids = all_ids && count > 0;
}

int context_fetch(struct context *context, uint32_t layer_idx, const uint64_t *ids, size_t count,
                  struct fetch_out *ret_rows, struct error *err)
{
    if (layer_idx >= context->record->model.layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         layer_idx, context->record->model.layers);
    struct layer *layer = &context->layers[layer_idx];
    int rc = check_out(context, ret_rows, err);
    if (rc < 0) return rc;
    pthread_rwlock_rdlock(&context->use);
    rc = check_ids(layer, layer_idx, ids, count, err);
    if (rc == 0) rc = prove_slots(context, layer, ids, count, err);
    if (rc == 0) copy_rows(context, layer, ids, count, ret_rows);
    pthread_rwlock_unlock(&context->use);
    return rc;
}
