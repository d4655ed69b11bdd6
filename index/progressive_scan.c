/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_scan.c — the 4-bit codes of opened clusters: a weight for every token, then their
 * residuals.
 *
 * Weights are kept (4 M bytes per opened token): they say which tokens to refine. Residuals are
 * read at once all the same, because every prediction is relative to the length of the answer, and
 * an answer of mean values alone is too short. Tiles with refined tokens are weighed twice more:
 * once as they were, to take that out, and once without those tokens.
 *
 * The tokens of a cluster have the centroid as their mean, and residuals of values the mean 0; both
 * are known better than a 4-bit code. So scores are moved until their mean is the centroid's, and
 * residuals are weighed by what a weight has over the least of its tile, which is the same sum.
 * Where keys are near copies of each other, and are rounded alike, that takes away an error that
 * would not cancel: without it, the masses of such clusters were off by e^(0.27) at a time (0032).
 *
 * The shift of a row is fixed when its centroids are known; a token may lie above it. Up to e^40
 * that costs nothing. A key far outside (an outlier whose cluster hid it) moves the shift, and what
 * was summed before is scaled; this happens to hardly any real query.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "index/backend.h"
#include "index/progressive_block.h"

static const float shift_slack = 40.0F;

static void scale_floats(float *values, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++) values[i] *= factor;
}

/* Everything of row m that is relative to its shift, `factor` times. */
static void scale_row(struct block *block, size_t m, float factor)
{
    size_t rows = block->rows, head_dim = block->head_dim;
    for (size_t p = 0; p < block->segment_count; p++)
        scale_floats(block->mass + (p * rows + m) * PLANES_CLUSTERS, PLANES_CLUSTERS, factor);
    for (size_t i = 0; i < block->chunk_count; i++) {
        struct block_chunk *chunk = &block->chunks[i];
        scale_floats(chunk->weights + m * chunk->count * PLANE_TILE, chunk->count * PLANE_TILE,
                     factor);
        scale_floats(chunk->tile_sum + m * chunk->count, chunk->count, factor);
        scale_floats(chunk->tile_square + m * chunk->count, chunk->count, factor * factor);
    }
    float *sums[] = { block->base, block->take, block->open, block->residual };
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        scale_floats(sums[i] + m * head_dim, head_dim, factor);
    block->mass_shut[m] *= (double)factor;
    block->mass_open[m] *= (double)factor;
}

/* scores (M, count) of a chunk: no row's shift stays too far below. */
static void raise_shift(struct block *block, const float *scores, size_t count)
{
    for (size_t m = 0; m < block->rows; m++) {
        float top = -INFINITY;
        for (size_t i = 0; i < count; i++) {
            float score = scores[m * count + i];
            top = score > top ? score : top;
        }
        if (top <= block->shift[m] + shift_slack) continue;
        scale_row(block, m, expf(block->shift[m] - top));
        block->shift[m] = top;
    }
}

/* Memory for `fresh` of segment p. */
static struct block_chunk *add_chunk(struct block *block, size_t p, uint64_t fresh)
{
    struct block_chunk *chunk = &block->chunks[block->chunk_count++];
    size_t used = block->tiles_used, rows = block->rows;
    size_t all = block->segment_count * PLANES_CLUSTERS;
    *chunk = (struct block_chunk){ .segment = p, .tiles = block->tiles + used,
                                   .weights = block->weights + used * PLANE_TILE * rows,
                                   .tile_sum = block->tile_sums + used * rows,
                                   .tile_square = block->tile_sums + (all + used) * rows };
    for (; fresh != 0; fresh &= fresh - 1)
        chunk->tiles[chunk->count++] = (uint16_t)__builtin_ctzll(fresh);
    block->tiles_used += chunk->count;
    block->coded += chunk->count * PLANE_TILE;
    assert(block->tiles_used <= all);
    return chunk;
}

/* Move the clusters of a chunk from shut to open. */
static void move_masses(struct block *block, const struct block_chunk *chunk)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    size_t rows = block->rows;
    float was[BLOCK_ROWS * PLANES_CLUSTERS] = { 0 }, is[BLOCK_ROWS * PLANES_CLUSTERS] = { 0 };
    for (size_t m = 0; m < rows; m++) {
        size_t at = (chunk->segment * rows + m) * PLANES_CLUSTERS;
        for (size_t i = 0; i < chunk->count; i++) {
            size_t c = chunk->tiles[i];
            float mass = block->mass[at + c], sum = chunk->tile_sum[m * chunk->count + i];
            was[m * PLANES_CLUSTERS + c] = mass;
            is[m * PLANES_CLUSTERS + c] = sum;
            block->mass_shut[m] -= (double)mass;
            block->mass_open[m] += (double)sum;
            block->priority_shut[m] -= (double)block->priority[at + c];
        }
    }
    struct plane_means_args args = { .mass = was, .means = planes->means,
                                     .scale = planes->mean_scale, .queries = rows,
                                     .head_dim = block->head_dim, .acc = block->take };
    block->call->planes->means(&args);
    args.mass = is;
    args.acc = block->open;
    block->call->planes->means(&args);
}

