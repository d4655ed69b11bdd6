/* SPDX-License-Identifier: Apache-2.0 */
/* vectors_search.c — a ring is scanned in pieces, each with results of its own for every query of a
 * batch, which are merged at the end: several threads read pieces, and states (or their sketches)
 * are read once for the whole batch.
 *
 * A score is the sum of two products, of the halves that are stored apart; the kernel sums a pair
 * in the same order whatever it is called with, so a result does not depend on how the ring was
 * cut.
 */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/bucketed.h"
#include "index/index.h"
#include "index/topk.h"
#include "index/vectors.h"

enum {
    TILE = 128,            /* states that are scored together, for a batch */
    PIECE_STATES = 8192,   /* of the ring, at least */
    PIECES = 64,           /* at most */
    PIECES_PER_THREAD = 2, /* more would cost more results to merge */
    AHEAD = 4,             /* states that are fetched before they are looked at */
    CACHE_LINE = 64,
    LOOK = 16, /* scores that are compared with the worst at once */
    WORTH = 4, /* times rerank: fewer states are all scored exactly */
};

struct piece {
    uint64_t begin, end; /* positions; of a listed ring, slots */
    int code;
};

struct result;

struct scanning {
    const struct vectors_args *args;
    size_t first, batch; /* queries of the batch */
    size_t room;         /* entries of a result: k, the buckets, or rerank */
    bool sketched;       /* this batch: guesses are scanned, and room is rerank */
    struct sketches_queries *asked;
    float *halves; /* (2, batch, W/2) */
    uint64_t *ids; /* (pieces, batch, 2 room) slots */
    float *scores; /* (pieces, batch, 2 room) */
    struct result *results; /* (pieces, batch) */
    struct piece pieces[PIECES];
    size_t piece_count;
    uint64_t *ret_slots; /* (n, k) */
    float *ret_scores;   /* (n, k) */
};

/* The best of a stream, unordered: those that may be among them are collected, and as soon as there
 * are twice as many as are wanted the worse half is thrown away. A heap of hundreds costs more. */
struct gathered {
    uint64_t *ids; /* (2 room) */
    float *scores; /* (2 room) */
    size_t count, room;
    float least; /* worse than this need not be collected */
};

static void keep_best(struct gathered *gathered)
{
    if (gathered->count <= gathered->room) return;
    struct topk all = { gathered->ids, gathered->scores, gathered->count };
    topk_select(&all, gathered->room);
    gathered->count = gathered->room;
    gathered->least = gathered->scores[0];
    for (size_t i = 1; i < gathered->count; i++)
        if (gathered->scores[i] < gathered->least) gathered->least = gathered->scores[i];
}

/* A block of scores none of which would be collected is passed over at once. */
static void gather(struct gathered *gathered, const float *scores, size_t count, uint64_t slot)
{
    for (size_t at = 0; at < count; at += LOOK) {
        size_t some = count - at < LOOK ? count - at : LOOK;
        int any = 0;
        for (size_t i = 0; i < some; i++) any |= scores[at + i] >= gathered->least;
        if (any == 0) continue;
        for (size_t i = at; i < at + some; i++) {
            if (scores[i] < gathered->least) continue;
            gathered->ids[gathered->count] = slot + i;
            gathered->scores[gathered->count++] = scores[i];
            if (gathered->count == 2 * gathered->room) keep_best(gathered);
        }
    }
}

/* What a piece finds for a query of the batch. */
struct result {
    struct bucketed buckets; /* one of the two */
    struct gathered gathered;
};

static void clear(const struct scanning *scanning, size_t piece, size_t query)
{
    struct result *result = &scanning->results[piece * scanning->batch + query];
    size_t at = (piece * scanning->batch + query) * 2 * scanning->room;
    *result = (struct result){
        .buckets = { scanning->ids + at, scanning->scores + at, scanning->args->buckets },
        .gathered = { scanning->ids + at, scanning->scores + at, 0, scanning->room, -INFINITY }
    };
    if (scanning->args->buckets > 0) bucketed_clear(&result->buckets);
}

static void offer(const struct scanning *scanning, struct result *result, const float *scores,
                  size_t count, uint64_t slot)
{
    if (scanning->args->buckets > 0)
        bucketed_offer(&result->buckets, scores, count, slot);
    else
        gather(&result->gathered, scores, count, slot);
}

static const unsigned char *row_of(const void *rows, size_t stride_bytes, size_t row)
{
    return (const unsigned char *)rows + row * stride_bytes;
}

/* Queries of a batch. */
struct askers {
    size_t first, count;
};

