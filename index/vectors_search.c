/* SPDX-License-Identifier: Apache-2.0 */
/* vectors_search.c — a ring is scanned in pieces, each with results of its own for every query of a
 * batch, which are merged at the end: several threads read pieces, and states (or their sketches)
 * are read once for the whole batch.
 *
 * A score is the sum of two products, of the halves that are stored apart; the kernel sums a pair
 * in the same order whatever it is called with, so a result does not depend on how the ring was
 * cut.
 *
 * Guesses come from vectors_guess.c. States that are looked at again lie anywhere: some are fetched
 * while those before them are copied side by side, where the kernel takes them together.
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
#include "index/index.h"
#include "index/topk.h"
#include "index/vectors_scan.h"

enum {
    TILE = 128,            /* states that are scored together, for a batch */
    CACHE_LINE = 64,
    LOOK_STATES = 16,      /* that are looked at again together, */
    LOOK_BYTES = 16 << 10, /* if their halves fit in as much */
    WORTH = 16,            /* times rerank: fewer states are all scored exactly */
};

static void clear(const struct scanning *scanning, size_t piece, size_t query)
{
    struct result *result = &scanning->results[piece * scanning->batch + query];
    size_t at = (piece * scanning->batch + query) * GATHERED_TIMES * scanning->room;
    result->buckets = (struct bucketed){ scanning->ids + at, scanning->scores + at,
                                         scanning->args->buckets };
    gathered_clear(&result->gathered, scanning->ids + at, scanning->scores + at, scanning->room);
    if (scanning->args->buckets > 0) bucketed_clear(&result->buckets);
}

static void offer(const struct scanning *scanning, struct result *result, const float *scores,
                  size_t count, uint64_t slot)
{
    if (scanning->args->buckets > 0)
        bucketed_offer(&result->buckets, scores, count, slot);
    else
        gathered_offer(&result->gathered, scores, count, slot);
}

static const unsigned char *row_of(const void *rows, size_t stride_bytes, size_t row)
{
    return (const unsigned char *)rows + row * stride_bytes;
}

/* Queries of a batch. */
struct askers {
    size_t first, count;
};

/* States whose halves lie together. */
struct stretch {
    const unsigned char *k, *v;
    size_t k_stride_bytes, v_stride_bytes, count;
    uint32_t dtype;
};

static struct stretch stretch_from(const struct rows *rows, uint64_t position, size_t count)
{
    const struct view *view = rows_view(rows, 0, position);
    size_t row = (size_t)(position - view->position);
    return (struct stretch){ row_of(view->k, view->k_stride_bytes, row),
                             row_of(view->v, view->v_stride_bytes, row),
                             view->k_stride_bytes,
                             view->v_stride_bytes,
                             count,
                             view->dtype };
}

/* ret_products (askers, count); second: as much room */
static void multiply(const struct scanning *scanning, struct askers askers,
                     const struct stretch *stretch, float *ret_products, float *second)
{
    size_t half = scanning->args->rows.head_dim;
    struct score_args args = { .q = scanning->halves + askers.first * half,
                               .queries = askers.count,
                               .head_dim = half,
                               .k = stretch->k,
                               .k_stride_bytes = stretch->k_stride_bytes,
                               .tokens = stretch->count,
                               .dtype = stretch->dtype,
                               .scores = ret_products };
    backend_get()->score(&args);
    args.q += scanning->batch * half;
    args.k = stretch->v;
    args.k_stride_bytes = stretch->v_stride_bytes;
    args.scores = second;
    backend_get()->score(&args);
    for (size_t i = 0; i < askers.count * stretch->count; i++) ret_products[i] += second[i];
}

/* Products (queries, count) with states that lie together become scores. */
static void finish_scores(const struct scanning *scanning, uint64_t position, size_t count,
                          size_t queries, float *scores)
{
    if (scanning->args->metric == VECTORS_DOT) return;
    for (size_t done = 0, some = 0; done < count; done += some) {
        const float *squares = grown_rows(&scanning->args->vectors->squares, 0, position + done,
                                          count - done, &some);
        for (size_t q = 0; q < queries; q++) {
            float *row = scores + q * count + done;
            for (size_t i = 0; i < some; i++) row[i] = 2.0F * row[i] - squares[i];
        }
    }
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
    const struct view *view = rows_view(&scanning->args->rows, 0, position);
    uint64_t left = view->position + view->tokens - position;
    if (count > left) count = left;
    return count < TILE ? (size_t)count : TILE;
}

