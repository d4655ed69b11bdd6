/* SPDX-License-Identifier: Apache-2.0 */
/* vectors_guess.c — a ring is looked through by its sketches: cell after cell, for those queries of
 * a batch that look into it, of the tiles that hold something that one of them sees.
 *
 * Work is counted in tiles, so that pieces are about as long whatever cells hold. Pieces tell one
 * another how good the worst guess is that is still wanted (`floors`): every piece would else begin
 * with collecting what is passed over in the end. What is found does not depend on it
 * (gathered.h), nor on what is asked beside a query: each has its own cells and its own limit.
 */
#include "index/vectors_scan.h"

#include <math.h>
#include <string.h>

#include "base/pool.h"
#include "index/backend.h"

enum { LEAST_TILES = 32 }; /* of a piece */

/* Positions that a query of the batch sees. */
struct seen {
    uint64_t oldest, limit;
};

static struct seen seen_by(const struct scanning *scanning, size_t q)
{
    uint64_t slots = scanning->args->slots, limit = scanning->args->limits[scanning->first + q];
    return (struct seen){ limit > slots ? limit - slots : 0, limit };
}

/* ---- what there is to do ---- */

static void add_cell(struct scanning *scanning, size_t cell, unsigned askers, uint64_t *tiles)
{
    const struct sketches *sketches = &scanning->args->vectors->sketches;
    struct seen all = { UINT64_MAX, 0 };
    for (unsigned bits = askers; bits != 0; bits &= bits - 1) {
        struct seen seen = seen_by(scanning, (size_t)__builtin_ctz(bits));
        if (seen.oldest < all.oldest) all.oldest = seen.oldest;
        if (seen.limit > all.limit) all.limit = seen.limit;
    }
    uint64_t first = sketches_before(sketches, cell, all.oldest);
    uint64_t end = sketches_before(sketches, cell, all.limit);
    if (first == end) return;
    struct guess_cell *work = &scanning->work[scanning->work_count++];
    *work = (struct guess_cell){ .askers = askers, .cell = cell, .begin = *tiles };
    work->first = first / SKETCHES_TILE;
    work->tiles = (size_t)((end + SKETCHES_TILE - 1) / SKETCHES_TILE - work->first);
    *tiles += work->tiles;
}

/* A query whose cells hold fewer states that it sees than are to be looked at again looks into all:
 * what it asks for has left the ring, or was never there, and what is nearest may lie anywhere. */
static void widen(struct scanning *scanning, size_t q)
{
    const struct vectors_args *args = scanning->args;
    const struct sketches *sketches = &args->vectors->sketches;
    struct seen seen = seen_by(scanning, q);
    uint64_t count = 0;
    for (size_t c = 0; c < SKETCHES_CELLS && count < args->rerank; c++)
        if ((scanning->askers[c] >> q & 1) != 0)
            count += sketches_before(sketches, c, seen.limit) -
                     sketches_before(sketches, c, seen.oldest);
    if (count >= args->rerank) return;
    for (size_t c = 0; c < SKETCHES_CELLS; c++)
        scanning->askers[c] |= (uint16_t)(1U << q);
}

static void cut(struct scanning *scanning, uint64_t tiles)
{
    size_t wanted = SCAN_PIECES_PER_THREAD * pool_threads(scanning->args->pool);
    if (wanted > scanning->most_pieces) wanted = scanning->most_pieces;
    uint64_t step = (tiles + wanted - 1) / wanted;
    if (step < LEAST_TILES) step = LEAST_TILES;
    scanning->piece_count = 0;
    for (uint64_t at = 0; at < tiles || at == 0; at += step)
        scanning->pieces[scanning->piece_count++] =
            (struct piece){ .begin = at, .end = tiles - at < step ? tiles : at + step };
}

void guess_begin(struct scanning *scanning)
{
    const struct vectors_args *args = scanning->args;
    uint64_t tiles = 0;
    const struct sketches *sketches = &args->vectors->sketches;
    const float *nearness = sketches_ask(sketches, args->q + scanning->first * sketches->width,
                                         scanning->batch, scanning->asking, scanning->asked);
    sketches_probe(sketches, nearness, scanning->batch, args->probes, args->metric == VECTORS_DOT,
                   scanning->askers);
    for (size_t q = 0; q < scanning->batch; q++) widen(scanning, q);
    scanning->work_count = 0;
    for (size_t c = 0; c < SKETCHES_CELLS; c++)
        if (scanning->askers[c] != 0)
            add_cell(scanning, c, scanning->askers[c], &tiles);
    for (size_t q = 0; q < scanning->batch; q++) atomic_init(&scanning->floors[q], -INFINITY);
    cut(scanning, tiles);
}

/* ---- scanning ---- */

