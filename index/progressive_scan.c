/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_scan.c — the 4-bit codes of opened clusters: a weight for every token, then the
 * residuals of those that need them.
 *
 * Keys first. A cluster is opened because it *could* hold a token far above its centroid; its
 * weights say whether it does. If it does not, its mean value is as good as before, and V-hi, half
 * of the bytes and more than half of the time, is left alone: with weights w and values of spread
 * σ² the mean is off by Σ (w - mean w)² σ². The root of that is the new priority of the cluster;
 * where it reaches the threshold for which it was opened, values are read at once
 * (docs/decisions/0042).
 *
 * Weights are kept (4 M bytes per opened token): they say which tokens to refine. Tiles with
 * refined tokens are weighed twice more: once as they were, to take that out, and once without
 * those tokens.
 *
 * The tokens of a cluster have the centroid as their mean, and residuals of values the mean 0; both
 * are known better than a 4-bit code. So scores are moved until their mean is the centroid's, and
 * residuals are weighed by what a weight has over the least of its tile, which is the same sum.
 * Where keys are near copies of each other, and are rounded alike, that takes away an error that
 * would not cancel: without it, the masses of such clusters were off by e^(0.27) at a time (0032).
 * Of what the mean is off by, every score takes the share that its step² has of all (the best
 * estimate where errors are independent and their sum is known): one key far longer than the others
 * of its tile has nearly all of the error, and moved evenly they would all be wrong by it.
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

enum {
    FETCHED = 8, /* tiles of the next segment that are asked for */
    SOON_FROM = 16, /* tiles: a list of so many goes on about where it began */
};

static const float shift_slack = 40.0F;
static const double priority_most = 1e30; /* sums of them stay finite */
/* The priority of a shut cluster is of a token three deviations out, which few clusters have; what
 * an opened one moves is known. So the latter counts more (docs/decisions/0042). */
static const double known_weight = 4.0;

static void scale_floats(float *values, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++) values[i] *= factor;
}

/* Everything of row m that is relative to its shift, `factor` times. */
static void scale_row(struct block *block, size_t m, float factor)
{
    size_t rows = block->rows, head_dim = block->head_dim;
    for (size_t p = 0; p < block->segment_count; p++)
        if (!block->segments[p].blank)
            scale_floats(block->mass + (p * rows + m) * PLANES_CLUSTERS, PLANES_CLUSTERS, factor);
    for (size_t i = 0; i < block->chunk_count; i++) {
        struct block_chunk *chunk = &block->chunks[i];
        scale_floats(chunk->weights + m * chunk->count * PLANE_TILE, chunk->count * PLANE_TILE,
                     factor);
        scale_floats(chunk->tile_sum + m * chunk->count, chunk->count, factor);
        scale_floats(chunk->tile_square + m * chunk->count, chunk->count, factor * factor);
    }
    float *sums[] = { block->base, block->residual };
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        scale_floats(sums[i] + m * head_dim, head_dim, factor);
    block->mass_shut[m] *= (double)factor;
    block->mass_open[m] *= (double)factor;
}

/* scores (M, count) of a chunk: no row's shift stays too far below. */
static void raise_shift(struct block *block, const float *scores, size_t count)
{
    for (size_t m = 0; m < block->rows; m++) {
        float tops[PLANE_TILE], top = -INFINITY;
        memcpy(tops, scores + m * count, sizeof tops);
        for (size_t i = PLANE_TILE; i < count; i += PLANE_TILE)
            for (size_t t = 0; t < PLANE_TILE; t++)
                tops[t] = scores[m * count + i + t] > tops[t] ? scores[m * count + i + t] : tops[t];
        for (size_t t = 0; t < PLANE_TILE; t++) top = tops[t] > top ? tops[t] : top;
        if (top <= block->shift[m] + shift_slack) continue;
        scale_row(block, m, expf(block->shift[m] - top));
        block->shift[m] = top;
        block_set_unit(block, m);
    }
}

/* The largest of a tile's steps, squared. steps (16) fp16, not negative: as signed numbers, which
 * every CPU compares eight at a time. */