/* Products with states that lie together. ret_products (askers, count); second: as much room */
static void multiply(const struct scanning *scanning, struct askers askers, uint64_t position,
                     size_t count, float *ret_products, float *second)
{
    const struct rows *rows = &scanning->args->rows;
    const struct view *view = rows_view(rows, 0, position);
    size_t row = (size_t)(position - view->position), half = rows->head_dim;
    struct score_args args = { .q = scanning->halves + askers.first * half,
                               .queries = askers.count,
                               .head_dim = half,
                               .k = row_of(view->k, view->k_stride_bytes, row),
                               .k_stride_bytes = view->k_stride_bytes,
                               .tokens = count,
                               .dtype = view->dtype,
                               .scores = ret_products };
    backend_get()->score(&args);
    args.q += scanning->batch * half;
    args.k = row_of(view->v, view->v_stride_bytes, row);
    args.k_stride_bytes = view->v_stride_bytes;
    args.scores = second;
    backend_get()->score(&args);
    for (size_t i = 0; i < askers.count * count; i++) ret_products[i] += second[i];
}

/* Products with states that lie together, or guesses of them, become scores. (queries, stride) */
static void finish_scores(const struct scanning *scanning, uint64_t position, size_t count,
                          float *scores, size_t stride, size_t queries)
{
    if (scanning->args->metric == VECTORS_DOT) return;
    for (size_t done = 0, some = 0; done < count; done += some) {
        const float *squares = grown_rows(&scanning->args->vectors->squares, 0, position + done,
                                          count - done, &some);
        for (size_t q = 0; q < queries; q++) {
            float *row = scores + q * stride + done;
            for (size_t i = 0; i < some; i++) row[i] = 2.0F * row[i] - squares[i];
        }
    }
}

/* Guesses (batch, SKETCHES_TILE) become scores, those of `count` states from `position` on. */
static void finish_guesses(const struct scanning *scanning, uint64_t position, size_t count,
                           float *scores)
{
    const struct vectors *vectors = scanning->args->vectors;
    bool squared = scanning->args->metric == VECTORS_L2;
    float factor = squared ? 2.0F : 1.0F, terms[SKETCHES_TILE];
    size_t some = 0;
    const float *biases = sketches_biases(&vectors->sketches, position);
    const float *squares = grown_rows(&vectors->squares, 0, position, count, &some);
    for (size_t i = 0; i < count; i++)
        terms[i] = squared ? 2.0F * biases[i] - squares[i] : biases[i];
    for (size_t q = 0; q < scanning->batch; q++)
        for (size_t i = 0; i < count; i++)
            scores[q * SKETCHES_TILE + i] = factor * scores[q * SKETCHES_TILE + i] + terms[i];
}

/* How many of a listed ring's slots at … hold neighbours, at most `count`. */
static uint64_t neighbours_from(const uint64_t *listed, uint64_t at, uint64_t count)
{
    uint64_t some = 1;
    if (count > TILE) count = TILE;
    while (some < count && listed[at + some] == listed[at] + some) some++;
    return some;
}

/* How far what is scanned from `at` on lies together, in memory and in the ring. */
static size_t together(const struct scanning *scanning, uint64_t at, uint64_t end)
{
    const uint64_t *listed = scanning->args->listed;
    uint64_t slots = scanning->args->slots, count = end - at;
    uint64_t position = listed == NULL ? at : listed[at];
    if (listed != NULL) count = neighbours_from(listed, at, count);
    if (count > slots - at % slots) count = slots - at % slots;
    if (scanning->sketched) {
        uint64_t left = SKETCHES_TILE - position % SKETCHES_TILE;
        return (size_t)(count < left ? count : left);
    }
    const struct view *view = rows_view(&scanning->args->rows, 0, position);
    uint64_t left = view->position + view->tokens - position;
    if (count > left) count = left;
    return count < TILE ? (size_t)count : TILE;
}

/* What one tile gives: scores (batch, stride) of `count` states. */
struct tile {
    _Alignas(64) float room[VECTORS_BATCH * TILE];
    float second[VECTORS_BATCH * TILE];
    float *scores;
    size_t count, stride;
};

static void scan_tile(const struct scanning *scanning, uint64_t at, uint64_t end, struct tile *tile)
{
    const uint64_t *listed = scanning->args->listed;
    uint64_t position = listed == NULL ? at : listed[at];
    tile->count = together(scanning, at, end);
    tile->stride = scanning->sketched ? SKETCHES_TILE : tile->count;
    tile->scores = tile->room;
    if (!scanning->sketched) {
        struct askers all = { 0, scanning->batch };
        multiply(scanning, all, position, tile->count, tile->room, tile->second);
        finish_scores(scanning, position, tile->count, tile->scores, tile->stride, scanning->batch);
        return;
    }
    sketches_products(&scanning->args->vectors->sketches, scanning->asked, at / SKETCHES_TILE,
                      tile->room);
    tile->scores += at % SKETCHES_TILE;
    finish_guesses(scanning, at, tile->count, tile->scores);
}

