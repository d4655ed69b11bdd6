/* SPDX-License-Identifier: Apache-2.0 */
/* context_ring.c — which states a layer's ring holds where that depends on what was retrieved
 * (index/lru.h): the one state of a method that is no function of the rows, so it is stored with
 * them, as a note.
 *
 * A query is given a copy of the ring, brought up to the rows that it sees; the ring itself changes
 * only when the method has said what it retrieved, under a lock of the layer. Retrievals between
 * two appends may come in any order, so concurrent queries leave the same ring whoever is first.
 *
 * Appends change nothing here: the ring is as of its last retrieval, and what was written since
 * then is made up for by whoever looks. So the note is written only when something was retrieved,
 * and a truncate behind the last retrieval needs nothing of it.
 *
 * A round (commit.c) copies the rings when it looks how many tokens there are. So every ring in it
 * is about rows that the round has, and knows of every retrieval that was answered before an append
 * in the round; it is put into the transaction that completes these rows. What was last committed
 * is kept in memory, for when a commit fails and rows are taken back.
 *
 * Rejected: a note for each stamp (a retrieval of 32 states would be 32 values), a log of
 * retrievals (grows without end), writing the note from the query (a transaction per answer).
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"
#include "memory/owned.h"

struct ring {
    pthread_mutex_t lock;
    struct lru lru;
    uint64_t changed; /* how often; locked by lock */

    /* writer */
    uint64_t writing, committed; /* changes in `round`, in the store */
    bool pending, put;           /* `round` is to be written; is in the running transaction */
    struct lru round;            /* as it was when the round began */
    bool stored;                 /* `last` is in the store */
    uint64_t value_tokens, last_tokens;
    unsigned char *value, *last; /* (value_bytes_max) sealed values: the next one, the last one */
    size_t value_bytes, last_bytes;
};

static size_t slots_of(const struct context *context)
{
    return context->method->ring == NULL ? 0 : context->method->ring(context->options);
}

static size_t value_bytes_max(size_t slots)
{
    struct lru full = { .count = slots };
    return FORMAT_HEADER_BYTES + lru_encoded_bytes(&full);
}

static size_t ring_bytes(size_t slots)
{
    return sizeof(struct ring) + 2 * lru_room(slots) + 2 * value_bytes_max(slots);
}

/* One piece of memory: itself, two rings, two values. */
static struct ring *new_ring(const struct context *context)
{
    size_t slots = slots_of(context);
    struct ring *ring = calloc(1, ring_bytes(slots));
    if (ring == NULL) return NULL;
    pthread_mutex_init(&ring->lock, NULL);
    unsigned char *room = (unsigned char *)(ring + 1);
    lru_init(&ring->lru, slots, room);
    lru_init(&ring->round, slots, room + lru_room(slots));
    ring->value = room + 2 * lru_room(slots);
    ring->last = ring->value + value_bytes_max(slots);
    return ring;
}

static void drop_ring(struct ring *ring)
{
    if (ring == NULL) return;
    pthread_mutex_destroy(&ring->lock);
    free(ring);
}

static struct ring *set_ring(struct context *context, struct layer *layer, struct ring *ring)
{
    pthread_mutex_lock(&context->lock);
    struct ring *before = layer->ring;
    if (before == NULL) layer->ring = ring;
    pthread_mutex_unlock(&context->lock);
    if (before == NULL)
        atomic_fetch_add(&context->catalog->state_bytes, ring_bytes(ring->lru.slots));
    else
        drop_ring(ring);
    return before == NULL ? ring : before;
}

void ring_free(struct context *context, struct layer *layer)
{
    if (layer->ring == NULL) return;
    atomic_fetch_sub(&context->catalog->state_bytes, ring_bytes(layer->ring->lru.slots));
    drop_ring(layer->ring);
    layer->ring = NULL;
}

static struct ring *find_ring(struct context *context, uint32_t layer)
{
    pthread_mutex_lock(&context->lock);
    struct ring *ring = context->layers[layer].ring;
    pthread_mutex_unlock(&context->lock);
    return ring;
}

