/* SPDX-License-Identifier: Apache-2.0 */
/* context_mass.c — attention mass that clients said tokens have received, added up per token and
 * query head. It cannot be had from the rows, so it is stored with them: 128 tokens to a value of
 * the table `notes`, in the transaction of the rows that the same append brought, or with whatever
 * of the context is committed next.
 *
 * In memory there is only what the store does not have yet. A chunk comes from the store when mass
 * is added to it, and leaves when a transaction with all of it was committed; folds read from
 * either place. So a long past costs no memory for it.
 *
 * A value never says anything about a token that is not stored: what belongs to tokens behind the
 * ones that a transaction commits is left out of it and follows with them. Else a crash would leave
 * mass for whatever tokens come to these positions.
 *
 * What a fold has taken in it cannot take in again, so mass for such tokens is left out, and mass
 * that comes with an append is there before its tokens are visible. That makes a fold the same when
 * it is made again from what is stored.
 *
 * Rejected: one value per token (its header would be larger), adding to the bytes in the store (a
 * value is checksummed as a whole), all of it in memory (3 % of the rows, for all contexts at
 * once).
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "memory/catalog_state.h"
#include "memory/chain.h"
#include "memory/owned.h"

enum { CHUNK = FORMAT_MASS_TOKENS };

/* Locked by context->lock, but for an empty one that is being made. */
struct mass_chunk {
    size_t holders;    /* who have memory for what they will add */
    uint64_t changed;  /* how often it was added to; that, */
    uint64_t writing, committed; /* in the running transaction (0: not in it), in the store */
    bool writing_cut, cut; /* something of it was left out there */
    float values[];            /* (CHUNK, H) */
};

static size_t heads_of(const struct context *context)
{
    return context->record->model.query_heads;
}

static size_t value_bytes(const struct context *context)
{
    return FORMAT_HEADER_BYTES + CHUNK * heads_of(context) * sizeof(float);
}

static size_t chunk_bytes(const struct context *context)
{
    return sizeof(struct mass_chunk) + CHUNK * heads_of(context) * sizeof(float);
}

/* What the store has of a chunk. 1: ret_values (CHUNK, H) are filled. 0: nothing. */
static int read_stored(struct context *context, uint32_t layer, size_t idx, float *ret_values,
                       struct error *err)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    struct slice name = { key, format_key_note(context->id, layer, NOTE_MASS, (uint32_t)idx, key) };
    struct slice value;
    struct value_header header;
    struct error why = { 0 };
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    int rc = store_begin(context->catalog->store, false, &txn, err);
    if (rc < 0) return rc;
    if (!store_get(&txn, STORE_NOTES, name, &value)) return store_failed(&txn, err);
    rc = format_decode(value.data, value.bytes, &header, &why);
    if (rc == 0 && (header.kind != FORMAT_KIND_MASS || header.position != (uint64_t)idx * CHUNK ||
                    header.model_hash != context->shape.model_hash ||
                    header.heads != heads_of(context)))
        rc = error_set(&why, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0) rc = format_verify(value.data, value.bytes, &why);
    if (rc < 0) {
        CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
        return error_set(err, rc, "context %" PRIu64 " layer %" PRIu32 " mass of tokens %zu …: %s",
                         context->id, layer, idx * CHUNK, why.text);
    }
    memcpy(ret_values, (const unsigned char *)value.data + FORMAT_HEADER_BYTES,
           CHUNK * heads_of(context) * sizeof *ret_values);
    return 1;
}

/* With lock held. */
static int make_room(struct mass *mass, size_t idx)
{
    if (idx < mass->count) return 0;
    size_t count = idx + 1 + idx / 2;
    struct mass_chunk **chunks = realloc(mass->chunks, count * sizeof *chunks);
    if (chunks == NULL) return MEMD_ENOMEM;
    memset(chunks + mass->count, 0, (count - mass->count) * sizeof *chunks);
    mass->chunks = chunks;
    mass->count = count;
    return 0;
}