static void scan_piece(void *arg, size_t idx)
{
    struct scanning *scanning = arg;
    const struct vectors_args *args = scanning->args;
    struct piece *piece = &scanning->pieces[idx];
    struct tile tile;
    for (size_t q = 0; q < scanning->batch; q++) clear(scanning, idx, q);
    for (uint64_t at = piece->begin, tiles = 0; at < piece->end; tiles++) {
        if (tiles % 16 == 0 && args->stop != NULL) piece->code = args->stop(args->stop_arg);
        if (piece->code != 0) return;
        scan_tile(scanning, at, piece->end, &tile);
        for (size_t q = 0; q < scanning->batch; q++) {
            uint64_t limit = args->limits[scanning->first + q], begin = at, end = at + tile.count;
            uint64_t oldest = limit > args->slots ? limit - args->slots : 0;
            if (begin < oldest) begin = oldest < end ? oldest : end;
            if (end > limit) end = limit > begin ? limit : begin;
            struct result *result = &scanning->results[idx * scanning->batch + q];
            offer(scanning, result, tile.scores + q * tile.stride + (begin - at),
                  (size_t)(end - begin), begin % args->slots);
        }
        at += tile.count;
    }
}

/* What the pieces found for a query, in the result of the first. */
static struct result *merge(const struct scanning *scanning, size_t q)
{
    struct result *all = &scanning->results[q];
    for (size_t p = 1; p < scanning->piece_count; p++) {
        const struct result *part = &scanning->results[p * scanning->batch + q];
        size_t count = scanning->args->buckets > 0 ? part->buckets.buckets : part->gathered.count;
        for (size_t i = 0; i < count; i++)
            if (part->buckets.ids[i] != INDEX_NONE)
                offer(scanning, all, part->buckets.scores + i, 1, part->buckets.ids[i]);
    }
    return all;
}

/* Slots that nothing was written to are found last. */
static void offer_unwritten(const struct scanning *scanning, size_t q, struct result *all)
{
    const struct vectors_args *args = scanning->args;
    uint64_t written = args->limits[scanning->first + q];
    for (size_t i = 0; i < scanning->room && written + i < args->slots; i++) {
        float unwritten = VECTORS_UNWRITTEN;
        offer(scanning, all, &unwritten, 1, written + i);
    }
}

/* The rows of a state that is looked at soon: what waits for memory is most of what a look costs.
 * */
static void fetch_soon(const struct rows *rows, uint64_t position)
{
    const struct view *view = rows_view(rows, 0, position);
    size_t row = (size_t)(position - view->position);
    size_t bytes = rows->head_dim * dtype_bytes(view->dtype);
    const unsigned char *k = row_of(view->k, view->k_stride_bytes, row);
    const unsigned char *v = row_of(view->v, view->v_stride_bytes, row);
    for (size_t i = 0; i < bytes; i += CACHE_LINE) {
        __builtin_prefetch(k + i);
        __builtin_prefetch(v + i);
    }
}

/* Exact scores of the guesses for query q of the batch, into `top`. */
static void look_again(const struct scanning *scanning, size_t q, const struct gathered *guessed,
                       const struct topk *top)
{
    const struct vectors_args *args = scanning->args;
    uint64_t limit = args->limits[scanning->first + q];
    for (size_t i = 0; i < guessed->count + AHEAD; i++) {
        if (i < guessed->count)
            fetch_soon(&args->rows, vectors_position(args->slots, limit, guessed->ids[i]));
        if (i < AHEAD) continue;
        float score, second;
        uint64_t slot = guessed->ids[i - AHEAD];
        uint64_t position = vectors_position(args->slots, limit, slot);
        multiply(scanning, (struct askers){ q, 1 }, position, 1, &score, &second);
        finish_scores(scanning, position, 1, &score, 1, 1);
        topk_offer(top, score, slot);
    }
}