/* A cell and its askers: which queries they are, and what each sees of it. */
struct looking {
    struct sketches_queries queries;
    size_t of[VECTORS_BATCH];                    /* number in the batch */
    uint64_t begin[VECTORS_BATCH], end[VECTORS_BATCH]; /* entries of the cell */
};

static void look_into(const struct scanning *scanning, const struct guess_cell *work,
                      struct looking *looking)
{
    const struct sketches *sketches = &scanning->args->vectors->sketches;
    sketches_choose(sketches, scanning->asked, work->askers, &looking->queries);
    size_t m = 0;
    for (unsigned bits = work->askers; bits != 0; bits &= bits - 1, m++) {
        looking->of[m] = (size_t)__builtin_ctz(bits);
        struct seen seen = seen_by(scanning, looking->of[m]);
        looking->begin[m] = sketches_before(sketches, work->cell, seen.oldest);
        looking->end[m] = sketches_before(sketches, work->cell, seen.limit);
    }
}

/* Bits of the entries begin … end-1 of a cell in the tile that starts with entry `at`. */
static uint64_t bits_between(uint64_t at, uint64_t begin, uint64_t end)
{
    uint64_t from = begin > at ? begin - at : 0, to = end > at ? end - at : 0;
    if (from >= SKETCHES_TILE || to <= from) return 0;
    uint64_t below = to >= SKETCHES_TILE ? ~(uint64_t)0 : ((uint64_t)1 << to) - 1;
    return below & ~(uint64_t)0 << from;
}

static void raise_floor(_Atomic float *to, float least)
{
    float before = atomic_load_explicit(to, memory_order_relaxed);
    while (before < least &&
           !atomic_compare_exchange_weak_explicit(to, &before, least, memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

/* Guesses (queries, SKETCHES_TILE) of the tile's products become what ranks states as their scores
 * do, and the best are collected. */
static void collect(struct scanning *scanning, const struct looking *looking, uint64_t at,
                    const struct sketches_tile *tile, float *guesses, struct result *results)
{
    float extra[SKETCHES_TILE], least[VECTORS_BATCH];
    uint64_t above[VECTORS_BATCH];
    float factor = scanning->args->metric == VECTORS_L2 ? 0.5F : 0.0F;
    for (size_t i = 0; i < SKETCHES_TILE; i++)
        extra[i] = tile->biases[i] - factor * tile->squares[i];
    for (size_t m = 0; m < looking->queries.count; m++) {
        struct gathered *gathered = &results[looking->of[m]].gathered;
        gathered_raise(gathered, atomic_load_explicit(&scanning->floors[looking->of[m]],
                                                      memory_order_relaxed));
        least[m] = gathered->least;
    }
    plane_backend_get()->above(&(struct plane_above_args){
        guesses, extra, least, looking->queries.count, above });
    for (size_t m = 0; m < looking->queries.count; m++) {
        if (above[m] == 0) continue;
        struct gathered *gathered = &results[looking->of[m]].gathered;
        gathered_take(gathered, guesses + m * SKETCHES_TILE,
                      above[m] & bits_between(at, looking->begin[m], looking->end[m]),
                      tile->positions);
        if (gathered->least > least[m])
            raise_floor(&scanning->floors[looking->of[m]], gathered->least);
    }
}

/* Tiles begin … end-1 of a cell. */
static void scan_cell(struct scanning *scanning, const struct guess_cell *work,
                      struct piece *piece, struct result *results)
{
    const struct sketches *sketches = &scanning->args->vectors->sketches;
    struct sketches_tile *const *tiles = sketches->cells[work->cell].tiles;
    uint64_t begin = piece->begin > work->begin ? piece->begin - work->begin : 0;
    uint64_t end = piece->end - work->begin < work->tiles ? piece->end - work->begin : work->tiles;
    _Alignas(64) float guesses[VECTORS_BATCH * SKETCHES_TILE];
    struct looking looking;
    look_into(scanning, work, &looking);
    for (uint64_t i = begin; i < end; i++) {
        if (scan_stopped(scanning->args, work->begin + i - piece->begin, piece)) return;
        const struct sketches_tile *tile = tiles[work->first + i];
        const struct sketches_tile *soon = i + 1 < end ? tiles[work->first + i + 1] : NULL;
        sketches_products(sketches, &looking.queries, tile, soon, guesses);
        collect(scanning, &looking, (work->first + i) * SKETCHES_TILE, tile, guesses, results);
    }
}

void guess_scan(struct scanning *scanning, struct piece *piece, struct result *results)
{
    for (size_t w = 0; w < scanning->work_count && piece->code == 0; w++) {
        const struct guess_cell *work = &scanning->work[w];
        if (work->begin < piece->end && work->begin + work->tiles > piece->begin)
            scan_cell(scanning, work, piece, results);
    }
}
