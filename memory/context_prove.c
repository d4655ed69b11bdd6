/* SPDX-License-Identifier: Apache-2.0 */
/* context_prove.c — bytes are verified before they are used, and not before they are needed.
 *
 * What lies on the disk is read to be verified, so verifying decides what is in memory. A value of
 * a sealed segment has a proof beside its address, which is lasting: values never change, and an
 * address lives as long as its value. Who wants to use bytes asks for the proof; the first one
 * reads the value through, header and checksum, and everybody after that sees bits.
 *
 * Where a segment has planes, they hold checksums of its pieces, 16 rows each: one row costs its
 * piece and not the whole value (0040). They say yes only. Where a piece does not have its
 * checksum, the value's own is the one that counts.
 *
 * Two workers may read the same value through at once. They find the same; a lock would make one of
 * them wait for the disk of the other.
 *
 * A row without proof is an error of the request (MEMD_ECORRUPT), whoever asks. Low nibbles without
 * proof (derived data) are as if they were not there: rows are read instead, and the builder makes
 * them anew.
 */
#include <assert.h>
#include <inttypes.h>

#include "attention/view.h"
#include "base/error.h"
#include "memory/builder.h"
#include "memory/catalog_state.h"

/* Header and, with LOOK_ALL, checksum; the text says what is wrong. */
static int look_at(const struct context *context, const struct value_place *place,
                   enum value_look look, struct slice value, struct error *why)
{
    struct value_header header;
    int rc = format_decode(value.data, value.bytes, &header, why);
    if (rc < 0) return rc;
    if (header.kind != place->kind || header.position != place->position ||
        header.model_hash != context->shape.model_hash || header.tokens != FORMAT_SEGMENT_TOKENS)
        return error_set(why, MEMD_ECORRUPT, "the header belongs to another value");
    bool has_rows = place->kind == FORMAT_KIND_K || place->kind == FORMAT_KIND_V;
    if (has_rows &&
        (header.heads != 1 || header.head_dim != context->shape.head_dim ||
         header.dtype != context->shape.dtype))
        return error_set(why, MEMD_ECORRUPT, "the shape is not that of the context");
    return look == LOOK_ALL ? format_verify(value.data, value.bytes, why) : 0;
}

int context_check_value(struct context *context, const struct value_place *place,
                        enum value_look look, struct slice value, struct error *err)
{
    struct error why = { 0 };
    int rc = 0;
    if (value.bytes != block_value_bytes(&context->shape, place->kind))
        rc = error_set(&why, MEMD_ECORRUPT, "it has %zu bytes", value.bytes);
    else if (look != LOOK_LENGTH)
        rc = look_at(context, place, look, value, &why);
    if (rc == 0) return 0;
    CATALOG_COUNT(context->catalog, checksum_failures_total, 1);
    return error_set(err, rc,
                     "context %" PRIu64 " segment %" PRIu64 " head %" PRIu32 " kind %d: %s",
                     context->id, place->segment, place->head, (int)place->kind, why.text);
}

void values_trust(const unsigned char **values, uint32_t heads)
{
    for (size_t i = 0; i < (size_t)2 * heads + 1; i++)
        atomic_store_explicit(values_proofs(values, heads) + i, DERIVED_ALL_PIECES,
                              memory_order_relaxed);
}

/* Where a value and its proof stand: K of all heads, V of all heads, ids. */
static size_t place_of(const struct context *context, uint32_t head, enum format_kind kind)
{
    uint32_t heads = context->shape.heads;
    return kind == FORMAT_KIND_K ? head : kind == FORMAT_KIND_V ? heads + head : 2 * heads;
}