void block_centre_tile(float *scores, float centre)
{
    float sums[4];
    for (size_t t = 0; t < 4; t++)
        sums[t] = (scores[t] + scores[4 + t]) + (scores[8 + t] + scores[12 + t]);
    float excess = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)PLANE_TILE - centre;
    for (size_t t = 0; t < PLANE_TILE; t++) scores[t] -= excess;
}

void block_weigh(struct block *block, const struct block_chunk *tiles, size_t stride, float *acc)
{
    const struct planes *planes = block->segments[tiles->segment].planes;
    size_t tokens = tiles->count * PLANE_TILE;
    for (size_t m = 0; m < block->rows; m++) {
        for (size_t i = 0; i < tokens; i += PLANE_TILE) {
            const float *weights = tiles->weights + m * stride + i;
            float least = weights[0], *uneven = block->uneven + m * tokens + i;
            for (size_t t = 1; t < PLANE_TILE; t++)
                least = weights[t] < least ? weights[t] : least;
            for (size_t t = 0; t < PLANE_TILE; t++) uneven[t] = weights[t] - least;
        }
    }
    block->call->planes->weigh(&(struct plane_weigh_args){
        .weights = block->uneven, .value_hi = planes->value_hi,
        .value_scale = planes->value_scale, .tiles = tiles->tiles, .queries = block->rows,
        .head_dim = block->head_dim, .count = tiles->count, .stride = tokens, .acc = acc });
}

/* Residuals of the tokens of a chunk, all of them. */
static void weigh(struct block *block, const struct block_chunk *chunk)
{
    size_t tokens = chunk->count * PLANE_TILE;
    block_weigh(block, chunk, tokens, block->residual);
    block->level_rows[INDEX_HI] += tokens;
    block->level_bytes[INDEX_HI] += tokens * (block->head_dim / 2 + sizeof(uint16_t));
}

struct block_chunk *block_score_tokens(struct block *block, size_t p, uint64_t fresh)
{
    struct block_segment *segment = &block->segments[p];
    struct block_chunk *chunk = add_chunk(block, p, fresh);
    struct plane_queries queries = block_plane_queries(block, p);
    size_t stride = chunk->count * PLANE_TILE;
    block->call->planes->score(&(struct plane_score_args){
        .queries = &queries, .key_hi = segment->planes->key_hi,
        .key_scale = segment->planes->key_scale, .tiles = chunk->tiles, .count = chunk->count,
        .stride = stride, .scores = chunk->weights });
    for (size_t m = 0; m < block->rows; m++) {
        const float *centre = block->centre + (p * block->rows + m) * PLANES_CLUSTERS;
        for (size_t i = 0; i < chunk->count; i++)
            block_centre_tile(chunk->weights + m * stride + i * PLANE_TILE,
                              centre[chunk->tiles[i]]);
    }
    segment->opened |= fresh;
    block->level_rows[INDEX_HI] += stride;
    block->level_bytes[INDEX_HI] += stride * (block->head_dim / 2 + sizeof(uint16_t));
    return chunk;
}

static void scan_segment(struct block *block, size_t p, uint64_t fresh)
{
    struct block_chunk *chunk = block_score_tokens(block, p, fresh);
    size_t stride = chunk->count * PLANE_TILE;
    block->chunk_count--; /* its weights are scores still: not to be scaled */
    raise_shift(block, chunk->weights, stride);
    block->chunk_count++;
    block->call->planes->soften(&(struct plane_soften_args){
        .scores = chunk->weights, .shift = block->shift, .queries = block->rows,
        .count = chunk->count, .stride = stride, .tile_sum = chunk->tile_sum,
        .tile_square = chunk->tile_square });
    move_masses(block, chunk);
    weigh(block, chunk);
}

void block_scan_fresh(struct block *block, const uint64_t *fresh)
{
    for (size_t p = 0; p < block->segment_count; p++)
        if (fresh[p] != 0) scan_segment(block, p, fresh[p]);
}
