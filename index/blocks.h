/* SPDX-License-Identifier: Apache-2.0 */
/* blocks.h — granularity "block": a past cut into equally long blocks of tokens, each with vectors
 * that stand for it, and the choice of blocks for a query.
 *
 * A block is complete or it is not there. Its representatives, one vector for each of some heads
 * (KV heads or query heads, as the method wants), are made once, from the rows of the block and of
 * what follows it; so `struct blocks` is a fold (fold.h) that never forgets: as of any earlier
 * token it is its first blocks.
 *
 *     sinks | block 0 | block 1 | … | block count-1 | what is no block yet
 *           first
 *
 * A method names its blocks_shape, how a representative is made (blocks_represent), and chooses:
 *
 *     blocks_scores(blocks, head, q, 1, count, scores);        a flat scan of one head's vectors
 *     chosen = blocks_choose(scores, count, &wanted, scratch, ids);
 *
 * Heads that share one choice: blocks_scores_shared sums the products of all heads, which is the
 * product of the concatenated vectors, so it is both rules that papers know by these names.
 *
 * A flat scan, and nothing above it: blocks are a hundred times fewer than tokens, a million tokens
 * are 8,192 blocks of 128, and a scan of their vectors reads less than attention over the chosen
 * rows does.
 *
 * Shapes   vectors (count, heads, D) fp32, D a multiple of 8
 * Cost     scores: one product of D for each block and query; choose: O(count log best)
 * Memory   4 * heads * D bytes for each block, up to twice that while it grows
 * Threads  as fold.h: advance alone, everything else beside each other
 * Errors   MEMD_ENOMEM · MEMD_ECORRUPT from load · what `represent` and `stop` say; blocks that
 *          were made before an error stay
 * Exact    ties go to the lower block; a choice depends on the scores alone
 * Tests    tests/unit/test_blocks.c
 */
#ifndef MEMD_INDEX_BLOCKS_H
#define MEMD_INDEX_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "index/fold.h"

struct blocks_shape {
    uint64_t first;  /* token that block 0 begins with; those before it are of no block */
    uint64_t tokens; /* of a block, ≥ 1 */
    uint64_t ahead;  /* rows behind a block that its representatives are made from, too */
    size_t heads, head_dim;
};

struct blocks {
    struct fold base;
    struct blocks_shape shape;
    size_t count, room;
    float *vectors; /* (room, heads, D); the first `count` are there */
    size_t lacking; /* of them, those that were made without what they should be made from */
};

/* How many blocks are complete among tokens 0 … tokens-1, `ahead` not asked for. */
uint64_t blocks_complete(const struct blocks_shape *shape, uint64_t tokens);

/* The first token of a block. */
uint64_t blocks_begin(const struct blocks_shape *shape, uint64_t block);

/* fold_type.reach: so many of `tokens` tokens are in a fold of this shape, when blocks are made as
 * soon as `behind` (≥ ahead) tokens follow them. */
uint64_t blocks_reach(const struct blocks_shape *shape, uint64_t behind, uint64_t tokens);

/* The blocks of a fold that is some. */
const struct blocks *blocks_of(const struct fold *fold);

/* fold_type.open: none yet. */
int blocks_open(const struct fold_type *type, const struct blocks_shape *shape,
                struct fold **ret_fold, struct error *err);
void blocks_free(struct fold *fold); /* fold_type.free; NULL is fine */

/* The vectors of the block that begins with token `begin`: ret_vectors (heads, D). On any thread,
 * several at a time. 1 instead of 0: it was made without what it should be made from. */
typedef int blocks_represent(const struct fold_source *source, const struct blocks_shape *shape,
                             uint64_t begin, float *ret_vectors, struct error *err);

/* fold_type.advance, split over source->pool by blocks. */
int blocks_advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   blocks_represent *represent, struct error *err);

/* fold_type.save and .load; what was saved for another shape is MEMD_ECORRUPT. */
size_t blocks_save(const struct fold *fold, unsigned char *ret_data);
int blocks_load(const struct fold_type *type, const struct blocks_shape *shape, const void *data,
                size_t bytes, struct fold **ret_fold, struct error *err);

/* Products of queries with the vectors of one head, of the first `count` blocks. q (queries, D);
 * ret_scores (queries, count) */
void blocks_scores(const struct blocks *blocks, size_t head, const float *q, size_t queries,
                   size_t count, float *ret_scores);

/* The same summed over all heads, for one query that has a vector for each. q (heads, D); scratch,
 * ret_scores (count) */
void blocks_scores_shared(const struct blocks *blocks, const float *q, size_t count,
                          float *scratch, float *ret_scores);

/* What is wanted of some blocks: the first ones, the last ones, and the best of those between. */
struct blocks_wanted {
    size_t first, last, best;
};

/* The chosen blocks, ascending, each once; how many. All, where that is not more than wanted.
 * scores (count), those of forced blocks are not looked at, NaN (keys and queries that overflowed)
 * is worst; scratch (best); ret_ids
 * (first + best + last) */
size_t blocks_choose(const float *scores, size_t count, const struct blocks_wanted *wanted,
                     float *scratch, uint64_t *ret_ids);

#endif
