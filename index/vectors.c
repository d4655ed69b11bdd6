/* SPDX-License-Identifier: Apache-2.0 */
/* vectors.c — a ring is scanned in pieces, each with results of its own for every query of a batch,
 * which are merged at the end: pieces can be read by several threads, and states once for the whole
 * batch.
 *
 * A score is the sum of two products, of the halves that are stored apart; the kernel sums a pair
 * in the same order whatever it is called with, so a result does not depend on how the ring was
 * cut.
 */
#include "index/vectors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/bucketed.h"
#include "index/index.h"
#include "index/topk.h"
#include "proto/limits.h"

enum {
    TILE = 128,          /* states that are scored together, for a batch */
    PIECE_STATES = 8192, /* of the ring, at least */
    PIECES = 64,         /* at most */
};

/* ---- the fold ---- */

int vectors_new(const struct fold_type *type, struct vectors **ret_vectors, struct error *err)
{
    struct vectors *vectors = calloc(1, sizeof *vectors);
    if (vectors == NULL) return error_set(err, MEMD_ENOMEM, "no memory for squares of states");
    vectors->base = (struct fold){ .type = type, .bytes = sizeof *vectors };
    grown_init(&vectors->squares, 1, sizeof(float));
    *ret_vectors = vectors;
    return 0;
}

void vectors_free(struct fold *fold)
{
    if (fold == NULL) return;
    struct vectors *vectors = (struct vectors *)(void *)fold;
    grown_fini(&vectors->squares);
    free(vectors);
}

static const unsigned char *row_of(const void *rows, size_t stride_bytes, size_t row)
{
    return (const unsigned char *)rows + row * stride_bytes;
}

/* (W) fp32 of one state. */
static void load(const struct rows *rows, uint64_t position, float *ret_state)
{
    const struct view *view = rows_view(rows, 0, position);
    size_t row = (size_t)(position - view->position), half = rows->head_dim;
    half_load(row_of(view->k, view->k_stride_bytes, row), view->dtype, half, ret_state);
    half_load(row_of(view->v, view->v_stride_bytes, row), view->dtype, half, ret_state + half);
}

static float square_of(const float *state, size_t width)
{
    double sum = 0.0;
    for (size_t i = 0; i < width; i++) sum += (double)state[i] * (double)state[i];
    return (float)sum;
}

int vectors_advance(struct vectors *vectors, const struct fold_source *source, uint64_t end,
                    struct error *err)
{
    float state[2 * LIMIT_HEAD_DIM];
    uint64_t *tokens = &vectors->base.tokens;
    int rc = grown_reserve(&vectors->squares, end, err);
    while (rc == 0 && *tokens < end) {
        size_t some = 0;
        float *squares = grown_rows(&vectors->squares, 0, *tokens, (size_t)(end - *tokens), &some);
        for (size_t i = 0; i < some; i++) {
            load(&source->rows, *tokens + i, state);
            squares[i] = square_of(state, 2 * source->rows.head_dim);
        }
        *tokens += some;
        rc = source->stop == NULL ? 0 : source->stop(source->stop_arg);
        if (rc != 0) error_set(err, rc, "%s while states are folded", error_text(rc));
    }
    vectors->base.bytes = sizeof *vectors + grown_bytes(&vectors->squares);
    return rc;
}

/* ---- states ---- */

uint64_t vectors_position(uint64_t slots, uint64_t written, uint64_t slot)
{
    assert(slot < slots);
    if (slot >= written) return INDEX_NONE;
    return slot + (written - 1 - slot) / slots * slots;
}

void vectors_load(const struct rows *rows, const uint64_t *positions, size_t count,
                  float *ret_states)
{
    size_t width = 2 * rows->head_dim;
    for (size_t i = 0; i < count; i++) {
        if (positions[i] == INDEX_NONE)
            memset(ret_states + i * width, 0, width * sizeof(float));
        else
            load(rows, positions[i], ret_states + i * width);
    }
}

void vectors_products(const float *q, const float *rows, size_t count, size_t width,
                      float *ret_products)
{
    float some[TILE];
    memset(ret_products, 0, count * sizeof *ret_products);
    for (size_t from = 0; from < width; from += LIMIT_HEAD_DIM) {
        size_t dims = width - from < LIMIT_HEAD_DIM ? width - from : LIMIT_HEAD_DIM;
        for (size_t begin = 0; begin < count; begin += TILE) {
            size_t part = count - begin < TILE ? count - begin : TILE;
            backend_get()->score(&(struct score_args){ .q = q + from,
                                                       .queries = 1,
                                                       .head_dim = dims,
                                                       .k = rows + begin * width + from,
                                                       .k_stride_bytes = width * sizeof *rows,
                                                       .tokens = part,
                                                       .dtype = DTYPE_FP32,
                                                       .scores = some });
            for (size_t i = 0; i < part; i++) ret_products[begin + i] += some[i];
        }
    }
}

