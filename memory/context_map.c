/* SPDX-License-Identifier: Apache-2.0 */
/* context_map.c — from segments to addresses, from slots to views.
 *
 * The address of a sealed value does not change while the value lives, and values die only in
 * truncate and drop, which hold the context exclusively. So an address is looked up once, and a
 * query walks plain arrays. Addresses are found without reading a page of the values; where a
 * method reads every row anyway they are verified here, before anybody sees them, else when they
 * are first used (context_prove.c). Columns always are: they are read without asking.
 * Values that LMDB keeps inside its tree have no address: ids and columns of that size (marks; ids
 * on machines with large pages) are copied.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "attention/view.h"
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "memory/catalog_state.h"

/* *ret_rows stays NULL when an optional value is absent. */
static int find_value(struct context *context, struct store_txn *txn,
                      const struct value_place *place, enum value_look look,
                      const unsigned char **ret_rows, struct error *err)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(place->segment, place->head, place->kind, key);
    struct slice value;
    if (!store_get(txn, STORE_SEGMENTS, (struct slice){ key, key_bytes }, &value)) {
        int rc = store_failed(txn, err);
        if (rc < 0 || place->kind == FORMAT_KIND_IDS) return rc; /* the one that may be absent */
        CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
        return error_set(err, MEMD_ECORRUPT,
                         "context %" PRIu64 " segment %" PRIu64 " head %" PRIu32
                         " kind %d is missing",
                         context->id, place->segment, place->head, (int)place->kind);
    }
    int rc = context_check_value(context, place, look, value, err);
    if (rc < 0) return rc;
    const unsigned char *rows = (const unsigned char *)value.data + FORMAT_HEADER_BYTES;
    *ret_rows = rows;
    return 0;
}

int context_find_values(struct context *context, struct store_txn *txn, enum value_look look,
                        struct segment_values *values, struct error *err)
{
    struct value_place place = { .segment = values->segment, .position = values->position };
    for (uint32_t i = 0; i < 2 * context->shape.heads; i++) {
        place.head = i % context->shape.heads;
        place.kind = i < context->shape.heads ? FORMAT_KIND_K : FORMAT_KIND_V;
        int rc = find_value(context, txn, &place, look, &values->values[i], err);
        if (rc < 0) return rc;
        /* Payloads stand 64 bytes behind the start of a page (format.h). An LMDB that laid values
         * out otherwise would break every promise about addresses too, so there is no slow path to
         * fall back to. */
        assert((uintptr_t)values->values[i] % 16 == 0);
    }
    return 0;
}

/* Of ids or columns that have to be copied; 0 = they can be read where they are. */
static size_t copied_bytes(const struct context *context, enum format_kind kind)
{
    size_t bytes = block_value_bytes(&context->shape, kind);
    return store_may_move(context->catalog->store, bytes) ? bytes - FORMAT_HEADER_BYTES : 0;
}

/* Of addresses and proofs. */
static size_t addresses_bytes(const struct context *context)
{
    size_t count = (size_t)2 * context->shape.heads;
    return count * sizeof(const unsigned char *) + (count + 1) * sizeof(uint64_t);
}

const unsigned char **values_new(const struct context *context)
{
    return calloc(1, addresses_bytes(context) + copied_bytes(context, FORMAT_KIND_IDS) +
                         copied_bytes(context, FORMAT_KIND_COLUMNS));
}

/* Ids or columns. What is copied is verified at once: its header is left behind. */
static int find_beside(struct context *context, struct store_txn *txn, enum value_look look,
                       struct segment_values *values, enum format_kind kind, struct error *err)
{
    struct value_place place = { .segment = values->segment, .position = values->position,
                                 .kind = kind };
    size_t copied = copied_bytes(context, kind);
    const unsigned char *rows = NULL;
    int rc = find_value(context, txn, &place, copied > 0 ? LOOK_ALL : look, &rows, err);
    if (rc < 0) return rc;
    if (copied > 0 && rows != NULL) {
        unsigned char *copy = (unsigned char *)(void *)values->values + addresses_bytes(context);
        if (kind == FORMAT_KIND_COLUMNS) copy += copied_bytes(context, FORMAT_KIND_IDS);
        memcpy(copy, rows, copied);
        rows = copy;
    }
    assert(kind == FORMAT_KIND_IDS || (uintptr_t)rows % 8 == 0);
    *(kind == FORMAT_KIND_IDS ? &values->ids : &values->columns) = rows;
    return 0;
}