/* ---- queries ---- */

int ring_take(struct context *context, uint32_t layer, uint64_t tokens, struct arena *arena,
              struct lru **ret_lru, struct error *err)
{
    size_t slots = slots_of(context);
    *ret_lru = NULL;
    if (slots == 0) return 0;
    struct ring *ring = find_ring(context, layer);
    if (ring == NULL && (ring = new_ring(context)) != NULL)
        ring = set_ring(context, &context->layers[layer], ring);
    struct lru *lru = arena_calloc(arena, 1, sizeof *lru);
    void *room = arena_calloc(arena, 1, lru_room(slots));
    if (ring == NULL || lru == NULL || room == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for a ring of %zu states", slots);
    lru_init(lru, slots, room);
    pthread_mutex_lock(&ring->lock);
    lru_copy(&ring->lru, lru);
    pthread_mutex_unlock(&ring->lock);
    lru_advance(lru, tokens);
    *ret_lru = lru;
    return 0;
}

void ring_use(struct context *context, uint32_t layer, const struct lru *taken,
              const struct ring_uses *uses)
{
    struct ring *ring = find_ring(context, layer);
    assert(ring != NULL);
    pthread_mutex_lock(&ring->lock);
    bool changed = lru_use(&ring->lru, taken->tokens, uses->positions, uses->count);
    if (changed) ring->changed++;
    pthread_mutex_unlock(&ring->lock);
    if (changed) writer_mark(context->catalog->writer, context);
}

int ring_describe(struct context *context, uint32_t layer, uint64_t tokens, struct arena *arena,
                  struct fold_fact *ret_facts, struct error *err)
{
    struct lru *lru = NULL;
    int rc = ring_take(context, layer, tokens, arena, &lru, err);
    if (rc < 0 || lru == NULL) return rc;
    ret_facts[0] = (struct fold_fact){ "ring_states", (double)lru->count };
    ret_facts[1] = (struct fold_fact){ "ring_evicted", (double)(tokens - lru->count) };
    return 2;
}

/* ---- the note ---- */

static struct slice name_of(const struct context *context, uint32_t layer, unsigned char *buffer)
{
    return (struct slice){ buffer, format_key_note(context->id, layer, NOTE_RING, 0, buffer) };
}

/* Into ring->value. */
static void encode(const struct context *context, struct ring *ring, const struct lru *lru)
{
    ring->value_bytes = FORMAT_HEADER_BYTES + lru_encoded_bytes(lru);
    ring->value_tokens = lru->tokens;
    lru_encode(lru, ring->value + FORMAT_HEADER_BYTES);
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_RING,
                                        .payload_bytes = ring->value_bytes - FORMAT_HEADER_BYTES,
                                        .position = lru->tokens,
                                        .model_hash = context->shape.model_hash },
                ring->value);
}

static void put_value(const struct context *context, uint32_t layer, struct ring *ring,
                      struct store_txn *txn, int64_t *delta)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    owned_put(txn, STORE_NOTES, name_of(context, layer, key),
              (struct slice){ ring->value, ring->value_bytes }, delta);
}

/* The value is the last one now. */
static void swap_values(struct ring *ring)
{
    unsigned char *before = ring->last;
    ring->last = ring->value;
    ring->last_bytes = ring->value_bytes;
    ring->last_tokens = ring->value_tokens;
    ring->value = before;
    ring->stored = true;
}

void ring_begin(struct context *context)
{
    size_t layers = slots_of(context) == 0 ? 0 : context->record->model.layers;
    for (uint32_t i = 0; i < layers; i++) {
        struct ring *ring = context->layers[i].ring;
        if (ring == NULL) continue;
        pthread_mutex_lock(&ring->lock);
        ring->pending = ring->changed != ring->committed;
        ring->writing = ring->changed;
        if (ring->pending) lru_copy(&ring->lru, &ring->round);
        pthread_mutex_unlock(&ring->lock);
    }
}