/* With lock held, or nobody else there. */
static void free_chunk(struct mass *mass, size_t idx)
{
    free(mass->chunks[idx]);
    mass->chunks[idx] = NULL;
    assert(mass->resident > 0);
    mass->resident--;
}

/* Hold a chunk in memory; *bytes grows if it was not there. */
static int hold(struct context *context, uint32_t layer, size_t idx, uint64_t *bytes,
                struct error *err)
{
    struct mass *mass = &context->layers[layer].mass;
    pthread_mutex_lock(&context->lock);
    bool there = idx < mass->count && mass->chunks[idx] != NULL;
    if (there) mass->chunks[idx]->holders++;
    pthread_mutex_unlock(&context->lock);
    if (there) return 0;
    CLEANUP(free_ptr) struct mass_chunk *chunk = calloc(1, chunk_bytes(context));
    if (chunk == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the mass of %d tokens",
                                        CHUNK);
    int rc = read_stored(context, layer, idx, chunk->values, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&context->lock);
    rc = make_room(mass, idx);
    if (rc == 0 && mass->chunks[idx] == NULL) {
        mass->chunks[idx] = TAKE(chunk);
        mass->resident++;
        *bytes += chunk_bytes(context);
    }
    if (rc == 0) mass->chunks[idx]->holders++;
    pthread_mutex_unlock(&context->lock);
    return rc == 0 ? 0 : error_set(err, rc, "no memory for the mass of %d tokens", CHUNK);
}

static bool is_stored(const struct mass_chunk *chunk)
{
    return chunk->changed == chunk->committed && !chunk->cut;
}

/* Bytes that are given back. With lock held. */
static uint64_t let_go(struct context *context, uint32_t layer, size_t idx)
{
    struct mass *mass = &context->layers[layer].mass;
    struct mass_chunk *chunk = mass->chunks[idx];
    assert(chunk->holders > 0);
    if (--chunk->holders > 0 || !is_stored(chunk)) return 0;
    free_chunk(mass, idx);
    return chunk_bytes(context);
}

void mass_unhold(struct context *context, const struct mass_span *span)
{
    uint64_t bytes = 0;
    if (span->count == 0) return;
    pthread_mutex_lock(&context->lock);
    for (uint64_t i = span->position / CHUNK; i <= (span->position + span->count - 1) / CHUNK; i++)
        bytes += let_go(context, span->layer, (size_t)i);
    pthread_mutex_unlock(&context->lock);
    writer_release(context->catalog->writer, bytes);
}

int mass_hold(struct context *context, const struct mass_span *span, uint64_t *bytes,
              struct error *err)
{
    int rc = 0;
    if (span->count == 0) return 0;
    for (uint64_t first = span->position / CHUNK, i = first;
         rc == 0 && i <= (span->position + span->count - 1) / CHUNK; i++) {
        rc = hold(context, span->layer, (size_t)i, bytes, err);
        if (rc == 0 || i == first) continue;
        struct mass_span held = { span->layer, first * CHUNK, (size_t)(i - first) * CHUNK };
        mass_unhold(context, &held);
    }
    return rc;
}

void mass_add(struct context *context, const struct mass_span *span, const struct tensor *values,
              size_t skip)
{
    size_t heads = heads_of(context);
    const unsigned char *data = values->data;
    if (span->count == 0) return;
    float line[LIMIT_HEADS];
    pthread_mutex_lock(&context->lock);
    struct mass *mass = &context->layers[span->layer].mass;
    for (size_t i = 0; i < span->count; i++) {
        uint64_t position = span->position + i;
        struct mass_chunk *chunk = mass->chunks[position / CHUNK];
        assert(chunk != NULL && chunk->holders > 0);
        half_load(data + (skip + i) * heads * dtype_bytes(values->dtype), values->dtype, heads,
                  line);
        float *at = chunk->values + position % CHUNK * heads;
        for (size_t h = 0; h < heads; h++) at[h] += line[h];
        chunk->changed++;
    }
    pthread_mutex_unlock(&context->lock);
    mass_unhold(context, span);
}