static inline float largest_step_square(const uint16_t *steps)
{
    int16_t all[PLANE_TILE], most = 0;
    memcpy(all, steps, sizeof all);
    for (size_t t = 0; t < PLANE_TILE; t++) most = all[t] > most ? all[t] : most;
    float step = block_step((uint16_t)most);
    return step * step;
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
                                   .tile_square = block->tile_sums + (all + used) * rows,
                                   .tile_most = block->tile_sums + (2 * all + used) * rows,
                                   .key_step = block->tile_steps + used,
                                   .value_step = block->tile_steps + all + used };
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
    struct block_segment *segment = &block->segments[chunk->segment];
    const struct planes *planes = segment->planes;
    size_t rows = block->rows;
    uint64_t clusters = 0;
    float more[BLOCK_ROWS * PLANES_CLUSTERS];
    for (size_t i = 0; i < chunk->count; i++) clusters |= UINT64_C(1) << chunk->tiles[i];
    for (size_t m = 0; m < rows; m++) {
        float *mass = block->mass + (chunk->segment * rows + m) * PLANES_CLUSTERS;
        for (size_t i = 0; i < chunk->count; i++) {
            size_t c = chunk->tiles[i];
            float sum = chunk->tile_sum[m * chunk->count + i];
            float before = (segment->dropped >> c & 1) != 0 ? 0.0F : mass[c];
            more[m * PLANES_CLUSTERS + c] = sum - before;
            block->mass_shut[m] -= (double)before;
            block->mass_open[m] += (double)sum;
            mass[c] = sum;
        }
    }
    segment->dropped &= ~clusters;
    block->call->planes->means(&(struct plane_means_args){
        .clusters = clusters, .mass = more,
        .means = planes->means, .scale = planes->mean_scale, .queries = rows,
        .head_dim = block->head_dim, .acc = block->base });
}

void block_centre_shares(const uint16_t *steps, float *ret_shares)
{
    float sums[4];
    for (size_t t = 0; t < PLANE_TILE; t++) {
        float step = block_step(steps[t]);
        ret_shares[t] = step * step;
    }
    for (size_t t = 0; t < 4; t++)
        sums[t] = (ret_shares[t] + ret_shares[4 + t]) + (ret_shares[8 + t] + ret_shares[12 + t]);
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float unit = sum > 0.0F ? (float)PLANE_TILE / sum : 0.0F; /* steps of 0: nothing is rounded */
    for (size_t t = 0; t < PLANE_TILE; t++) ret_shares[t] *= unit;
}

void block_centre_tile(float *scores, float centre, const float *shares)
{
    float sums[4];
    for (size_t t = 0; t < 4; t++)
        sums[t] = (scores[t] + scores[4 + t]) + (scores[8 + t] + scores[12 + t]);
    float excess = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)PLANE_TILE - centre;
    for (size_t t = 0; t < PLANE_TILE; t++) scores[t] -= excess * shares[t];
}

/* Weights of a tile over their least. */
static void uneven_of(const float *weights, float *ret_uneven)
{
    float least = block_least(weights), over[PLANE_TILE];
    for (size_t t = 0; t < PLANE_TILE; t++) over[t] = weights[t] - least;
    memcpy(ret_uneven, over, sizeof over);
}

void block_weigh(struct block *block, const struct block_chunk *chunk, uint64_t which, float *acc)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    size_t count = (size_t)__builtin_popcountll(which), stride = count * PLANE_TILE;
    uint16_t tiles[PLANE_TILES];
    for (size_t at = 0; which != 0; which &= which - 1, at++) {
        size_t i = (size_t)__builtin_ctzll(which);
        tiles[at] = chunk->tiles[i];
        for (size_t m = 0; m < block->rows; m++)
            uneven_of(chunk->weights + (m * chunk->count + i) * PLANE_TILE,
                      block->uneven + m * stride + at * PLANE_TILE);
    }
    block->call->planes->weigh(&(struct plane_weigh_args){
        .weights = block->uneven, .value_hi = planes->value_hi,
        .value_scale = planes->value_scale, .tiles = tiles, .queries = block->rows,
        .head_dim = block->head_dim, .count = count, .stride = stride, .soon = chunk->soon,
        .acc = acc });
}

void block_set_unit(struct block *block, size_t m)
{
    double exponent = (double)block->shift[m] - (double)block->priority_shift[m];
    block->priority_unit[m] = exp(fmin(exponent, 300.0));
}

/* Priorities of the tiles of a chunk, now that their weights are known. Returns which of them some
 * row wants the values of. */