void ring_put(struct context *context, uint32_t layer, struct store_txn *txn, int64_t *delta)
{
    struct ring *ring = find_ring(context, layer);
    if (ring == NULL) return;
    ring->put = ring->pending && ring->round.tokens <= context->layers[layer].writing;
    if (!ring->put) return;
    encode(context, ring, &ring->round);
    put_value(context, layer, ring, txn, delta);
}

void ring_committed(struct layer *layer)
{
    struct ring *ring = layer->ring;
    if (ring == NULL || !ring->put) return;
    ring->put = ring->pending = false;
    ring->committed = ring->writing;
    swap_values(ring);
}

void ring_roll_back(struct layer *layer)
{
    struct ring *ring = layer->ring;
    if (ring == NULL) return;
    ring->put = ring->pending = false;
    if (ring->lru.tokens <= layer->committed) return;
    int rc = 0;
    ring->lru.tokens = ring->lru.count = 0;
    if (ring->stored)
        rc = lru_decode(ring->last + FORMAT_HEADER_BYTES, ring->last_bytes - FORMAT_HEADER_BYTES,
                        &ring->lru, NULL);
    assert(rc == 0 && ring->lru.tokens <= layer->committed);
    ring->committed = ring->changed;
}

int context_load_ring(struct context *context, uint32_t layer, struct slice value,
                      struct error *err)
{
    struct value_header header;
    struct error why = { 0 };
    struct ring *ring = slots_of(context) == 0 ? NULL : new_ring(context);
    if (slots_of(context) == 0) return 0; /* whoever forked it has another method */
    if (ring == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a ring of states");
    int rc = format_decode(value.data, value.bytes, &header, &why);
    if (rc == 0 && (header.kind != FORMAT_KIND_RING ||
                    header.model_hash != context->shape.model_hash ||
                    value.bytes > value_bytes_max(ring->lru.slots)))
        rc = error_set(&why, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0) rc = format_verify(value.data, value.bytes, &why);
    if (rc == 0)
        rc = lru_decode((const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                        value.bytes - FORMAT_HEADER_BYTES, &ring->lru, &why);
    if (rc == 0 && ring->lru.tokens > layer_tokens(&context->layers[layer]))
        rc = error_set(&why, MEMD_ECORRUPT, "it is of %" PRIu64 " tokens", ring->lru.tokens);
    if (rc == 0) {
        encode(context, ring, &ring->lru);
        swap_values(ring);
        set_ring(context, &context->layers[layer], ring);
        return 0;
    }
    drop_ring(ring);
    if (rc == MEMD_ECORRUPT) CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
    return error_set(err, rc, "context %" PRIu64 " layer %" PRIu32 " ring: %s", context->id, layer,
                     why.text);
}

/* ---- truncate ---- */

int ring_check_cut(const struct layer *layer, uint32_t idx, uint64_t tokens, struct error *err)
{
    const struct ring *ring = layer->ring;
    if (ring == NULL || lru_can_cut(&ring->lru, tokens)) return 0;
    return error_set(err, MEMD_EUNSUPPORTED,
                     "layer %" PRIu32 " cannot be cut at %" PRIu64 ": its ring was read at %" PRIu64
                     " tokens, and states that had left it by then would have to come back",
                     idx, tokens, ring->lru.tokens);
}

void ring_cut_stored(struct context *context, uint32_t layer, uint64_t tokens,
                     struct store_txn *txn, int64_t *delta)
{
    struct ring *ring = context->layers[layer].ring;
    if (ring == NULL || !ring->stored || ring->last_tokens <= tokens) return;
    lru_copy(&ring->lru, &ring->round);
    lru_cut(&ring->round, tokens);
    encode(context, ring, &ring->round);
    put_value(context, layer, ring, txn, delta);
}

/* Of what ring_cut_stored wrote the same is left. */
void ring_cut(struct layer *layer, uint64_t tokens)
{
    struct ring *ring = layer->ring;
    if (ring == NULL) return;
    ring->put = ring->pending = false;
    if (ring->stored && ring->last_tokens > tokens) {
        swap_values(ring);
        ring->committed = ring->changed;
    }
    lru_cut(&ring->lru, tokens);
}