int mass_check(struct context *context, const struct tensor *mass, size_t count, struct error *err)
{
    size_t heads = heads_of(context), bad = 0;
    if (!context->method->takes_mass)
        return error_set(err, MEMD_EUNSUPPORTED, "method %s makes no use of attention mass",
                         context->method->name);
    if (!dtype_is_float(mass->dtype) || mass->dims != 2 || mass->shape[0] != count ||
        mass->shape[1] != heads)
        return error_set(err, MEMD_ESHAPE, "attention mass must be (%zu, %zu)", count, heads);
    size_t at = half_find_nonfinite(mass->data, mass->dtype, count * heads, &bad);
    if (at < count * heads)
        return error_set(err, MEMD_ENONFINITE, "attention mass of token %zu, head %zu is NaN or "
                         "infinite, %zu such values", at / heads, at % heads, bad);
    const unsigned char *data = mass->data;
    for (size_t i = 0; i < count; i++) {
        float line[LIMIT_HEADS];
        half_load(data + i * heads * dtype_bytes(mass->dtype), mass->dtype, heads, line);
        for (size_t h = 0; h < heads; h++) {
            if (line[h] < 0)
                return error_set(err, MEMD_EINVAL, "attention mass of token %zu, head %zu is %g", i,
                                 h, (double)line[h]);
        }
    }
    return 0;
}

/* Chunks that a span touches, at most. */
static uint64_t chunks_of(uint64_t count)
{
    return count == 0 ? 0 : count / CHUNK + 2;
}

uint64_t mass_reserved_bytes(const struct context *context, uint64_t count)
{
    return chunks_of(count) * chunk_bytes(context);
}

/* With use held shared, and the fold where there is one. */
static int add(struct context *context, const struct mass_span *all, const struct tensor *mass,
               uint64_t *bytes, struct error *err)
{
    const struct fold *fold = context->layers[all->layer].folding.fold;
    uint64_t tokens = layer_tokens(&context->layers[all->layer]);
    uint64_t first = fold != NULL && fold->tokens > all->position ? fold->tokens : all->position;
    uint64_t end = all->position + all->count;
    if (end > tokens)
        return error_set(err, MEMD_EPOSITION,
                         "layer %" PRIu32 " holds %" PRIu64 " tokens, the mass is of %" PRIu64
                         " to %" PRIu64,
                         all->layer, tokens, all->position, end);
    if (first >= end) return 0;
    struct mass_span span = { all->layer, first, (size_t)(end - first) };
    int rc = mass_hold(context, &span, bytes, err);
    if (rc == 0) mass_add(context, &span, mass, (size_t)(first - all->position));
    return rc;
}

static int add_beside_fold(struct context *context, const struct mass_span *all,
                           const struct tensor *mass, uint64_t *bytes, struct error *err)
{
    if (context->method->fold == NULL) return add(context, all, mass, bytes, err);
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, FOLD_SCRATCH_BYTES_MAX);
    struct snapshot snapshot;
    struct fold_wish wish = { .layer = all->layer };
    int rc = fold_hold(context, &wish, &arena, &snapshot, err);
    if (rc < 0) return rc;
    rc = add(context, all, mass, bytes, err);
    fold_let_go(context, all->layer);
    snapshot_release(&snapshot);
    return rc;
}

int context_add_mass(struct context *context, uint32_t layer, uint64_t position,
                     const struct tensor *mass, struct error *err)
{
    if (layer >= context->record->model.layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         layer, context->record->model.layers);
    size_t count = mass->dims == 2 ? mass->shape[0] : 0;
    int rc = mass_check(context, mass, count, err);
    if (rc < 0) return rc;
    if (position > LIMIT_TOKENS || count > LIMIT_TOKENS)
        return error_set(err, MEMD_EPOSITION, "position %" PRIu64 " is beyond every layer",
                         position);
    struct writer *writer = context->catalog->writer;
    uint64_t reserved = mass_reserved_bytes(context, count), taken = 0;
    rc = writer_reserve(writer, reserved, err);
    if (rc < 0) return rc;
    struct mass_span span = { layer, position, count };
    pthread_rwlock_rdlock(&context->use);
    rc = add_beside_fold(context, &span, mass, &taken, err);
    if (rc == 0) writer_mark(writer, context);
    pthread_rwlock_unlock(&context->use);
    writer_release(writer, reserved - taken);
    return rc;
}