/* ---- search ---- */

struct piece {
    uint64_t begin, end; /* positions */
    int code;
};

struct scanning {
    const struct vectors_args *args;
    size_t first, batch; /* queries of the batch */
    size_t room;         /* entries of a result: k, or the buckets */
    float *halves;       /* (2, batch, W/2) */
    uint64_t *ids;       /* (pieces, batch, room) slots */
    float *scores;       /* (pieces, batch, room) */
    struct piece pieces[PIECES];
};

static struct bucketed result_of(const struct scanning *scanning, size_t piece, size_t query)
{
    size_t at = (piece * scanning->batch + query) * scanning->room;
    return (struct bucketed){ scanning->ids + at, scanning->scores + at, scanning->room };
}

static void offer(const struct scanning *scanning, const struct bucketed *result,
                  const float *scores, size_t count, uint64_t slot)
{
    if (scanning->args->buckets > 0) {
        bucketed_offer(result, scores, count, slot);
        return;
    }
    struct topk top = { result->ids, result->scores, result->buckets };
    for (size_t i = 0; i < count; i++) topk_offer(&top, scores[i], slot + i);
}

/* Scores of the states from `position` on, which lie together. ret_scores (batch, count) */
static void score_tile(const struct scanning *scanning, uint64_t position, size_t count,
                       float *ret_scores)
{
    const struct rows *rows = &scanning->args->rows;
    const struct view *view = rows_view(rows, 0, position);
    size_t row = (size_t)(position - view->position), half = rows->head_dim;
    float second[VECTORS_BATCH * TILE];
    struct score_args args = { .q = scanning->halves,
                               .queries = scanning->batch,
                               .head_dim = half,
                               .k = row_of(view->k, view->k_stride_bytes, row),
                               .k_stride_bytes = view->k_stride_bytes,
                               .tokens = count,
                               .dtype = view->dtype,
                               .scores = ret_scores };
    backend_get()->score(&args);
    args.q += scanning->batch * half;
    args.k = row_of(view->v, view->v_stride_bytes, row);
    args.k_stride_bytes = view->v_stride_bytes;
    args.scores = second;
    backend_get()->score(&args);
    for (size_t i = 0; i < scanning->batch * count; i++) ret_scores[i] += second[i];
    if (scanning->args->metric == VECTORS_DOT) return;
    for (size_t done = 0, some = 0; done < count; done += some) {
        const float *squares = grown_rows(&scanning->args->vectors->squares, 0, position + done,
                                          count - done, &some);
        for (size_t q = 0; q < scanning->batch; q++)
            for (size_t i = 0; i < some; i++) {
                float *score = ret_scores + q * count + done + i;
                *score = 2.0F * *score - squares[i];
            }
    }
}

/* How far states from `position` on lie together, in memory and in the ring. */
static size_t together(const struct scanning *scanning, uint64_t position, uint64_t end)
{
    const struct view *view = rows_view(&scanning->args->rows, 0, position);
    uint64_t slots = scanning->args->slots, count = view->position + view->tokens - position;
    if (count > end - position) count = end - position;
    if (count > slots - position % slots) count = slots - position % slots;
    return count < TILE ? (size_t)count : TILE;
}

static void scan_piece(void *arg, size_t idx)
{
    struct scanning *scanning = arg;
    const struct vectors_args *args = scanning->args;
    struct piece *piece = &scanning->pieces[idx];
    float scores[VECTORS_BATCH * TILE];
    for (size_t q = 0; q < scanning->batch; q++) {
        struct bucketed result = result_of(scanning, idx, q);
        bucketed_clear(&result); /* an empty heap looks the same */
    }
    for (uint64_t at = piece->begin, tiles = 0; at < piece->end; tiles++) {
        if (tiles % 16 == 0 && args->stop != NULL) piece->code = args->stop(args->stop_arg);
        if (piece->code != 0) return;
        size_t count = together(scanning, at, piece->end);
        score_tile(scanning, at, count, scores);
        for (size_t q = 0; q < scanning->batch; q++) {
            uint64_t limit = args->limits[scanning->first + q], begin = at, end = at + count;
            uint64_t oldest = limit > args->slots ? limit - args->slots : 0;
            if (begin < oldest) begin = oldest < end ? oldest : end;
            if (end > limit) end = limit > begin ? limit : begin;
            struct bucketed result = result_of(scanning, idx, q);
            offer(scanning, &result, scores + q * count + (begin - at), (size_t)(end - begin),
                  begin % args->slots);
        }
        at += count;
    }
}

