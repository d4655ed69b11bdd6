/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_queries.c — the query rows of a block in the space of one segment.
 *
 * Every segment has its own balance of channels and its own mean, so that queries are turned once
 * per segment and block: a division, a Hadamard rotation and a rounding to int8 per row, about
 * D log D operations where the segment's clusters cost 128 D. Where segments stand in a table
 * (centroid_table.h) their centroids share a space, and only those whose clusters are opened need
 * their own. Kept for all segments of the block as int8 (a segment is read again when some of its
 * clusters are opened); fp32 is made again for the few segments that have tokens at 8 bits.
 *
 * The deviation of a row: key_spread of a cluster is E[Σ q_c² (k - centroid)_c²] for a query like
 * the observed ones, so a query whose squares are r times theirs, on the mean over channels, sees
 * a variance of r key_spread.
 */
#include <math.h>
#include <string.h>

#include "index/backend.h"
#include "index/progressive_block.h"
#include "index/rotation.h"

/* Queries so rare in a channel that its square is below this share of the mean tell nothing about
 * the next one. */
static const float square_floor = 0.01F;

void block_turn_exactly(struct block *block, size_t p)
{
    block->segments[p].turned = false;
    (void)block_plane_queries(block, p); /* leaves them in block->turned */
}

/* Rows of the block into a space. */
static void turn(struct block *block, const struct planes_space *space,
                 const struct block_space *to)
{
    block->call->planes->turn(&(struct plane_turn_args){
        .q = block->q, .balance = space->balance, .key_mean = space->key_mean,
        .query_square = space->queries > 0 ? space->query_square : NULL, .floor = square_floor,
        .signs = { rotation_signs(0), rotation_signs(1) }, .queries = block->rows,
        .head_dim = block->head_dim, .turned = block->turned, .q8 = to->q8, .scale = to->scale,
        .offset = to->offset, .deviation = to->deviation, .square = to->square, .sum = to->sum });
}

/* Rows of the block in the space of segment p, their deviations to `deviation` (M). */
static struct plane_queries own_queries(struct block *block, size_t p, float *deviation)
{
    size_t at = p * block->rows;
    struct block_space own = { .q8 = block->q8 + at * block->head_dim, .scale = block->scale + at,
                               .offset = block->offset + at, .sum = block->sum + at,
                               .deviation = deviation, .square = block->square + at };
    const struct planes *planes = block->segments[p].planes;
    if (!block->segments[p].turned)
        turn(block, &(struct planes_space){ .queries = planes->queries,
                                            .balance = planes->balance,
                                            .query_square = planes->query_square,
                                            .key_mean = planes->key_mean }, &own);
    block->segments[p].turned = true;
    return (struct plane_queries){ .q8 = own.q8, .scale = own.scale, .offset = own.offset,
                                   .sum = own.sum, .count = block->rows,
                                   .head_dim = block->head_dim };
}

struct plane_queries block_plane_queries(struct block *block, size_t p)
{
    float deviation[BLOCK_ROWS];
    return own_queries(block, p, deviation);
}

struct plane_queries block_centroid_queries(struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    struct block_space *shared = &block->shared;
    float *deviation = block->deviation + p * block->rows;
    if (planes->entry.space == NULL) return own_queries(block, p, deviation);
    if (shared->space != planes->entry.space) turn(block, planes->entry.space, shared);
    shared->space = planes->entry.space;
    memcpy(deviation, shared->deviation, block->rows * sizeof *deviation);
    return (struct plane_queries){ .q8 = shared->q8, .scale = shared->scale,
                                   .offset = shared->offset, .sum = shared->sum,
                                   .count = block->rows, .head_dim = block->head_dim };
}