/* As a value: what belongs to tokens below `tokens`. Whether anything else was left out. With lock
 * held. */
static bool encode(const struct context *context, const struct mass_chunk *chunk, size_t idx,
                   uint64_t tokens, unsigned char *ret_value)
{
    size_t heads = heads_of(context);
    uint64_t first = (uint64_t)idx * CHUNK;
    size_t keep = tokens - first < CHUNK ? (size_t)(tokens - first) : CHUNK;
    memset(ret_value, 0, value_bytes(context));
    memcpy(ret_value + FORMAT_HEADER_BYTES, chunk->values, keep * heads * sizeof(float));
    for (size_t i = keep * heads; i < CHUNK * heads; i++) {
        if (chunk->values[i] != 0) return true;
    }
    return false;
}

static void put(const struct context *context, uint32_t layer, size_t idx, unsigned char *value,
                struct store_txn *txn, int64_t *delta)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    struct slice name = { key, format_key_note(context->id, layer, NOTE_MASS, (uint32_t)idx, key) };
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_MASS,
                                        .dtype = DTYPE_FP32,
                                        .tokens = CHUNK,
                                        .heads = (uint16_t)heads_of(context),
                                        .payload_bytes = value_bytes(context) - FORMAT_HEADER_BYTES,
                                        .position = (uint64_t)idx * CHUNK,
                                        .model_hash = context->shape.model_hash },
                value);
    owned_put(txn, STORE_NOTES, name, (struct slice){ value, value_bytes(context) }, delta);
}

/* The next chunk from *idx on that goes into the transaction, as a value; false when there is none.
 * None of the others is in it, whatever a transaction before tried. */
static bool next_value(struct context *context, const struct layer *layer, size_t *idx,
                       unsigned char *ret_value)
{
    bool found = false;
    pthread_mutex_lock(&context->lock);
    for (; !found && *idx < layer->mass.count; (*idx)++) {
        struct mass_chunk *chunk = layer->mass.chunks[*idx];
        if (chunk == NULL) continue;
        found = !is_stored(chunk) && (uint64_t)*idx * CHUNK < layer->writing;
        chunk->writing = found ? chunk->changed : 0;
        if (found) chunk->writing_cut = encode(context, chunk, *idx, layer->writing, ret_value);
    }
    pthread_mutex_unlock(&context->lock);
    return found;
}

void mass_put(struct context *context, uint32_t layer_idx, struct store_txn *txn, int64_t *delta)
{
    const struct layer *layer = &context->layers[layer_idx];
    pthread_mutex_lock(&context->lock);
    size_t left = layer->mass.resident;
    pthread_mutex_unlock(&context->lock);
    if (left == 0) return;
    CLEANUP(free_ptr) unsigned char *value = malloc(value_bytes(context));
    if (value == NULL) {
        store_fail(txn, ENOMEM);
        return;
    }
    for (size_t idx = 0; next_value(context, layer, &idx, value);)
        put(context, layer_idx, idx - 1, value, txn, delta);
}

uint64_t mass_committed(struct context *context, struct layer *layer)
{
    struct mass *mass = &layer->mass;
    uint64_t bytes = 0;
    for (size_t i = 0; mass->resident > 0 && i < mass->count; i++) {
        struct mass_chunk *chunk = mass->chunks[i];
        if (chunk == NULL || chunk->writing == 0) continue;
        chunk->committed = chunk->writing;
        chunk->cut = chunk->writing_cut;
        chunk->writing = 0;
        if (chunk->holders > 0 || !is_stored(chunk)) continue;
        free_chunk(mass, i);
        bytes += chunk_bytes(context);
    }
    return bytes;
}