int context_find_beside(struct context *context, struct store_txn *txn, bool written,
                        struct segment_values *values, struct error *err)
{
    values->ids = values->columns = NULL;
    int rc = find_beside(context, txn, written ? LOOK_HEADER : LOOK_LENGTH, values,
                         FORMAT_KIND_IDS, err);
    uint32_t heads = context->shape.heads;
    if (rc == 0 && copied_bytes(context, FORMAT_KIND_IDS) > 0)
        atomic_store_explicit(values_proofs(values->values, heads) + (size_t)2 * heads,
                              DERIVED_ALL_PIECES, memory_order_relaxed);
    if (rc < 0 || context->shape.columns.token_bytes == 0) return rc;
    return find_beside(context, txn, written ? LOOK_HEADER : LOOK_ALL, values,
                       FORMAT_KIND_COLUMNS, err);
}

/* The first sealed slot below `count` that is not mapped; SIZE_MAX = none. */
static size_t next_unmapped(struct context *context, struct layer *layer, size_t from, size_t count,
                            uint64_t *ret_segment)
{
    size_t found = SIZE_MAX;
    pthread_mutex_lock(&context->lock);
    for (size_t i = from; layer->unmapped > 0 && i < count && i < layer->slot_count; i++) {
        const struct slot *slot = &layer->slots[i];
        if (slot->segment == 0 || slot->block != NULL || slot->mapped) continue;
        found = i;
        *ret_segment = slot->segment;
        break;
    }
    pthread_mutex_unlock(&context->lock);
    return found;
}