static uint64_t wanted_values(struct block *block, const struct block_chunk *chunk)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    float spread[PLANES_CLUSTERS], rounding[PLANES_CLUSTERS];
    uint64_t wanted = 0;
    for (size_t i = 0; i < chunk->count; i++) {
        spread[i] = planes->value_spread[chunk->tiles[i]];
        rounding[i] = block_mean_rounding(block, planes, chunk->tiles[i]);
    }
    for (size_t m = 0; m < block->rows; m++) {
        const float *sums = chunk->tile_sum + m * chunk->count;
        const float *squares = chunk->tile_square + m * chunk->count;
        float *priorities =
            block->priority + (chunk->segment * block->rows + m) * PLANES_CLUSTERS;
        float top = block->priority_top[chunk->segment * block->rows + m];
        double unit = known_weight * block->priority_unit[m], more = 0.0, all = 0.0;
        for (size_t i = 0; i < chunk->count; i++) {
            float square = sums[i] * sums[i], uneven = squares[i] - square / PLANE_TILE;
            uneven = uneven > 0.0F ? uneven : 0.0F;
            double moved = (double)sqrtf(uneven * spread[i] + square * rounding[i]) * unit;
            float priority = (float)(moved < priority_most ? moved : priority_most);
            float *at = &priorities[chunk->tiles[i]];
            more += (double)priority - (double)*at;
            all += (double)priority;
            *at = priority;
            top = priority > top ? priority : top;
            wanted |= (uint64_t)(priority >= block->threshold[m]) << i;
        }
        block->priority_shut[m] += more;
        block->priority_all[m] += all;
        block->priority_top[chunk->segment * block->rows + m] = top;
    }
    return wanted;
}

/* The first `most` bits of those set. */
static uint64_t first_bits(uint64_t bits, uint64_t most)
{
    uint64_t kept = 0;
    for (; bits != 0 && most > 0; bits &= bits - 1, most--) kept |= bits & -bits;
    return kept;
}

/* V-hi of the tiles `which` of a chunk, as far as bytes go. */
static void read_values(struct block *block, struct block_chunk *chunk, uint64_t which)
{
    struct block_segment *segment = &block->segments[chunk->segment];
    uint64_t affordable = block_bytes_left(block) / block_plane_bytes(block);
    if ((uint64_t)__builtin_popcountll(which) > affordable) {
        which = first_bits(which, affordable);
        block->limited = true;
    }
    if (which == 0) return;
    block_weigh(block, chunk, which, block->residual);
    chunk->valued |= which;
    for (uint64_t bits = which; bits != 0; bits &= bits - 1) {
        size_t i = (size_t)__builtin_ctzll(bits), c = chunk->tiles[i];
        const uint16_t *steps = segment->planes->value_scale + c * PLANE_TILE;
        chunk->value_step[i] = largest_step_square(steps);
        segment->valued |= UINT64_C(1) << c;
        for (size_t m = 0; m < block->rows; m++)
            block->priority_shut[m] -=
                (double)block->priority[(chunk->segment * block->rows + m) * PLANES_CLUSTERS + c];
    }
    size_t tiles = (size_t)__builtin_popcountll(which);
    block->level_rows[INDEX_HI] += tiles * PLANE_TILE;
    block->level_bytes[INDEX_HI] += tiles * block_plane_bytes(block);
}

struct block_chunk *block_score_tokens(struct block *block, size_t p, uint64_t fresh,
                                       const uint8_t *soon)
{
    struct block_segment *segment = &block->segments[p];
    struct block_chunk *chunk = add_chunk(block, p, fresh);
    _Alignas(64) float centres[BLOCK_ROWS * PLANES_CLUSTERS];
    struct plane_queries queries = block_plane_queries(block, p);
    size_t stride = chunk->count * PLANE_TILE;
    block->call->planes->score(&(struct plane_score_args){
        .queries = &queries, .key_hi = segment->planes->key_hi,
        .key_scale = segment->planes->key_scale, .tiles = chunk->tiles, .count = chunk->count,
        .stride = stride, .soon = soon, .scores = chunk->weights });
    const float *centre = block_centres(block, p, fresh, centres);
    for (size_t i = 0; i < chunk->count; i++) {
        float shares[PLANE_TILE];
        size_t c = chunk->tiles[i];
        const uint16_t *steps = segment->planes->key_scale + c * PLANE_TILE;
        chunk->key_step[i] = largest_step_square(steps);
        block_centre_shares(steps, shares);
        for (size_t m = 0; m < block->rows; m++)
            block_centre_tile(chunk->weights + m * stride + i * PLANE_TILE,
                              centre[m * PLANES_CLUSTERS + c], shares);
    }
    segment->opened |= fresh;
    block->level_rows[INDEX_HI] += stride;
    block->level_bytes[INDEX_HI] += chunk->count * block_plane_bytes(block);
    return chunk;
}

