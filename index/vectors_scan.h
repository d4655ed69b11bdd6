/* SPDX-License-Identifier: Apache-2.0 */
/* vectors_scan.h — what the two ways of scanning a ring share: vectors_search.c reads states,
 * vectors_guess.c their sketches. Pieces are scanned by several threads, each with results of its
 * own for every query of a batch.
 *
 * Threads  a piece and its results belong to the thread that scans it; the rest of a scan is
 *          written before pieces are handed out, but for `floors`
 * Tests    tests/unit/test_vectors.c
 */
#ifndef MEMD_INDEX_VECTORS_SCAN_H
#define MEMD_INDEX_VECTORS_SCAN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/bucketed.h"
#include "index/gathered.h"
#include "index/vectors.h"

enum {
    SCAN_PIECE_STATES = 8192,   /* of the ring, at least */
    SCAN_PIECES = 64,           /* at most */
    SCAN_PIECES_PER_THREAD = 2, /* more would cost more results to merge */
    SCAN_STOP_TILES = 16,       /* are scanned before `stop` is asked again */
};

/* What a piece finds for a query of the batch. */
struct result {
    struct bucketed buckets; /* one of the two */
    struct gathered gathered;
};

/* A cell that some queries look into, and which of its tiles they may see. */
struct guess_cell {
    unsigned askers;
    size_t cell, tiles;
    uint64_t first, begin; /* tile of the cell; tiles of the cells before it */
};

struct piece {
    uint64_t begin, end; /* positions; of a listed ring, slots; of guesses, tiles of `work` */
    int code;
};

struct scanning {
    const struct vectors_args *args;
    size_t first, batch; /* queries of the batch */
    size_t room;         /* entries of a result: k, the buckets, or rerank */
    bool sketched;       /* this batch: guesses are scanned, and room is rerank */
    struct sketches_queries *asked;
    uint16_t askers[SKETCHES_CELLS]; /* of a cell: bits of the queries that look into it */
    struct guess_cell *work; /* (SKETCHES_CELLS) of the batch */
    size_t work_count, most_pieces;
    float *asking; /* room for sketches_ask */
    _Atomic float floors[VECTORS_BATCH]; /* as many guesses as are wanted are at least this good */
    float *halves; /* (2, batch, W/2) */
    uint64_t *ids; /* (pieces, batch, GATHERED_TIMES room) slots, or positions of guesses */
    float *scores; /* (pieces, batch, GATHERED_TIMES room) */
    struct result *results; /* (pieces, batch) */
    struct piece pieces[SCAN_PIECES];
    size_t piece_count;
    uint64_t *ret_slots; /* (n, k) */
    float *ret_scores;   /* (n, k) */
};

static inline bool scan_stopped(const struct vectors_args *args, uint64_t tiles,
                                struct piece *piece)
{
    if (tiles % SCAN_STOP_TILES == 0 && args->stop != NULL)
        piece->code = args->stop(args->stop_arg);
    return piece->code != 0;
}

/* Code the queries of the batch and cut what they look into to pieces. */
void guess_begin(struct scanning *scanning);

/* Collect the best guesses of a piece, as positions. results (batch) */
void guess_scan(struct scanning *scanning, struct piece *piece, struct result *results);

#endif
