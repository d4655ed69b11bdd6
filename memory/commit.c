/* SPDX-License-Identifier: Apache-2.0 */
/* commit.c — what a commit needs is fixed when the rows arrive (blocks are laid out and
 * checksummed by the appender), so that here remain puts, and nothing that can fail after LMDB
 * has said yes but finding the addresses of what was just written; where that fails, the block
 * stays and answers from memory.
 *
 * A transaction takes about BATCH_BYTES, so that those who wait behind a long prefill wait for
 * megabytes and not for all of it, and so that the memory of LMDB's dirty pages stays small and
 * is used again. A context that has more goes on in the next one, behind the others. If a
 * transaction fails, every context in it is cut back to what is committed.
 */
#include "memory/commit.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"

#define BATCH_BYTES (UINT64_C(32) << 20)
/* How long the writer, and with it everybody who appends, waits for a reader when the store is
 * full: once for each, and more than four times what the longest in this process was seen to last,
 * a step of verify that reads from a cold disk (decisions/0013). */
#define READERS_WAIT_NS UINT64_C(2000000000)

struct batch {
    struct catalog *catalog;
    struct list_link contexts; /* in this transaction */
    struct store_txn txn;
    uint64_t rows_bytes; /* put into it */
    size_t value_bytes;  /* of its largest value */
    int64_t stored_delta;
    uint64_t sealed;
    unsigned char *scratch; /* one tail record */
    size_t scratch_bytes;
};

/* How many of `want` rows from `from` on fit into `left`: whole segments where it is not all,
 * since a tail record in the middle would be written to be removed; but something when the
 * transaction is `empty`. */
static uint64_t rows_that_fit(uint64_t from, uint64_t want, uint64_t left, bool empty)
{
    if (want <= left) return want;
    uint64_t to_boundary = FORMAT_SEGMENT_TOKENS - from % FORMAT_SEGMENT_TOKENS;
    uint64_t end = (from + left) / FORMAT_SEGMENT_TOKENS * FORMAT_SEGMENT_TOKENS;
    if (end > from) return end - from;
    if (!empty) return 0;
    return want < to_boundary ? want : to_boundary;
}

/* Fix what this transaction will commit of a context, at most about `room` bytes; how many. What
 * a round is to reach is fixed at its start: rows that keep arriving cannot put off its end,
 * which is when the appends before it count as committed. */
static uint64_t begin_context(struct context *context, uint64_t room)
{
    uint64_t token_bytes = block_stored_bytes(&context->shape), left = room / token_bytes, rows = 0;
    bool whole = true;
    pthread_mutex_lock(&context->lock);
    if (!context->in_round) ring_begin(context);
    if (!context->in_round) context->round_sequence = context->sequence;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        if (!context->in_round) layer->round_tokens = layer_tokens(layer);
        uint64_t want = layer->round_tokens - layer->committed;
        uint64_t take = rows_that_fit(layer->committed, want, left, rows == 0);
        layer->writing = layer->committed + take;
        left -= take < left ? take : left;
        rows += take;
        whole = whole && take == want;
    }
    context->in_round = !whole;
    context->writing_sequence = whole ? context->round_sequence : context->committed_sequence;
    pthread_mutex_unlock(&context->lock);
    return rows * token_bytes;
}

static void put_value(struct batch *batch, struct context *context, const struct slot *slot,
                      uint32_t head, enum format_kind kind)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(slot->writing, head, kind, key);
    struct slice value = { block_value(slot->block, &context->shape, head, kind),
                           block_value_bytes(&context->shape, kind) };
    store_put(&batch->txn, STORE_SEGMENTS, (struct slice){ key, key_bytes }, value);
}