void block_fetch_planes(const struct block_segment *segment, size_t head_dim, uint64_t clusters)
{
    const struct planes *planes = segment->planes;
    size_t tile_bytes = PLANE_TILE * head_dim / 2;
    if (!segment->turned) block_fetch_lines(planes->balance, 3 * head_dim * sizeof(float));
    for (size_t left = FETCHED; clusters != 0 && left > 0; clusters &= clusters - 1, left--) {
        size_t c = (size_t)__builtin_ctzll(clusters);
        block_fetch_lines(planes->key_hi + c * tile_bytes, tile_bytes);
        block_fetch_lines(planes->value_hi + c * tile_bytes, tile_bytes);
        block_fetch_lines(planes->key_scale + c * PLANE_TILE, 1);
        block_fetch_lines(planes->value_scale + c * PLANE_TILE, 1);
        block_fetch_lines(planes->means + c * head_dim, head_dim);
        if (planes->entry.space == NULL) continue;
        block_fetch_lines(planes->entry.rows + c * head_dim, head_dim);
        block_fetch_lines(planes->entry.row_scale + c, 1);
    }
    block_fetch_lines(planes->mean_scale, PLANES_CLUSTERS * sizeof(float));
    block_fetch_lines(planes->value_spread, PLANES_CLUSTERS * sizeof(float));
}

void block_fetch(const struct block *block, size_t p, uint64_t clusters)
{
    block_fetch_planes(&block->segments[p], block->head_dim, clusters);
}

/* Where a plane of codes is read first, if clusters (bits) of it are: the kernels ask for it while
 * they work on what is read before. Not of a few clusters: those behind the first lie elsewhere,
 * and asking for what is not read costs more than it gains (0049). */
static const uint8_t *soon_of(const struct block *block, const uint8_t *codes, uint64_t clusters)
{
    if (__builtin_popcountll(clusters) < SOON_FROM) return NULL;
    return codes + (size_t)__builtin_ctzll(clusters) * (PLANE_TILE / 2 * block->head_dim);
}

/* The fresh clusters of segment p; `soon` is read after it, or NULL. */
static void scan_segment(struct block *block, size_t p, uint64_t fresh, const uint8_t *soon)
{
    const uint8_t *values = soon_of(block, block->segments[p].planes->value_hi, fresh);
    struct block_chunk *chunk = block_score_tokens(block, p, fresh, values);
    size_t stride = chunk->count * PLANE_TILE;
    block->chunk_count--; /* its weights are scores still: not to be scaled */
    raise_shift(block, chunk->weights, stride);
    block->chunk_count++;
    block->call->planes->soften(&(struct plane_soften_args){
        .scores = chunk->weights, .shift = block->shift, .queries = block->rows,
        .count = chunk->count, .stride = stride, .tile_sum = chunk->tile_sum,
        .tile_square = chunk->tile_square });
    move_masses(block, chunk);
    chunk->soon = soon;
    read_values(block, chunk, wanted_values(block, chunk));
    chunk->soon = NULL; /* it is read later, too */
}

/* The first segment from p on with fresh clusters that are shut. */
static size_t next_fresh(const struct block *block, const uint64_t *fresh, size_t p)
{
    while (p < block->segment_count && (fresh[p] & ~block->segments[p].opened) == 0) p++;
    return p;
}

void block_scan_fresh(struct block *block, const uint64_t *fresh)
{
    for (size_t at = 0; at < block->chunk_count; at++) {
        struct block_chunk *chunk = &block->chunks[at];
        uint64_t which = 0;
        for (size_t i = 0; i < chunk->count; i++)
            which |= (fresh[chunk->segment] >> chunk->tiles[i] & 1) << i;
        read_values(block, chunk, which);
    }
    size_t next = next_fresh(block, fresh, 0);
    while (next < block->segment_count) {
        size_t p = next;
        next = next_fresh(block, fresh, p + 1);
        const uint8_t *soon = NULL;
        if (next < block->segment_count) {
            uint64_t clusters = fresh[next] & ~block->segments[next].opened;
            block_fetch(block, next, clusters);
            soon = soon_of(block, block->segments[next].planes->key_hi, clusters);
        }
        scan_segment(block, p, fresh[p] & ~block->segments[p].opened, soon);
    }
}