/* The result of one query of the batch. */
static void finish_query(void *arg, size_t q)
{
    struct scanning *scanning = arg;
    const struct vectors_args *args = scanning->args;
    size_t at = (scanning->first + q) * args->k;
    struct topk top = { scanning->ret_slots + at, scanning->ret_scores + at, args->k };
    struct result *all = merge(scanning, q);
    if (!scanning->sketched) offer_unwritten(scanning, q, all);
    if (args->buckets > 0) {
        bucketed_best(&all->buckets, &top);
        return;
    }
    keep_best(&all->gathered);
    topk_clear(&top);
    if (scanning->sketched) look_again(scanning, q, &all->gathered, &top);
    for (size_t i = 0; !scanning->sketched && i < all->gathered.count; i++)
        topk_offer(&top, all->gathered.scores[i], all->gathered.ids[i]);
    topk_sort(&top);
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
    size_t wanted = PIECES_PER_THREAD * pool_threads(args->pool);
    if (wanted > PIECES) wanted = PIECES;
    uint64_t step = (most - begin + wanted - 1) / wanted;
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
    size_t room = args->buckets > args->k ? args->buckets : args->k;
    if (room < args->rerank) room = args->rerank;
    size_t results = (pieces < PIECES ? (size_t)pieces : PIECES) * batch;
    size_t entries = results * 2 * room;
    size_t floats = 2 * batch * args->rows.head_dim;
    scanning->halves = arena_alloc_aligned(arena, floats * sizeof(float), 64);
    scanning->ids = arena_calloc(arena, entries, sizeof *scanning->ids);
    scanning->scores = arena_calloc(arena, entries, sizeof *scanning->scores);
    scanning->results = arena_calloc(arena, results, sizeof *scanning->results);
    scanning->asked = arena_alloc_aligned(arena, sizeof *scanning->asked, 64);
    if (scanning->halves != NULL && scanning->ids != NULL && scanning->scores != NULL &&
        scanning->results != NULL && scanning->asked != NULL)
        return 0;
    return error_set(err, MEMD_ENOMEM, "no memory to search with %zu entries", entries);
}

/* A guess is worth it where much more is seen than is looked at again. It depends on the query
 * alone: neither what is asked beside it nor what was stored later changes an answer. */
static bool is_sketched(const struct vectors_args *args, size_t query)
{
    uint64_t limit = args->limits[query], seen = limit < args->slots ? limit : args->slots;
    return args->rerank > 0 && args->vectors->sketches.dims > 0 && limit >= SKETCHES_MEAN &&
           seen > WORTH * args->rerank;
}

/* Queries of one kind from `first` on. */
static void take_batch(struct scanning *scanning)
{
    const struct vectors_args *args = scanning->args;
    size_t left = args->queries - scanning->first, count = 1;
    scanning->sketched = is_sketched(args, scanning->first);
    while (count < left && count < VECTORS_BATCH &&
           is_sketched(args, scanning->first + count) == scanning->sketched)
        count++;
    scanning->batch = count;
    scanning->room = args->buckets > 0 ? args->buckets : args->k;
    if (scanning->sketched) scanning->room = args->rerank;
}

static int search_batch(struct scanning *scanning, uint64_t *ret_states, struct error *err)
{
    const struct vectors_args *args = scanning->args;
    size_t half = args->rows.head_dim;
    scanning->piece_count = cut(scanning);
    for (size_t i = 0; i < 2 * scanning->batch; i++) {
        size_t q = i % scanning->batch, which = i / scanning->batch;
        memcpy(scanning->halves + i * half, args->q + ((scanning->first + q) * 2 + which) * half,
               half * sizeof *scanning->halves);
    }
    if (scanning->sketched)
        sketches_ask(&args->vectors->sketches, args->q + scanning->first * 2 * half,
                     scanning->batch, scanning->asked);
    pool_for(args->pool, scanning->piece_count, scan_piece, scanning);
    for (size_t p = 0; p < scanning->piece_count; p++) {
        const struct piece *piece = &scanning->pieces[p];
        if (piece->code != 0)
            return error_set(err, piece->code, "%s while searching states",
                             error_text(piece->code));
        *ret_states += scanning->sketched ? 0 : piece->end - piece->begin;
    }
    if (scanning->sketched) *ret_states += scanning->batch * args->rerank;
    pool_for(args->pool, scanning->batch, finish_query, scanning);
    return 0;
}

int vectors_search(const struct vectors_args *args, struct arena *arena, uint64_t *ret_slots,
                   float *ret_scores, uint64_t *ret_states, struct error *err)
{
    assert(args->k > 0 && (args->buckets == 0 || args->buckets >= args->k));
    assert(args->buckets == 0 || args->slots % args->buckets == 0);
    assert(args->listed == NULL || args->rerank == 0);
    assert(args->rerank == 0 || (args->buckets == 0 && args->rerank >= args->k));
    struct scanning scanning = { .args = args, .ret_slots = ret_slots, .ret_scores = ret_scores };
    *ret_states = 0;
    int rc = args->queries == 0 ? 0 : reserve(&scanning, arena, err);
    for (; rc == 0 && scanning.first < args->queries; scanning.first += scanning.batch) {
        take_batch(&scanning);
        rc = search_batch(&scanning, ret_states, err);
    }
    return rc;
}
