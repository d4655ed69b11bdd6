/* SPDX-License-Identifier: Apache-2.0 */
/* context_kept.c — a sample of the appended queries, for indexes that are made from queries.
 *
 * Which positions are kept is a function of the position alone, so a retry keeps the same ones and
 * a fork of the same past would have kept the same. They wait in memory beside their block and are
 * stored in the transaction that seals it. A process that dies loses those of open tails: an index
 * made later knows a few queries less, and no answer depends on it.
 *
 * Rejected: storing them with each tail record (an append of one token would write its queries
 * twice, and they are as large as the rows).
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "memory/catalog_state.h"

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

static bool is_kept(uint64_t position, double share)
{
    return (double)(mix(position) >> 11) < share * 0x1p53;
}

void kept_free(struct kept *kept)
{
    if (kept == NULL) return;
    free(kept->rows);
    free(kept->q);
    free(kept);
}

static void free_kept(struct kept **kept)
{
    kept_free(*kept);
}

/* Room for one more. */
static int grow(const struct context *context, struct kept *kept, struct error *err)
{
    if (kept->count < kept->capacity) return 0;
    size_t capacity = kept->capacity == 0 ? 32 : kept->capacity * 2;
    if (capacity > FORMAT_SEGMENT_TOKENS) capacity = FORMAT_SEGMENT_TOKENS;
    uint16_t *rows = realloc(kept->rows, capacity * sizeof *rows);
    if (rows != NULL) kept->rows = rows;
    uint16_t *q = realloc(kept->q, capacity * context_query_values(context) * sizeof *q);
    if (q != NULL) kept->q = q;
    if (rows == NULL || q == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu kept queries", capacity);
    kept->capacity = capacity;
    return 0;
}

/* Query i of the part, whose slot exists. */
static int add_one(struct context *context, struct slot *slot, const struct append_layer *part,
                   size_t i, struct error *err)
{
    size_t values = context_query_values(context);
    size_t row = (size_t)((part->position + i) % FORMAT_SEGMENT_TOKENS);
    if (slot->kept == NULL) slot->kept = calloc(1, sizeof *slot->kept);
    if (slot->kept == NULL) return error_set(err, MEMD_ENOMEM, "no memory for kept queries");
    struct kept *kept = slot->kept;
    kept_cut(kept, row); /* of an append that failed behind this point */
    int rc = grow(context, kept, err);
    if (rc < 0) return rc;
    CLEANUP(free_ptr) float *line = malloc(values * sizeof *line);
    if (line == NULL) return error_set(err, MEMD_ENOMEM, "no memory for kept queries");
    const unsigned char *q = part->q.data;
    half_load(q + i * values * dtype_bytes(part->q.dtype), part->q.dtype, values, line);
    half_store(line, values, DTYPE_FP16, kept->q + kept->count * values);
    kept->rows[kept->count++] = (uint16_t)row;
    return 0;
}

int kept_add(struct context *context, struct layer *layer, const struct append_layer *part,
             size_t skip, struct error *err)
{
    double share = method_option(context->method, context->options, "sample", 1);
    int rc = 0;
    for (size_t i = skip; rc == 0 && i < part->q.shape[0]; i++) {
        uint64_t position = part->position + i;
        if (!is_kept(position, share)) continue;
        pthread_mutex_lock(&context->lock);
        rc = add_one(context, &layer->slots[position / FORMAT_SEGMENT_TOKENS], part, i, err);
        pthread_mutex_unlock(&context->lock);
    }
    return rc;
}

void kept_cut(struct kept *kept, size_t rows)
{
    while (kept != NULL && kept->count > 0 && kept->rows[kept->count - 1] >= rows) kept->count--;
}

size_t kept_value_bytes(const struct context *context, const struct kept *kept)
{
    size_t values = context_query_values(context);
    return FORMAT_HEADER_BYTES + kept->count * (1 + values) * sizeof(uint16_t);
}

void kept_encode(const struct context *context, const struct kept *kept, uint64_t position,
                 unsigned char *ret_value)
{
    struct bytes_writer out = bytes_writer(ret_value + FORMAT_HEADER_BYTES,
                                           kept_value_bytes(context, kept) - FORMAT_HEADER_BYTES);
    for (size_t i = 0; i < kept->count; i++) bytes_put_le16(&out, kept->rows[i]);
    bytes_put(&out, kept->q, kept->count * context_query_values(context) * sizeof(uint16_t));
    assert(!out.bad);
    format_seal(&(struct value_header){
        .kind = FORMAT_KIND_QUERIES,
        .dtype = DTYPE_FP16,
        .tokens = (uint32_t)kept->count,
        .head_dim = (uint16_t)context->record->model.head_dim,
        .heads = (uint16_t)context->record->model.query_heads,
        .payload_bytes = out.offset,
        .position = position,
        .model_hash = context->shape.model_hash }, ret_value);
}

static int decode(struct context *context, struct slice value, struct kept *kept,
                  struct error *err)
{
    struct value_header header;
    int rc = format_decode(value.data, value.bytes, &header, err);
    if (rc == 0 && (header.kind != FORMAT_KIND_QUERIES ||
                    header.model_hash != context->shape.model_hash ||
                    header.heads != context->record->model.query_heads ||
                    header.head_dim != context->record->model.head_dim))
        rc = error_set(err, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0) rc = format_verify(value.data, value.bytes, err);
    if (rc < 0) return rc;
    size_t count = header.tokens, values = count * context_query_values(context);
    kept->rows = malloc(count * sizeof *kept->rows);
    kept->q = malloc(values * sizeof *kept->q);
    if (kept->rows == NULL || kept->q == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu kept queries", count);
    struct bytes_reader in = bytes_reader((const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                                          value.bytes - FORMAT_HEADER_BYTES);
    for (size_t i = 0; i < count; i++) {
        kept->rows[i] = bytes_get_le16(&in);
        if (kept->rows[i] >= FORMAT_SEGMENT_TOKENS || (i > 0 && kept->rows[i] <= kept->rows[i - 1]))
            return error_set(err, MEMD_ECORRUPT, "kept query %zu has row %u", i, kept->rows[i]);
    }
    const unsigned char *q = bytes_get(&in, values * sizeof *kept->q);
    assert(q != NULL && bytes_done(&in)); /* the header was checked */
    memcpy(kept->q, q, values * sizeof *kept->q);
    kept->count = kept->capacity = count;
    return 0;
}

int kept_load(struct context *context, struct store_txn *txn, uint64_t segment,
              struct kept **ret_kept, struct error *err)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_segment(segment, 0, FORMAT_KIND_QUERIES, key);
    struct slice value;
    if (!store_get(txn, STORE_SEGMENTS, (struct slice){ key, key_bytes }, &value)) {
        *ret_kept = NULL;
        return store_failed(txn, err);
    }
    CLEANUP(free_kept) struct kept *kept = calloc(1, sizeof *kept);
    if (kept == NULL) return error_set(err, MEMD_ENOMEM, "no memory for kept queries");
    struct error why = { 0 };
    int rc = decode(context, value, kept, &why);
    if (rc < 0)
        return error_set(err, rc, "queries of segment %" PRIu64 ": %s", segment, why.text);
    *ret_kept = TAKE(kept);
    return 0;
}
