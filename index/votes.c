/* SPDX-License-Identifier: Apache-2.0 */
/* votes.c — two passes over pieces of the keys. Pieces have a fixed size and their sums are joined
 * in order, so that the number of threads does not show. */
#include "index/votes.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"

enum { PIECE_TOKENS = 2048, TILE_FLOATS = 8192 };

/* Of one query: the largest score, and the sum of exp(score - max). */
struct row {
    float max;
    double sum;
};

struct voting {
    const struct votes_args *args;
    size_t group, dim, first, pieces;
    uint64_t past;      /* tokens - window */
    const float *q;     /* (heads, group, window, D) scaled, rotated */
    struct row *parts;  /* (heads, pieces, group, window) */
    struct row *rows;   /* (heads, group, window) */
    float *votes;       /* (heads, group, past) */
    atomic_int stopped;
};

/* Scores of a tile: keys begin … begin+count-1 for one query head. */
struct tile {
    uint64_t begin;
    size_t count;
    const float *scores; /* (window, count) */
};

static bool asked_to_stop(struct voting *voting)
{
    if (atomic_load(&voting->stopped) != 0) return true;
    const struct votes_args *args = voting->args;
    int code = args->stop == NULL ? 0 : args->stop(args->stop_arg);
    if (code != 0) atomic_store(&voting->stopped, code);
    return code != 0;
}

/* The query of row i sees the keys up to its own. */
static size_t visible(const struct voting *voting, size_t i, const struct tile *tile)
{
    uint64_t end = voting->past + i + 1;
    if (end <= tile->begin) return 0;
    return end - tile->begin < tile->count ? (size_t)(end - tile->begin) : tile->count;
}

/* rows (window) */
static void add_tile(const struct voting *voting, const struct tile *tile, struct row *rows)
{
    for (size_t i = 0; i < voting->args->window; i++) {
        const float *scores = tile->scores + i * tile->count;
        size_t count = visible(voting, i, tile);
        float max = rows[i].max;
        for (size_t t = 0; t < count; t++)
            if (scores[t] > max) max = scores[t];
        if (max == -INFINITY) continue; /* none is visible yet */
        double sum = rows[i].sum * exp((double)rows[i].max - (double)max);
        for (size_t t = 0; t < count; t++) sum += (double)expf(scores[t] - max);
        rows[i] = (struct row){ max, sum };
    }
}

/* votes (tile.count) */
static void vote_tile(const struct voting *voting, const struct tile *tile, const struct row *rows,
                      float *votes)
{
    memset(votes, 0, tile->count * sizeof *votes);
    for (size_t i = 0; i < voting->args->window; i++) {
        const float *scores = tile->scores + i * tile->count;
        float share = (float)(1.0 / rows[i].sum);
        for (size_t t = 0; t < tile->count; t++) votes[t] += share * expf(scores[t] - rows[i].max);
    }
}

/* A pass over keys begin … end-1 of KV head first + head: into parts, or from rows into votes. */
static void read_piece(struct voting *voting, size_t head, uint64_t begin, uint64_t end,
                       struct row *parts)
{
    _Alignas(64) float keys[TILE_FLOATS], scores[TILE_FLOATS];
    size_t window = voting->args->window, dim = voting->dim;
    size_t step = TILE_FLOATS / (dim > window ? dim : window);
    for (size_t some = 0; begin < end && !asked_to_stop(voting); begin += some) {
        some = end - begin < step ? (size_t)(end - begin) : step;
        struct tile tile = { begin, some, scores };
        rows_keys(&voting->args->rows, voting->first + head, begin, some, keys);
        for (size_t m = 0; m < voting->group; m++) {
            size_t at = head * voting->group + m;
            backend_get()->score(&(struct score_args){
                .q = voting->q + at * window * dim, .queries = window, .head_dim = dim, .k = keys,
                .k_stride_bytes = dim * sizeof *keys, .tokens = some, .dtype = DTYPE_FP32,
                .scores = scores });
            if (parts != NULL) add_tile(voting, &tile, parts + m * window);
            else vote_tile(voting, &tile, voting->rows + at * window,
                           voting->votes + at * voting->past + begin);
        }
    }
}