int context_prove(struct context *context, const struct held *held, uint32_t head,
                  enum format_kind kind, struct error *err)
{
    size_t at = place_of(context, head, kind);
    const unsigned char *payload = kind == FORMAT_KIND_IDS ? held->ids : held->values[at];
    _Atomic uint64_t *proof = values_proofs(held->values, context->shape.heads) + at;
    if (payload == NULL ||
        atomic_load_explicit(proof, memory_order_acquire) == DERIVED_ALL_PIECES)
        return 0;
    struct value_place place = { .segment = held->segment,
                                 .position = held->position,
                                 .head = head,
                                 .kind = kind };
    struct slice value = { payload - FORMAT_HEADER_BYTES,
                           block_value_bytes(&context->shape, kind) };
    int rc = context_check_value(context, &place, LOOK_ALL, value, err);
    if (rc < 0) return rc;
    CATALOG_COUNT(context->catalog, proven_bytes_total, value.bytes);
    atomic_store_explicit(proof, DERIVED_ALL_PIECES, memory_order_release);
    return 0;
}

/* Bytes of a payload are read. */
static bool pieces_are_sound(const struct planes *planes, enum derived_part part, uint64_t pieces,
                             struct slice payload)
{
    for (; pieces != 0; pieces &= pieces - 1) {
        size_t piece = (size_t)__builtin_ctzll(pieces);
        if (!derived_check(planes, part, piece, payload.data, payload.bytes)) return false;
    }
    return true;
}

int context_prove_pieces(struct context *context, const struct held *held,
                         const struct value_pieces *wanted, struct error *err)
{
    size_t at = place_of(context, wanted->head, wanted->kind);
    _Atomic uint64_t *proof = values_proofs(held->values, context->shape.heads) + at;
    uint64_t missing = wanted->pieces & ~atomic_load_explicit(proof, memory_order_acquire);
    if (missing == 0) return 0;
    struct slice payload = { held->values[at], FORMAT_SEGMENT_TOKENS * context->shape.row_bytes };
    if (held->planes == NULL ||
        !pieces_are_sound(&held->planes[wanted->head].planes,
                          wanted->kind == FORMAT_KIND_K ? DERIVED_K : DERIVED_V, missing, payload))
        return context_prove(context, held, wanted->head, wanted->kind, err);
    size_t count = (size_t)__builtin_popcountll(missing);
    CATALOG_COUNT(context->catalog, proven_bytes_total, count * payload.bytes / DERIVED_PIECES);
    atomic_fetch_or_explicit(proof, missing, memory_order_release);
    return 0;
}

int context_prove_all(struct context *context, const struct held *held, struct error *err)
{
    int rc = held->values == NULL ? 0 : context_prove(context, held, 0, FORMAT_KIND_IDS, err);
    for (uint32_t head = 0; rc == 0 && held->values != NULL && head < context->shape.heads;
         head++) {
        rc = context_prove(context, held, head, FORMAT_KIND_K, err);
        if (rc == 0) rc = context_prove(context, held, head, FORMAT_KIND_V, err);
    }
    return rc;
}

struct held held_slot(const struct layer *layer, size_t idx)
{
    const struct slot *slot = &layer->slots[idx];
    bool in_block = slot->block != NULL || !slot->mapped;
    return (struct held){ .segment = slot->segment,
                          .position = (uint64_t)idx * FORMAT_SEGMENT_TOKENS,
                          .values = in_block ? NULL : slot->values,
                          .ids = slot->ids,
                          .planes = slot->planes };
}

int context_prove_slots(struct context *context, struct layer *layer, size_t first, size_t end,
                        struct error *err)
{
    int rc = context_map(context, layer, end, err);
    for (size_t i = first; rc == 0 && i < end; i++) {
        pthread_mutex_lock(&context->lock);
        struct held held = held_slot(layer, i);
        pthread_mutex_unlock(&context->lock);
        rc = context_prove_all(context, &held, err);
    }
    return rc;
}

/* The first failure of any worker is what the request says. */
static int refuse(struct asking *asking, int code, const struct error *why)
{
    int none = 0;
    if (atomic_compare_exchange_strong(&asking->refused, &none, code)) asking->why = *why;
    return code;
}

/* Which slot and head a view of the snapshot belongs to. */
static const struct held *held_view(const struct asking *asking, const struct view *view,
                                    uint32_t *ret_head)
{
    const struct snapshot *snapshot = &asking->snapshot;
    size_t at = (size_t)(view - snapshot->views);
    assert(view >= snapshot->views && at < asking->context->shape.heads * snapshot->view_count);
    *ret_head = (uint32_t)(at / snapshot->view_count);
    return &snapshot->held[at % snapshot->view_count];
}