/* Bytes of the value, 0 when there are no kept queries. */
static uint64_t put_queries(struct batch *batch, struct context *context, const struct slot *slot,
                            uint64_t position)
{
    if (slot->kept == NULL || slot->kept->count == 0) return 0;
    size_t bytes = kept_value_bytes(context, slot->kept);
    CLEANUP(free_ptr) unsigned char *value = malloc(bytes);
    if (value == NULL) {
        store_fail(&batch->txn, ENOMEM);
        return 0;
    }
    kept_encode(context, slot->kept, position, value);
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(slot->writing, 0, FORMAT_KIND_QUERIES, key);
    store_put(&batch->txn, STORE_SEGMENTS, (struct slice){ key, key_bytes },
              (struct slice){ value, bytes });
    return bytes;
}

static void put_segment(struct batch *batch, struct context *context, uint32_t layer,
                        size_t slot_idx, struct slot *slot)
{
    slot->writing = batch->catalog->next_segment++;
    for (uint32_t head = 0; head < context->shape.heads; head++) {
        put_value(batch, context, slot, head, FORMAT_KIND_K);
        put_value(batch, context, slot, head, FORMAT_KIND_V);
    }
    if (slot->block->has_ids) put_value(batch, context, slot, 0, FORMAT_KIND_IDS);
    if (context->shape.columns.token_bytes > 0)
        put_value(batch, context, slot, 0, FORMAT_KIND_COLUMNS);
    struct chain_key key = { context->id, layer, (uint32_t)slot_idx };
    uint64_t bytes = block_segment_bytes(&context->shape, slot->block->has_ids);
    bytes += put_queries(batch, context, slot, (uint64_t)slot_idx * FORMAT_SEGMENT_TOKENS);
    chain_put(&batch->txn, &key, slot->writing, bytes, &batch->stored_delta);
    batch->sealed++;
}

/* Rows [from, to) of a layer, all in one slot. */
struct part {
    uint32_t layer;
    size_t slot_idx;
    uint64_t from, to;
    struct slot slot; /* a copy; the appender may move the array meanwhile */
    bool has_ids;     /* of the block */
};

static void read_slot(struct context *context, struct part *part)
{
    const struct layer *layer = &context->layers[part->layer];
    pthread_mutex_lock(&context->lock);
    assert(part->slot_idx < layer->slot_count);
    part->slot = layer->slots[part->slot_idx];
    part->has_ids = part->slot.block != NULL && part->slot.block->has_ids;
    pthread_mutex_unlock(&context->lock);
}

static int put_tail(struct batch *batch, struct context *context, const struct part *part)
{
    size_t count = (size_t)(part->to - part->from);
    size_t bytes = block_tail_bytes(&context->shape, count, part->has_ids);
    if (bytes > batch->scratch_bytes) {
        unsigned char *larger = realloc(batch->scratch, bytes);
        if (larger == NULL) return MEMD_ENOMEM;
        batch->scratch = larger;
        batch->scratch_bytes = bytes;
    }
    block_tail_encode(part->slot.block, &context->shape, part->from, count, part->has_ids,
                      batch->scratch);
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_tail(context->id, part->layer, part->from, key);
    store_put(&batch->txn, STORE_TAILS, (struct slice){ key, key_bytes },
              (struct slice){ batch->scratch, bytes });
    batch->stored_delta += (int64_t)bytes;
    return 0;
}

static void put_full(struct batch *batch, struct context *context, struct part *part)
{
    struct layer *layer = &context->layers[part->layer];
    put_segment(batch, context, part->layer, part->slot_idx, &part->slot);
    if (part->from % FORMAT_SEGMENT_TOKENS != 0) {
        struct tail_key first = { context->id, part->layer, part->to - FORMAT_SEGMENT_TOKENS };
        chain_cut_tails(&batch->txn, &first, part->to, &batch->stored_delta);
    }
    pthread_mutex_lock(&context->lock);
    layer->slots[part->slot_idx].writing = part->slot.writing;
    pthread_mutex_unlock(&context->lock);
}

