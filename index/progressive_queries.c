/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_queries.c — the query rows of a block in the space of one segment.
 *
 * Every segment has its own balance of channels and its own mean, so that queries are turned once
 * per segment and block: a division, a Hadamard rotation and a rounding to int8 per row, about
 * D log D operations where the segment's clusters cost 128 D. Kept for all segments of the block as
 * int8 (a segment is read again when some of its clusters are opened); fp32 is made again for the
 * few segments that have tokens at 8 bits.
 *
 * The deviation of a row: key_spread of a cluster is E[Σ q_c² (k - centroid)_c²] for a query like
 * the observed ones, so a query whose squares are r times theirs, on the mean over channels, sees
 * a variance of r key_spread.
 */
#include "index/backend.h"
#include "index/progressive_block.h"
#include "index/rotation.h"

/* Queries so rare in a channel that its square is below this share of the mean tell nothing about
 * the next one. */
static const float square_floor = 0.01F;

void block_turn_exactly(struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    size_t head_dim = block->head_dim;
    for (size_t m = 0; m < block->rows; m++)
        for (size_t d = 0; d < head_dim; d++)
            block->turned[m * head_dim + d] = block->q[m * head_dim + d] / planes->balance[d];
    rotation_apply(block->turned, block->rows, head_dim);
}

void block_turn_queries(struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    size_t at = p * block->rows;
    block->call->planes->turn(&(struct plane_turn_args){
        .q = block->q, .balance = planes->balance, .key_mean = planes->key_mean,
        .query_square = planes->queries > 0 ? planes->query_square : NULL, .floor = square_floor,
        .signs = { rotation_signs(0), rotation_signs(1) }, .queries = block->rows,
        .head_dim = block->head_dim, .turned = block->turned,
        .q8 = block->q8 + at * block->head_dim, .scale = block->scale + at,
        .offset = block->offset + at, .deviation = block->deviation + at,
        .square = block->square + at, .sum = block->sum + at });
}

struct plane_queries block_plane_queries(const struct block *block, size_t p)
{
    size_t at = p * block->rows;
    return (struct plane_queries){ .q8 = block->q8 + at * block->head_dim,
                                   .scale = block->scale + at, .offset = block->offset + at,
                                   .sum = block->sum + at, .count = block->rows,
                                   .head_dim = block->head_dim };
}