/* The pieces that rows row … row + count - 1 lie in. */
static uint64_t pieces_of(size_t row, size_t count)
{
    const size_t rows = FORMAT_SEGMENT_TOKENS / DERIVED_PIECES;
    size_t first = row / rows, last = (row + count - 1) / rows;
    assert(count > 0 && last < DERIVED_PIECES);
    return DERIVED_ALL_PIECES >> (DERIVED_PIECES - 1 - (last - first)) << first;
}

int context_admit(void *arg, const struct view *view, size_t row, size_t count, unsigned parts)
{
    struct asking *asking = arg;
    struct error why = { 0 };
    uint32_t head = 0;
    const struct held *held = held_view(asking, view, &head);
    if (held->values == NULL) return 0; /* a block: never unverified */
    struct value_pieces wanted = { .head = head, .kind = FORMAT_KIND_K,
                                   .pieces = pieces_of(row, count) };
    int rc = 0;
    if ((parts & VIEW_K) != 0) rc = context_prove_pieces(asking->context, held, &wanted, &why);
    wanted.kind = FORMAT_KIND_V;
    if (rc == 0 && (parts & VIEW_V) != 0)
        rc = context_prove_pieces(asking->context, held, &wanted, &why);
    return rc < 0 ? refuse(asking, rc, &why) : 0;
}

/* Have the planes of a slot made anew. */
static void doubt(struct context *context, uint32_t layer_idx, const struct held *held)
{
    pthread_mutex_lock(&context->lock);
    struct slot *slot =
        &context->layers[layer_idx].slots[held->position / FORMAT_SEGMENT_TOKENS];
    if (slot->planes == held->planes) slot->build = SLOT_DOUBTED;
    pthread_mutex_unlock(&context->lock);
    builder_wake(context->catalog->builder, context);
}

/* These pieces of lo, by their checksums, or all of it by its own. */
static bool lo_is_sound(const struct context *context, const struct held *held,
                        const struct planes *planes, uint64_t pieces, uint64_t *ret_proven)
{
    struct slice payload = { planes->lo, context->layout.lo_bytes };
    *ret_proven = pieces;
    if (pieces_are_sound(planes, DERIVED_LO, pieces, payload)) return true;
    struct derived_place place = { .segment = held->segment,
                                   .position = held->position,
                                   .model_hash = context->shape.model_hash,
                                   .heads = context->shape.heads,
                                   .layout = &context->layout };
    *ret_proven = DERIVED_ALL_PIECES;
    return derived_prove_lo(&place, planes, NULL) == 0;
}

bool context_admit_lo(void *arg, const struct view *view, size_t place)
{
    struct asking *asking = arg;
    struct context *context = asking->context;
    uint32_t head = 0;
    const struct held *held = held_view(asking, view, &head);
    struct derived_planes *planes = &held->planes[head];
    uint64_t wanted = pieces_of(place, 1), proven = 0;
    if ((atomic_load_explicit(&planes->lo_proven, memory_order_acquire) & wanted) != 0) return true;
    if (atomic_load_explicit(&planes->lo_damaged, memory_order_relaxed)) return false;
    if (lo_is_sound(context, held, &planes->planes, wanted, &proven)) {
        size_t count = (size_t)__builtin_popcountll(proven);
        CATALOG_COUNT(context->catalog, proven_bytes_total,
                      count * context->layout.lo_bytes / DERIVED_PIECES);
        atomic_fetch_or_explicit(&planes->lo_proven, proven, memory_order_release);
        return true;
    }
    /* Whoever is first sends for the builder. */
    if (!atomic_exchange(&planes->lo_damaged, true)) doubt(context, asking->layer, held);
    return false;
}

int context_answered(const struct asking *asking, int rc, struct error *err)
{
    int refused = atomic_load(&asking->refused);
    return refused == 0 ? rc : error_set(err, refused, "%s", asking->why.text);
}