/* What a query of the batch sees of begin … end-1. */
static struct piece seen_by(const struct scanning *scanning, size_t q, uint64_t begin, uint64_t end)
{
    uint64_t slots = scanning->args->slots, limit = scanning->args->limits[scanning->first + q];
    uint64_t oldest = limit > slots ? limit - slots : 0;
    if (begin < oldest) begin = oldest < end ? oldest : end;
    if (end > limit) end = limit > begin ? limit : begin;
    return (struct piece){ .begin = begin, .end = end };
}

/* ---- states themselves ---- */

static void scan_states(const struct scanning *scanning, struct piece *piece,
                        struct result *results)
{
    const struct vectors_args *args = scanning->args;
    struct askers all = { 0, scanning->batch };
    _Alignas(64) float scores[VECTORS_BATCH * TILE];
    float second[VECTORS_BATCH * TILE];
    size_t count = 0;
    for (uint64_t at = piece->begin, tiles = 0; at < piece->end; at += count, tiles++) {
        if (scan_stopped(args, tiles, piece)) return;
        uint64_t position = args->listed == NULL ? at : args->listed[at];
        count = together(scanning, at, piece->end);
        struct stretch stretch = stretch_from(&args->rows, position, count);
        multiply(scanning, all, &stretch, scores, second);
        finish_scores(scanning, position, count, scanning->batch, scores);
        for (size_t q = 0; q < scanning->batch; q++) {
            struct piece seen = seen_by(scanning, q, at, at + count);
            offer(scanning, &results[q], scores + q * count + (seen.begin - at),
                  (size_t)(seen.end - seen.begin), seen.begin % args->slots);
        }
    }
}

static void scan_piece(void *arg, size_t idx)
{
    struct scanning *scanning = arg;
    for (size_t q = 0; q < scanning->batch; q++) clear(scanning, idx, q);
    struct result *results = scanning->results + idx * scanning->batch;
    if (scanning->sketched) guess_scan(scanning, &scanning->pieces[idx], results);
    else scan_states(scanning, &scanning->pieces[idx], results);
}

/* ---- results ---- */

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

/* The rows of states that are looked at soon: what waits for memory is most of what a look costs.
 */
static void fetch_soon(const struct rows *rows, const uint64_t *positions, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct stretch at = stretch_from(rows, positions[i], 1);
        size_t bytes = rows->head_dim * dtype_bytes(at.dtype);
        for (size_t b = 0; b < bytes; b += CACHE_LINE) __builtin_prefetch(at.k + b);
        for (size_t b = 0; b < bytes; b += CACHE_LINE) __builtin_prefetch(at.v + b);
    }
}

/* Exact scores of some states, which are copied side by side. */
static void score_some(const struct scanning *scanning, size_t q, const uint64_t *positions,
                       size_t count, float *ret_scores)
{
    const struct rows *rows = &scanning->args->rows;
    _Alignas(64) unsigned char k[LOOK_BYTES], v[LOOK_BYTES];
    size_t bytes = rows->head_dim * dtype_bytes(rows->views->dtype);
    float second[LOOK_STATES];
    for (size_t i = 0; i < count; i++) {
        struct stretch at = stretch_from(rows, positions[i], 1);
        memcpy(k + i * bytes, at.k, bytes);
        memcpy(v + i * bytes, at.v, bytes);
    }
    struct stretch together = { k, v, bytes, bytes, count, rows->views->dtype };
    multiply(scanning, (struct askers){ q, 1 }, &together, ret_scores, second);
    for (size_t i = 0; i < count; i++) finish_scores(scanning, positions[i], 1, 1, ret_scores + i);
}