/* idx = head * pieces + piece */
static void sum_piece(void *arg, size_t idx)
{
    struct voting *voting = arg;
    size_t rows = voting->group * voting->args->window;
    uint64_t begin = idx % voting->pieces * PIECE_TOKENS, end = begin + PIECE_TOKENS;
    if (end > voting->args->tokens) end = voting->args->tokens;
    struct row *parts = voting->parts + idx * rows;
    for (size_t r = 0; r < rows; r++) parts[r] = (struct row){ -INFINITY, 0.0 };
    read_piece(voting, idx / voting->pieces, begin, end, parts);
}

static void vote_piece(void *arg, size_t idx)
{
    struct voting *voting = arg;
    uint64_t begin = idx % voting->pieces * PIECE_TOKENS, end = begin + PIECE_TOKENS;
    if (end > voting->past) end = voting->past;
    if (begin < end) read_piece(voting, idx / voting->pieces, begin, end, NULL);
}

/* The sums of the pieces of KV head first + head. */
static void join_rows(struct voting *voting, size_t head)
{
    size_t rows = voting->group * voting->args->window;
    const struct row *parts = voting->parts + head * voting->pieces * rows;
    for (size_t r = 0; r < rows; r++) {
        struct row all = { -INFINITY, 0.0 };
        for (size_t piece = 0; piece < voting->pieces; piece++)
            all.max = fmaxf(all.max, parts[piece * rows + r].max);
        for (size_t piece = 0; piece < voting->pieces; piece++) {
            const struct row *part = &parts[piece * rows + r];
            if (part->sum > 0.0) all.sum += part->sum * exp((double)part->max - (double)all.max);
        }
        voting->rows[head * rows + r] = all;
    }
}

/* The window's queries, regrouped by head. ret_q (heads, group, window, D) */
static void load_queries(const struct voting *voting, size_t heads, float *ret_q)
{
    const struct votes_args *args = voting->args;
    size_t dim = voting->dim, row_bytes = dim * dtype_bytes(args->q.dtype);
    size_t skipped = args->q.shape[0] - args->window;
    for (size_t i = 0; i < args->window; i++) {
        float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
        const struct rope *rope = args->rows.rope;
        if (rope != NULL) rope_angles(rope, voting->past + i, cos, sin);
        for (size_t at = 0; at < heads * voting->group; at++) {
            size_t h = voting->first * voting->group + at;
            const unsigned char *from = args->q.data;
            float *q = ret_q + (at * args->window + i) * dim;
            backend_widen(from + ((skipped + i) * args->query_heads + h) * row_bytes,
                          args->q.dtype, 1, dim, q);
            if (rope != NULL) rope_apply(rope, cos, sin, q, 1);
            for (size_t d = 0; d < dim; d++) q[d] *= args->scale;
        }
    }
}

int votes_count(const struct votes_args *args, size_t first, size_t heads, struct arena *arena,
                float *ret_votes, struct error *err)
{
    assert(args->window >= 1 && args->window <= VOTES_WINDOW_MAX);
    assert(args->tokens > args->window && args->q.shape[0] >= args->window);
    struct voting voting = { .args = args, .group = args->query_heads / args->kv_heads,
                             .dim = args->rows.head_dim, .first = first, .votes = ret_votes,
                             .past = args->tokens - args->window };
    voting.pieces = (size_t)((args->tokens + PIECE_TOKENS - 1) / PIECE_TOKENS);
    size_t rows = heads * voting.group * args->window;
    float *q = arena_alloc_aligned(arena, rows * voting.dim * sizeof *q, 64);
    voting.parts = arena_calloc(arena, rows * voting.pieces, sizeof *voting.parts);
    voting.rows = arena_calloc(arena, rows, sizeof *voting.rows);
    if (q == NULL || voting.parts == NULL || voting.rows == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for the votes of %zu queries in %zu pieces",
                         rows, voting.pieces);
    load_queries(&voting, heads, q);
    voting.q = q;
    pool_for(args->pool, heads * voting.pieces, sum_piece, &voting);
    for (size_t head = 0; head < heads; head++) join_rows(&voting, head);
    pool_for(args->pool, heads * voting.pieces, vote_piece, &voting);
    int stopped = atomic_load(&voting.stopped);
    if (stopped == 0) return 0;
    return error_set(err, stopped, "%s while votes were counted", error_text(stopped));
}