static int map_slot(struct context *context, struct layer *layer, size_t idx, uint64_t segment,
                    struct error *err)
{
    CLEANUP(free_ptr) const unsigned char **rows = values_new(context);
    if (rows == NULL) return error_set(err, MEMD_ENOMEM, "no memory for addresses");
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(context->catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    struct segment_values values = { .segment = segment,
                                     .position = (uint64_t)idx * FORMAT_SEGMENT_TOKENS,
                                     .values = rows };
    rc = context_find_values(context, &txn, LOOK_LENGTH, &values, err);
    if (rc == 0) rc = context_find_beside(context, &txn, false, &values, err);
    struct held held = { .segment = segment, .position = values.position, .values = rows,
                         .ids = values.ids };
    if (rc == 0 && !context->method->planes) rc = context_prove_all(context, &held, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&context->lock);
    struct slot *slot = &layer->slots[idx];
    assert(slot->segment == segment && slot->values == NULL);
    slot->values = TAKE(rows);
    slot->ids = values.ids;
    slot->columns = values.columns;
    slot->mapped = true;
    layer->unmapped--;
    pthread_mutex_unlock(&context->lock);
    return 0;
}

int context_map(struct context *context, struct layer *layer, size_t slot_count, struct error *err)
{
    uint64_t segment = 0;
    size_t idx = next_unmapped(context, layer, 0, slot_count, &segment);
    if (idx == SIZE_MAX) return 0;
    int rc = 0;
    pthread_mutex_lock(&context->map_lock);
    idx = next_unmapped(context, layer, idx, slot_count, &segment);
    while (rc == 0 && idx != SIZE_MAX) {
        rc = map_slot(context, layer, idx, segment, err);
        if (rc == 0) idx = next_unmapped(context, layer, idx + 1, slot_count, &segment);
    }
    pthread_mutex_unlock(&context->map_lock);
    return rc;
}

static void view_of(const struct context *context, const struct slot *slot, uint32_t head,
                    struct view *ret_view)
{
    size_t token_bytes = context->shape.columns.token_bytes;
    if (slot->block != NULL) {
        ret_view->k = block_rows(slot->block, &context->shape, head, FORMAT_KIND_K);
        ret_view->v = block_rows(slot->block, &context->shape, head, FORMAT_KIND_V);
        if (token_bytes > 0) ret_view->columns = block_columns(slot->block, &context->shape);
    } else {
        assert(slot->mapped);
        ret_view->k = slot->values[head];
        ret_view->v = slot->values[context->shape.heads + head];
        ret_view->columns = slot->columns;
    }
    ret_view->columns_stride_bytes = token_bytes;
    ret_view->k_stride_bytes = ret_view->v_stride_bytes = context->shape.row_bytes;
    ret_view->dtype = context->shape.dtype;
}

/* With lock held: nothing but copying. */
static void fill_views(struct context *context, const struct layer *layer, struct view *views,
                       struct snapshot *snapshot)
{
    if (layer->version != NULL) snapshot->version = layer_index_get(layer->version);
    snapshot->selection = layer->selection;
    for (size_t i = 0; i < snapshot->view_count; i++) {
        const struct slot *slot = &layer->slots[i];
        uint64_t position = (uint64_t)i * FORMAT_SEGMENT_TOKENS;
        uint64_t left = snapshot->seen - position;
        if (slot->block != NULL) snapshot->blocks[snapshot->block_count++] = block_get(slot->block);
        snapshot->held[i] = held_slot(layer, i);
        for (uint32_t head = 0; head < context->shape.heads; head++) {
            struct view *view = &views[head * snapshot->view_count + i];
            view_of(context, slot, head, view);
            view->position = position;
            view->tokens = left < FORMAT_SEGMENT_TOKENS ? (size_t)left : FORMAT_SEGMENT_TOKENS;
            if (snapshot->planes != NULL && slot->planes != NULL && left >= FORMAT_SEGMENT_TOKENS)
                snapshot->planes[head * snapshot->view_count + i] =
                    slot->tabled != NULL ? &slot->tabled[head] : &slot->planes[head].planes;
        }
    }
}

int snapshot_take(struct context *context, uint32_t layer_idx, uint64_t limit, struct arena *arena,
                  struct snapshot *ret_snapshot, struct error *err)
{
    struct layer *layer = &context->layers[layer_idx];
    struct snapshot snapshot = { .tokens = layer_tokens(layer) };
    snapshot.seen = snapshot.tokens < limit ? snapshot.tokens : limit;
    snapshot.view_count = (size_t)((snapshot.seen + FORMAT_SEGMENT_TOKENS - 1) /
                                   FORMAT_SEGMENT_TOKENS);
    if (snapshot.view_count == 0) {
        *ret_snapshot = snapshot;
        return 0;
    }
    int rc = context_map(context, layer, snapshot.view_count, err);
    if (rc < 0) return rc;
    if (context->method->planes) context_adopt(context, layer, snapshot.view_count);
    struct view *views = arena_calloc(arena, context->shape.heads * snapshot.view_count,
                                      sizeof *views);
    snapshot.blocks = arena_calloc(arena, snapshot.view_count, sizeof *snapshot.blocks);
    snapshot.held = arena_calloc(arena, snapshot.view_count, sizeof *snapshot.held);
    if (context->method->planes)
        snapshot.planes = arena_calloc(arena, context->shape.heads * snapshot.view_count,
                                       sizeof *snapshot.planes);
    if (views == NULL || snapshot.blocks == NULL || snapshot.held == NULL ||
        (context->method->planes && snapshot.planes == NULL))
        return error_set(err, MEMD_ENOMEM, "no memory for %zu views", snapshot.view_count);
    pthread_mutex_lock(&context->lock);
    fill_views(context, layer, views, &snapshot);
    pthread_mutex_unlock(&context->lock);
    snapshot.views = views;
    *ret_snapshot = snapshot;
    return 0;
}

void snapshot_release(struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->block_count; i++) block_put(snapshot->blocks[i]);
    snapshot->block_count = 0;
    layer_index_put(snapshot->version);
    snapshot->version = NULL;
}