uint64_t mass_forget(struct context *context, struct layer *layer)
{
    uint64_t bytes = 0;
    for (size_t i = 0; layer->mass.resident > 0 && i < layer->mass.count; i++) {
        if (layer->mass.chunks[i] == NULL) continue;
        free_chunk(&layer->mass, i);
        bytes += chunk_bytes(context);
    }
    free(layer->mass.chunks);
    layer->mass = (struct mass){ 0 };
    return bytes;
}

uint64_t mass_cut(struct context *context, struct layer *layer, uint64_t tokens)
{
    struct mass *mass = &layer->mass;
    size_t heads = heads_of(context), first = (size_t)(tokens / CHUNK);
    uint64_t bytes = 0;
    for (size_t i = first; mass->resident > 0 && i < mass->count; i++) {
        struct mass_chunk *chunk = mass->chunks[i];
        if (chunk == NULL) continue;
        assert(chunk->holders == 0);
        if (i == first && tokens % CHUNK != 0) {
            size_t keep = (size_t)(tokens % CHUNK) * heads;
            memset(chunk->values + keep, 0, (CHUNK * heads - keep) * sizeof *chunk->values);
            continue;
        }
        free_chunk(mass, i);
        bytes += chunk_bytes(context);
    }
    return bytes;
}

int mass_cut_stored(struct context *context, uint32_t layer, uint64_t tokens, struct store_txn *txn,
                    int64_t *delta, struct error *err)
{
    if (!context->method->takes_mass) return 0;
    size_t keep = (size_t)(tokens % CHUNK) * heads_of(context);
    size_t idx = (size_t)(tokens / CHUNK);
    CLEANUP(free_ptr) unsigned char *value = NULL;
    if (keep > 0) {
        value = calloc(1, value_bytes(context));
        if (value == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a note");
        float *values = (float *)(void *)(value + FORMAT_HEADER_BYTES);
        int rc = read_stored(context, layer, idx, values, err);
        if (rc < 0) return rc;
        memset(values + keep, 0, (CHUNK * heads_of(context) - keep) * sizeof *values);
        if (rc > 0) put(context, layer, idx++, value, txn, delta);
    }
    struct note_key first = { context->id, layer, NOTE_MASS, (uint32_t)idx };
    chain_cut_notes(txn, &first, delta);
    return 0;
}

/* What is known of a chunk, in either place. ret_values (CHUNK, H) */
static int copy_chunk(struct context *context, uint32_t layer, size_t idx, float *ret_values,
              struct error *err)
{
    const struct mass *mass = &context->layers[layer].mass;
    size_t bytes = CHUNK * heads_of(context) * sizeof *ret_values;
    pthread_mutex_lock(&context->lock);
    const struct mass_chunk *chunk = idx < mass->count ? mass->chunks[idx] : NULL;
    if (chunk != NULL) memcpy(ret_values, chunk->values, bytes);
    pthread_mutex_unlock(&context->lock);
    if (chunk != NULL) return 0;
    /* It left memory after its commit, so a transaction that begins now has it. */
    int rc = read_stored(context, layer, idx, ret_values, err);
    if (rc == 0) memset(ret_values, 0, bytes);
    return rc < 0 ? rc : 0;
}

/* A fold reads the tokens in order, so the chunk that it is in is kept. */
const float *mass_read(void *arg, uint64_t position)
{
    struct mass_reader *reader = arg;
    struct context *context = reader->context;
    size_t heads = heads_of(context), idx = (size_t)(position / CHUNK);
    if (reader->rc < 0) return NULL;
    if (reader->values == NULL || reader->idx != idx) {
        if (reader->values == NULL)
            reader->values = malloc(CHUNK * heads * sizeof *reader->values);
        if (reader->values == NULL)
            reader->rc = error_set(&reader->err, MEMD_ENOMEM, "no memory for the mass of tokens");
        else
            reader->rc = copy_chunk(context, reader->layer, idx, reader->values, &reader->err);
        if (reader->rc < 0) return NULL;
        reader->idx = idx;
    }
    const float *line = reader->values + position % CHUNK * heads;
    for (size_t h = 0; h < heads; h++) {
        if (line[h] != 0) return line;
    }
    return NULL;
}

void mass_reader_fini(struct mass_reader *reader)
{
    free(reader->values);
}