static int put_layer(struct batch *batch, struct context *context, uint32_t layer_idx)
{
    const struct layer *layer = &context->layers[layer_idx];
    uint64_t from = layer->committed;
    while (from < layer->writing) {
        struct part part = { .layer = layer_idx,
                             .slot_idx = from / FORMAT_SEGMENT_TOKENS,
                             .from = from };
        uint64_t slot_end = ((uint64_t)part.slot_idx + 1) * FORMAT_SEGMENT_TOKENS;
        part.to = layer->writing < slot_end ? layer->writing : slot_end;
        read_slot(context, &part);
        assert(part.slot.block != NULL && part.slot.segment == 0);
        if (part.to == slot_end) {
            put_full(batch, context, &part);
        } else {
            int rc = put_tail(batch, context, &part);
            if (rc < 0) return rc;
        }
        from = part.to;
    }
    return 0;
}

static int put_context(struct batch *batch, struct context *context, struct error *err)
{
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        int rc = put_layer(batch, context, i);
        if (rc < 0) return error_set(err, rc, "no memory for a tail record");
        mass_put(context, i, &batch->txn, &batch->stored_delta);
        ring_put(context, i, &batch->txn, &batch->stored_delta);
    }
    return store_failed(&batch->txn, err);
}

/* Replace the block of a committed slot by the addresses of its values. */
static void publish_slot(struct context *context, uint32_t layer_idx, size_t idx,
                         struct store_txn *txn)
{
    struct layer *layer = &context->layers[layer_idx];
    struct part part = { .layer = layer_idx, .slot_idx = idx };
    read_slot(context, &part);
    struct slot slot = part.slot;
    struct segment_values values = { .segment = slot.writing,
                                     .position = (uint64_t)idx * FORMAT_SEGMENT_TOKENS,
                                     .values = slot.values };
    bool mapped = txn != NULL &&
                  context_find_values(context, txn, LOOK_HEADER, &values, NULL) == 0 &&
                  context_find_beside(context, txn, true, &values, NULL) == 0;
    /* These bytes are this process's own. */
    if (mapped) values_trust(slot.values, context->shape.heads);
    pthread_mutex_lock(&context->lock);
    struct slot *place = &layer->slots[idx];
    place->segment = slot.writing;
    place->writing = 0;
    place->build = SLOT_UNSEEN;
    struct kept *kept = place->kept; /* stored now */
    place->kept = NULL;
    struct block *block = NULL;
    if (mapped) {
        block = place->block;
        place->block = NULL;
        place->ids = values.ids;
        place->columns = values.columns;
        place->mapped = true;
    }
    pthread_mutex_unlock(&context->lock);
    block_put(block);
    kept_free(kept);
}

/* Bytes that left memory besides rows. */
static uint64_t publish_context(struct context *context, struct store_txn *txn)
{
    bool sealed = false;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        size_t end = layer->writing / FORMAT_SEGMENT_TOKENS;
        for (size_t idx = layer->committed / FORMAT_SEGMENT_TOKENS; idx < end; idx++) {
            publish_slot(context, i, idx, txn);
            sealed = true;
        }
    }
    pthread_mutex_lock(&context->lock);
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        context->layers[i].committed = context->layers[i].writing;
        bytes += mass_committed(context, &context->layers[i]);
        ring_committed(&context->layers[i]);
    }
    context->committed_sequence = context->writing_sequence;
    pthread_mutex_unlock(&context->lock);
    if (sealed) builder_wake(context->catalog->builder, context);
    return bytes;
}

/* Contexts whose round goes on return to `waiting`. Bytes that left memory besides rows. */
static uint64_t publish_batch(struct batch *batch, struct list_link *waiting)
{
    uint64_t bytes = 0;
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    bool reading = store_begin(batch->catalog->store, false, &txn, NULL) == 0;
    for (struct list_link *link; (link = list_take_first(&batch->contexts)) != NULL;) {
        struct context *context = LIST_ENTRY(link, struct context, batch_link);
        bytes += publish_context(context, reading ? &txn : NULL);
        if (context->in_round) list_append(waiting, link);
    }
    CATALOG_COUNT(batch->catalog, sealed_segments_total, batch->sealed);
    return bytes;
}

