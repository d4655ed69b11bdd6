/* SPDX-License-Identifier: Apache-2.0 */
/* context_adopt.c — planes that the store has from before, put to use by the first query of a
 * layer.
 *
 * The builder finds them too, one segment after the other, at a low priority; until it has come by,
 * a query would read every row of a layer exactly, from the disk. Looking for them costs it a third
 * of that at most, and it will read most of what it looked at.
 *
 * The builder alone deletes planes, after it took them from every context. A worker that found them
 * in the store just before must not hand them out just after: so finding and handing out is done
 * under planes_lock, shared, and taking away and deleting under the same, exclusively. Nobody but
 * the builder waits for it: a worker that does not get it reads rows.
 */
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"
#include "memory/derived.h"

/* Is there a sealed slot that nobody knows planes of? */
static bool wants_planes(struct context *context, const struct layer *layer, size_t idx,
                         uint64_t *ret_segment)
{
    pthread_mutex_lock(&context->lock);
    const struct slot *slot = &layer->slots[idx];
    bool wants = slot->segment != 0 && slot->planes == NULL && slot->build == SLOT_UNSEEN;
    *ret_segment = slot->segment;
    pthread_mutex_unlock(&context->lock);
    return wants;
}

/* What is damaged, or cannot be had, is left to the builder. */
static void adopt_slot(struct context *context, struct layer *layer, size_t idx,
                       struct store_txn *txn)
{
    uint64_t segment = 0;
    if (!wants_planes(context, layer, idx, &segment)) return;
    struct derived_place place = { .segment = segment,
                                   .position = (uint64_t)idx * FORMAT_SEGMENT_TOKENS,
                                   .model_hash = context->shape.model_hash,
                                   .heads = context->shape.heads,
                                   .layout = &context->layout };
    CLEANUP(free_ptr) struct derived_planes *planes = calloc(place.heads, sizeof *planes);
    if (planes == NULL || derived_find(txn, &place, false, planes, NULL) <= 0) return;
    context_recall_observed(context, (uint32_t)(layer - context->layers), planes);
    pthread_mutex_lock(&context->lock);
    struct slot *slot = &layer->slots[idx];
    if (slot->segment == segment && slot->planes == NULL && slot->build == SLOT_UNSEEN) {
        slot->planes = TAKE(planes);
        slot->build = SLOT_BUILT;
    }
    pthread_mutex_unlock(&context->lock);
}

static size_t get_asked(struct context *context, const struct layer *layer)
{
    pthread_mutex_lock(&context->lock);
    size_t asked = layer->asked;
    pthread_mutex_unlock(&context->lock);
    return asked;
}

static void adopt_slots(struct context *context, struct layer *layer, size_t slot_count)
{
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    if (store_begin(context->catalog->store, false, &txn, NULL) < 0) return;
    for (size_t idx = layer->asked; idx < slot_count; idx++)
        adopt_slot(context, layer, idx, &txn);
    pthread_mutex_lock(&context->lock);
    layer->asked = slot_count;
    pthread_mutex_unlock(&context->lock);
}

void context_adopt(struct context *context, struct layer *layer, size_t slot_count)
{
    if (get_asked(context, layer) >= slot_count) return;
    pthread_mutex_lock(&context->map_lock);
    if (layer->asked < slot_count &&
        pthread_rwlock_tryrdlock(&context->catalog->planes_lock) == 0) {
        adopt_slots(context, layer, slot_count);
        pthread_rwlock_unlock(&context->catalog->planes_lock);
    }
    pthread_mutex_unlock(&context->map_lock);
}