/* What the pieces found, and slots that nothing was written to, become the best k. */
static void merge(const struct scanning *scanning, size_t pieces, size_t q, const struct topk *top)
{
    const struct vectors_args *args = scanning->args;
    struct bucketed all = result_of(scanning, 0, q);
    for (size_t p = 1; p < pieces; p++) {
        struct bucketed part = result_of(scanning, p, q);
        for (size_t i = 0; i < part.buckets; i++)
            if (part.ids[i] != INDEX_NONE) offer(scanning, &all, part.scores + i, 1, part.ids[i]);
    }
    uint64_t written = args->limits[scanning->first + q];
    for (size_t i = 0; i < scanning->room && written + i < args->slots; i++) {
        float unwritten = VECTORS_UNWRITTEN;
        offer(scanning, &all, &unwritten, 1, written + i);
    }
    bucketed_best(&all, top);
}

/* Cut what any query of the batch sees into pieces; how many. */
static size_t cut(struct scanning *scanning)
{
    const struct vectors_args *args = scanning->args;
    uint64_t least = UINT64_MAX, most = 0;
    for (size_t q = 0; q < scanning->batch; q++) {
        uint64_t limit = args->limits[scanning->first + q];
        if (limit < least) least = limit;
        if (limit > most) most = limit;
    }
    uint64_t begin = least > args->slots ? least - args->slots : 0;
    uint64_t step = (most - begin + PIECES - 1) / PIECES;
    if (step < PIECE_STATES) step = PIECE_STATES;
    size_t count = 0;
    for (uint64_t at = begin; at < most; at += step)
        scanning->pieces[count++] = (struct piece){ .begin = at,
                                                    .end = most - at < step ? most : at + step };
    if (count == 0) scanning->pieces[count++] = (struct piece){ 0 };
    return count;
}

/* For all batches, one after the other. */
static int reserve(struct scanning *scanning, struct arena *arena, struct error *err)
{
    const struct vectors_args *args = scanning->args;
    uint64_t pieces = rows_tokens(&args->rows) / PIECE_STATES + 1;
    size_t batch = args->queries < VECTORS_BATCH ? args->queries : VECTORS_BATCH;
    size_t entries = (pieces < PIECES ? (size_t)pieces : PIECES) * batch * scanning->room;
    size_t floats = 2 * batch * args->rows.head_dim;
    scanning->halves = arena_alloc_aligned(arena, floats * sizeof(float), 64);
    scanning->ids = arena_calloc(arena, entries, sizeof *scanning->ids);
    scanning->scores = arena_calloc(arena, entries, sizeof *scanning->scores);
    if (scanning->halves != NULL && scanning->ids != NULL && scanning->scores != NULL) return 0;
    return error_set(err, MEMD_ENOMEM, "no memory to search with %zu entries", entries);
}

static int search_batch(struct scanning *scanning, uint64_t *ret_slots, float *ret_scores,
                        uint64_t *ret_states, struct error *err)
{
    const struct vectors_args *args = scanning->args;
    size_t half = args->rows.head_dim, pieces = cut(scanning);
    for (size_t i = 0; i < 2 * scanning->batch; i++) {
        size_t q = i % scanning->batch, which = i / scanning->batch;
        memcpy(scanning->halves + i * half, args->q + ((scanning->first + q) * 2 + which) * half,
               half * sizeof *scanning->halves);
    }
    pool_for(args->pool, pieces, scan_piece, scanning);
    for (size_t p = 0; p < pieces; p++) {
        if (scanning->pieces[p].code != 0)
            return error_set(err, scanning->pieces[p].code, "%s while searching states",
                             error_text(scanning->pieces[p].code));
        *ret_states += scanning->pieces[p].end - scanning->pieces[p].begin;
    }
    for (size_t q = 0; q < scanning->batch; q++) {
        size_t at = (scanning->first + q) * args->k;
        merge(scanning, pieces, q, &(struct topk){ ret_slots + at, ret_scores + at, args->k });
    }
    return 0;
}

int vectors_search(const struct vectors_args *args, struct arena *arena, uint64_t *ret_slots,
                   float *ret_scores, uint64_t *ret_states, struct error *err)
{
    assert(args->k > 0 && (args->buckets == 0 || args->buckets >= args->k));
    assert(args->buckets == 0 || args->slots % args->buckets == 0);
    struct scanning scanning = { .args = args,
                                 .room = args->buckets > 0 ? args->buckets : args->k };
    *ret_states = 0;
    int rc = args->queries == 0 ? 0 : reserve(&scanning, arena, err);
    for (; rc == 0 && scanning.first < args->queries; scanning.first += VECTORS_BATCH) {
        size_t left = args->queries - scanning.first;
        scanning.batch = left < VECTORS_BATCH ? left : VECTORS_BATCH;
        rc = search_batch(&scanning, ret_slots, ret_scores, ret_states, err);
    }
    return rc;
}
