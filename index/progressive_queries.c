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
#include <assert.h>
#include <math.h>
#include <string.h>

#include "index/progressive_block.h"
#include "index/rotation.h"

enum { HEAD_DIM_MAX = 1024 };

/* Queries so rare in a channel that its square is below this share of the mean tell nothing about
 * the next one. */
static const float square_floor = 0.01F;

/* 1 / query_square per channel, bounded. ret_weight (D) */
static void channel_weights(const struct planes *planes, size_t head_dim, float *ret_weight)
{
    if (planes->queries == 0) {
        for (size_t d = 0; d < head_dim; d++) ret_weight[d] = 1.0F;
        return;
    }
    float mean = 0.0F;
    for (size_t d = 0; d < head_dim; d++) mean += planes->query_square[d];
    float least = square_floor * mean / (float)head_dim + 1e-30F;
    for (size_t d = 0; d < head_dim; d++) {
        float square = planes->query_square[d];
        ret_weight[d] = 1.0F / (square > least ? square : least);
    }
}

void block_turn_exactly(struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    size_t head_dim = block->head_dim;
    for (size_t m = 0; m < block->rows; m++)
        for (size_t d = 0; d < head_dim; d++)
            block->turned[m * head_dim + d] = block->q[m * head_dim + d] / planes->balance[d];
    rotation_apply(block->turned, block->rows, head_dim);
}

/* turned (D) -> q8 (D); returns the scale. */
static float round_query(const float *turned, size_t head_dim, int8_t *ret_q8, int32_t *ret_sum,
                         float *ret_square)
{
    float most = 0.0F, square = 0.0F;
    for (size_t d = 0; d < head_dim; d++) {
        float size = fabsf(turned[d]);
        most = size > most ? size : most;
        square += turned[d] * turned[d];
    }
    float scale = most / 127.0F, inverse = most > 0.0F ? 127.0F / most : 0.0F;
    int32_t sum = 0;
    for (size_t d = 0; d < head_dim; d++) {
        int32_t code = (int32_t)lrintf(turned[d] * inverse);
        ret_q8[d] = (int8_t)code;
        sum += code;
    }
    *ret_sum = sum;
    *ret_square = square;
    return scale;
}

void block_turn_queries(struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    size_t head_dim = block->head_dim, rows = block->rows;
    float weight[HEAD_DIM_MAX];
    assert(head_dim <= HEAD_DIM_MAX);
    channel_weights(planes, head_dim, weight);
    block_turn_exactly(block, p);
    for (size_t m = 0; m < rows; m++) {
        const float *q = block->q + m * head_dim;
        size_t at = p * rows + m;
        float offset = 0.0F, ratio = 0.0F;
        for (size_t d = 0; d < head_dim; d++) {
            offset += q[d] * planes->key_mean[d];
            ratio += q[d] * q[d] * weight[d];
        }
        block->offset[at] = offset;
        block->deviation[at] = sqrtf(ratio / (float)head_dim);
        block->scale[at] = round_query(block->turned + m * head_dim, head_dim,
                                       block->q8 + at * head_dim, &block->sum[at],
                                       &block->square[at]);
    }
}

struct plane_queries block_plane_queries(const struct block *block, size_t p)
{
    size_t at = p * block->rows;
    return (struct plane_queries){ .q8 = block->q8 + at * block->head_dim,
                                   .scale = block->scale + at, .offset = block->offset + at,
                                   .sum = block->sum + at, .count = block->rows,
                                   .head_dim = block->head_dim };
}