/* Exact scores of the guesses for query q of the batch, into `top`. */
static void look_again(const struct scanning *scanning, size_t q, const struct gathered *guessed,
                       const struct topk *top)
{
    const struct rows *rows = &scanning->args->rows;
    float scores[LOOK_STATES];
    size_t most = LOOK_BYTES / (rows->head_dim * dtype_bytes(rows->views->dtype)), some = 0;
    if (most > LOOK_STATES) most = LOOK_STATES;
    fetch_soon(rows, guessed->ids, guessed->count < most ? guessed->count : most);
    for (size_t at = 0; at < guessed->count; at += some) {
        const uint64_t *positions = guessed->ids + at;
        size_t left = guessed->count - at;
        some = left < most ? left : most;
        left -= some;
        fetch_soon(rows, positions + some, left < most ? left : most);
        score_some(scanning, q, positions, some, scores);
        for (size_t i = 0; i < some; i++)
            topk_offer(top, scores[i], positions[i] % scanning->args->slots);
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
    gathered_keep(&all->gathered);
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
    size_t wanted = SCAN_PIECES_PER_THREAD * pool_threads(args->pool);
    if (wanted > SCAN_PIECES) wanted = SCAN_PIECES;
    uint64_t step = (most - begin + wanted - 1) / wanted;
    if (step < SCAN_PIECE_STATES) step = SCAN_PIECE_STATES;
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
    uint64_t pieces = rows_tokens(&args->rows) / SCAN_PIECE_STATES + 1;
    size_t batch = args->queries < VECTORS_BATCH ? args->queries : VECTORS_BATCH;
    size_t room = args->buckets > args->k ? args->buckets : args->k;
    if (room < args->rerank) room = args->rerank;
    scanning->most_pieces = pieces < SCAN_PIECES ? (size_t)pieces : SCAN_PIECES;
    size_t results = scanning->most_pieces * batch;
    size_t entries = results * GATHERED_TIMES * room;
    size_t floats = 2 * batch * args->rows.head_dim;
    scanning->halves = arena_alloc_aligned(arena, floats * sizeof(float), 64);
    scanning->ids = arena_calloc(arena, entries, sizeof *scanning->ids);
    scanning->scores = arena_calloc(arena, entries, sizeof *scanning->scores);
    scanning->results = arena_calloc(arena, results, sizeof *scanning->results);
    scanning->asked = arena_alloc_aligned(arena, sizeof *scanning->asked, 64);
    scanning->work = arena_calloc(arena, SKETCHES_CELLS, sizeof *scanning->work);
    scanning->asking = arena_alloc_aligned(
        arena, sketches_room(&args->vectors->sketches, batch) * sizeof(float), 64);
    if (scanning->halves != NULL && scanning->ids != NULL && scanning->scores != NULL &&
        scanning->results != NULL && scanning->asked != NULL &&
        scanning->work != NULL && scanning->asking != NULL)
        return 0;
    return error_set(err, MEMD_ENOMEM, "no memory to search with %zu entries", entries);
}

/* A guess is worth it where much more is seen than is looked at again. It depends on the query
 * alone: neither what is asked beside it nor what was stored later changes an answer. */
static bool is_sketched(const struct vectors_args *args, size_t query)
{
    uint64_t limit = args->limits[query], seen = limit < args->slots ? limit : args->slots;
    return args->rerank > 0 && args->vectors->sketches.dims > 0 && limit >= SKETCHES_SAMPLE &&
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
    if (!scanning->sketched) scanning->piece_count = cut(scanning);
    for (size_t i = 0; i < 2 * scanning->batch; i++) {
        size_t q = i % scanning->batch, which = i / scanning->batch;
        memcpy(scanning->halves + i * half, args->q + ((scanning->first + q) * 2 + which) * half,
               half * sizeof *scanning->halves);
    }
    if (scanning->sketched) guess_begin(scanning);
    pool_for(args->pool, scanning->piece_count, scan_piece, scanning);
    for (size_t p = 0; p < scanning->piece_count; p++) {
        const struct piece *piece = &scanning->pieces[p];
        if (piece->code != 0)
            return error_set(err, piece->code, "%s while searching states",
                             error_text(piece->code));
        *ret_states += scanning->sketched ? 0 : piece->end - piece->begin;
    }
    pool_for(args->pool, scanning->batch, finish_query, scanning);
    for (size_t q = 0; scanning->sketched && q < scanning->batch; q++)
        *ret_states += scanning->results[q].gathered.count; /* looked at again */
    return 0;
}

int vectors_search(const struct vectors_args *args, struct arena *arena, uint64_t *ret_slots,
                   float *ret_scores, uint64_t *ret_states, struct error *err)
{
    assert(args->k > 0 && (args->buckets == 0 || args->buckets >= args->k));
    assert(args->buckets == 0 || args->slots % args->buckets == 0);
    assert(args->listed == NULL || args->rerank == 0);
    assert(args->rerank == 0 || (args->buckets == 0 && args->rerank >= args->k));
    assert(args->rerank == 0 || (args->probes > 0 && args->probes <= SKETCHES_CELLS));
    struct scanning scanning = { .args = args, .ret_slots = ret_slots, .ret_scores = ret_scores };
    *ret_states = 0;
    int rc = args->queries == 0 ? 0 : reserve(&scanning, arena, err);
    for (; rc == 0 && scanning.first < args->queries; scanning.first += scanning.batch) {
        take_batch(&scanning);
        rc = search_batch(&scanning, ret_states, err);
    }
    return rc;
}