/* What one transaction takes from `waiting`. */
static void choose(struct batch *batch, struct list_link *waiting)
{
    while (!list_empty(waiting) && batch->rows_bytes < BATCH_BYTES) {
        struct list_link *link = list_take_first(waiting);
        struct context *context = LIST_ENTRY(link, struct context, batch_link);
        batch->rows_bytes += begin_context(context, BATCH_BYTES - batch->rows_bytes);
        size_t bytes = block_value_bytes(&context->shape, FORMAT_KIND_K);
        if (bytes > batch->value_bytes) batch->value_bytes = bytes;
        list_append(&batch->contexts, link);
    }
}

static int put_batch(struct batch *batch, struct error *err)
{
    struct room_wish wish = { batch->rows_bytes, batch->value_bytes };
    int rc = evict_check(batch->catalog, &wish, err);
    if (rc == 0) rc = store_begin(batch->catalog->store, true, &batch->txn, err);
    LIST_FOR(link, &batch->contexts)
    {
        if (rc < 0) return rc;
        rc = put_context(batch, LIST_ENTRY(link, struct context, batch_link), err);
    }
    return rc < 0 ? rc : catalog_commit(batch->catalog, &batch->txn, batch->stored_delta, err);
}

static void take_back(struct batch *batch, int code)
{
    uint64_t bytes = 0;
    for (struct list_link *link; (link = list_take_first(&batch->contexts)) != NULL;) {
        bytes += context_roll_back(LIST_ENTRY(link, struct context, batch_link), code);
    }
    writer_release(batch->catalog->writer, bytes);
}

/* One transaction. LMDB may run out where the numbers said that there is room (free pages that do
 * not stand side by side, another program that fills the disk): `again` tells to try it once more
 * when pages were had, its contexts are in `waiting` again. */
static int commit_some(struct batch *batch, struct list_link *waiting, bool *again,
                       struct error *err)
{
    uint64_t start = clock_monotonic_ns();
    choose(batch, waiting);
    int rc = put_batch(batch, err);
    store_abort(&batch->txn);
    CATALOG_COUNT(batch->catalog, commit_ns_total, clock_monotonic_ns() - start);
    bool retry = *again && rc == MEMD_EFULL && batch->txn.rc != 0 &&
                 commit_turn_pages(batch->catalog);
    *again = retry;
    if (rc == 0) {
        writer_release(batch->catalog->writer, batch->rows_bytes + publish_batch(batch, waiting));
    } else if (retry) {
        for (struct list_link *link; (link = list_take_first(&batch->contexts)) != NULL;) {
            list_append(waiting, link);
        }
    } else {
        take_back(batch, rc);
    }
    return rc;
}

bool commit_turn_pages(struct catalog *catalog)
{
    if (store_awaits_in_vain(catalog->store)) return false;
    int rc = store_sync(catalog->store, NULL);
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    if (rc == 0) rc = store_begin(catalog->store, true, &txn, NULL);
    if (rc == 0) rc = catalog_commit(catalog, &txn, 0, NULL);
    if (rc == 0) rc = store_sync(catalog->store, NULL); /* the synced state is a reader too */
    if (rc < 0) return false;
    CATALOG_COUNT(catalog, page_turns_total, 1);
    return store_await_readers(catalog->store, READERS_WAIT_NS);
}

int commit_contexts(struct catalog *catalog, struct list_link *contexts, struct error *err)
{
    int first = 0;
    bool turned = false; /* pages, for the batch before */
    CLEANUP(free_ptr) unsigned char *scratch = NULL;
    size_t scratch_bytes = 0;
    while (!list_empty(contexts)) {
        struct batch batch = { .catalog = catalog,
                               .scratch = scratch,
                               .scratch_bytes = scratch_bytes };
        list_init(&batch.contexts);
        bool again = !turned;
        int rc = commit_some(&batch, contexts, &again, first == 0 ? err : NULL);
        turned = again;
        if (rc < 0 && !again && first == 0) first = rc;
        scratch = batch.scratch;
        scratch_bytes = batch.scratch_bytes;
    }
    return first;
}
