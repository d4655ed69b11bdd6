/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_refine.c — tokens whose 4-bit codes would move the answer too much are read again: at
 * 8 bits, or exactly.
 *
 * Rounding is the one error here that is known beforehand: a code with step d is off by d²/12 per
 * dimension, independently from token to token. A token of weight w therefore moves the answer by
 *
 *     e² = w² (|q'|² dk²/12 |v - o|² + D dv²/12) / (Z² |o|²)
 *
 * and 16 times less (256 in the square) once its low nibbles are read. What all weights of a
 * cluster have in common (progressive_scan.c) is answered by its mean value, whose own rounding,
 * d², is shared by its tokens: 16 least² d² / (Z² |o|²) each. The terms are collected in a
 * histogram of quarter octaves per query row; from it follow the smallest set of tokens to take to
 * 8 bits and, when that cannot be enough, the set to read exactly. No sorting, one more pass.
 *
 * Refined tokens leave the weights (0) and the open mass (`removed`), and come back with all their
 * rows through attention/kernels/partial.h: the 8-bit ones in the spaces of their segment, where
 * their queries are turned already, a segment at a time (the offset q · key_mean is added to the
 * maximum afterwards). All rows of the block profit from every token read.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/kernels/partial.h"
#include "base/tensor.h"
#include "index/backend.h"
#include "index/progressive_block.h"

enum { LANES = 4 };

/* Low nibbles leave a token with at most this share of its e², or it is read exactly. */
static const float lo_helps = 0.25F;
static const double quiet_share = 0.1; /* of the target squared, for all quiet tiles together */
static const float lo_share = 1.0F / 256.0F; /* of hi's error, squared */
static const double quiet_of_bound = 0.6;    /* what e² is of its bound, on the mean */

/* What of e² belongs to one tile: e² = w² (key step² + value step²) + mean, the steps squared. */
struct terms {
    float key[BLOCK_ROWS], value[BLOCK_ROWS], mean[BLOCK_ROWS];
    float key_steps[PLANE_TILE], value_steps[PLANE_TILE]; /* squared */
    float least[BLOCK_ROWS]; /* weight */
    float small;             /* an e² that no threshold is below */
};

/* At and above: read at 8 bits, exactly. Per row, of e². */
struct refine_thresholds {
    float lo[BLOCK_ROWS], exact[BLOCK_ROWS];
};

/* |v - o|² of a token of cluster c, on the mean: exactly where the cluster has a share of the mass
 * that counts, else from the size of the codes (their largest is 2.75 times the rms after a
 * rotation). */
static float value_distance(const struct block *block, const struct planes *planes, size_t c,
                            size_t m, double share)
{
    size_t head_dim = block->head_dim;
    float scale = planes->mean_scale[c], spread = planes->value_spread[c];
    if (share < 0.01) {
        float rms = scale * 127.0F / 2.75F;
        return rms * rms * (float)head_dim + spread + (float)(block->norm[m] * block->norm[m]);
    }
    const int8_t *codes = planes->means + c * head_dim;
    const float *output = block->output + m * head_dim;
    float sums[LANES] = { 0 };
    for (size_t d = 0; d < head_dim; d += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            float e = scale * (float)codes[d + lane] - output[d + lane];
            sums[lane] += e * e;
        }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]) + spread;
}

/* What the tiles of a block have in common, per row. */
struct units {
    float over[BLOCK_ROWS];   /* 1 / (12 Z² |o|²), 0 where nothing is known */
    float square[BLOCK_ROWS]; /* |o|² */
    double budget[BLOCK_ROWS]; /* of e², for codes */
    double bound[BLOCK_ROWS]; /* Σ of the bounds of all tiles */
    bool done[BLOCK_ROWS];    /* that is within the budget: nothing to refine for this row */
    float most;               /* a bound up to which a tile is quiet */
    float small;              /* e² of a token that is never refined */
};

static void units_init(const struct block *block, struct units *ret_units)
{
    double target = (double)block->call->target;
    ret_units->most = (float)(quiet_share * target * target / (double)block->tiles_used);
    ret_units->small = ret_units->most / PLANE_TILE;
    for (size_t m = 0; m < block->rows; m++) {
        double unit = block->total[m] * block->norm[m], shut = block->shut_error[m];
        ret_units->over[m] = unit > 0.0 ? (float)(1.0 / (12.0 * unit * unit)) : 0.0F;
        ret_units->square[m] = (float)(block->norm[m] * block->norm[m]);
        ret_units->budget[m] = fmax(target * target - shut * shut, 0.25 * target * target);
        ret_units->bound[m] = 0.0;
    }
}

/* Upper bounds of e² of the tiles of a chunk for each row, into tile_most. Of tiles without V it is
 * that of their keys: their values are not rounded but unknown, which the sample has counted. */
static void bound_chunk(const struct block *block, const struct block_chunk *chunk,
                        struct units *units)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    float dims = (float)block->head_dim, size[PLANES_CLUSTERS], value[PLANES_CLUSTERS];
    for (size_t i = 0; i < chunk->count; i++) {
        size_t c = chunk->tiles[i];
        float rms = planes->mean_scale[c] * 127.0F / 2.5F;
        float rounding = 12.0F * PLANE_TILE * block_mean_rounding(block, planes, c);
        bool valued = (chunk->valued >> i & 1) != 0;
        size[i] = rms * rms * dims + planes->value_spread[c];
        value[i] = valued ? dims * chunk->value_step[i] + rounding : 0.0F;
    }
    for (size_t m = 0; m < block->rows; m++) {
        const float *squares = chunk->tile_square + m * chunk->count;
        float *most = chunk->tile_most + m * chunk->count, over = units->over[m];
        float key = block->square[chunk->segment * block->rows + m], output = units->square[m];
        float sum = 0.0F;
        for (size_t i = 0; i < chunk->count; i++)
            most[i] = squares[i] * over *
                      (key * chunk->key_step[i] * (size[i] + output) + value[i]);
        for (size_t i = 0; i < chunk->count; i++) sum += most[i];
        units->bound[m] += (double)sum;
    }
}

/* Bounds of all tiles. Is there a row for which they do not settle the matter? In a flat softmax
 * they mostly do: every token has too little weight to be rounded wrong. */
static bool bound_tiles(const struct block *block, struct units *units)
{
    bool left = false;
    for (size_t at = 0; at < block->chunk_count; at++)
        bound_chunk(block, &block->chunks[at], units);
    for (size_t m = 0; m < block->rows; m++) {
        units->done[m] = units->bound[m] <= units->budget[m];
        left |= !units->done[m];
    }
    return left;
}

/* The tiles of a chunk of which no token can matter: their e², about 0.6 of the bounds, go to quiet
 * (M). Most tiles are quiet: the rest of the work is for the few that are not. A token of a tile
 * without V that mattered would have had its values read. */
static uint64_t quiet_tiles(const struct block *block, const struct block_chunk *chunk,
                            const struct units *units, double *quiet)
{
    uint64_t loud = 0;
    for (size_t m = 0; m < block->rows; m++) {
        const float *bound = chunk->tile_most + m * chunk->count;
        for (size_t i = 0; i < chunk->count && !units->done[m]; i++)
            loud |= (uint64_t)!(bound[i] <= units->most) << i;
    }
    loud &= chunk->valued;
    for (size_t m = 0; m < block->rows; m++) {
        const float *bound = chunk->tile_most + m * chunk->count;
        float sum = 0.0F;
        for (size_t i = 0; i < chunk->count; i++) sum += (loud >> i & 1) != 0 ? 0.0F : bound[i];
        quiet[m] += quiet_of_bound * (double)sum;
    }
    return ~loud;
}

static void tile_terms(const struct block *block, const struct block_chunk *chunk, size_t i,
                       struct terms *ret_terms)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    size_t c = chunk->tiles[i], place = c * PLANES_CLUSTER;
    float dims = (float)block->head_dim;
    float shared = 12.0F * PLANE_TILE * block_mean_rounding(block, planes, c);
    for (size_t t = 0; t < PLANE_TILE; t++) {
        float key = block_step(planes->key_scale[place + t]);
        float value = block_step(planes->value_scale[place + t]);
        ret_terms->key_steps[t] = key * key;
        ret_terms->value_steps[t] = value * value;
    }
    for (size_t m = 0; m < block->rows; m++) {
        double unit = block->total[m] * block->norm[m];
        float over = unit > 0.0 ? (float)(1.0 / (12.0 * unit * unit)) : 0.0F;
        double share = (double)chunk->tile_sum[m * chunk->count + i] / block->total[m];
        float square = block->square[chunk->segment * block->rows + m];
        ret_terms->key[m] = square * value_distance(block, planes, c, m, share) * over;
        ret_terms->value[m] = dims * over;
        float least = block_least(chunk->weights + (m * chunk->count + i) * PLANE_TILE);
        ret_terms->least[m] = least;
        ret_terms->mean[m] = least * least * shared * over;
    }
}

/* e² of a token with this weight, `uneven` above the least of its tile. */
static inline float token_term(const struct terms *terms, size_t m, size_t t, float weight,
                               float uneven)
{
    return weight * weight * terms->key[m] * terms->key_steps[t] +
           uneven * uneven * terms->value[m] * terms->value_steps[t] + terms->mean[m];
}

/* What is left of it at 8 bits. Its values are no longer relative to those of its cluster, so where
 * a softmax is flat that may be as much. */
static inline float token_term_lo(const struct terms *terms, size_t m, size_t t, float weight)
{
    return lo_share * weight * weight *
           (terms->key[m] * terms->key_steps[t] + terms->value[m] * terms->value_steps[t]);
}

/* e² of the tokens of tile i for row m into sums (BLOCK_BINS); what is too small to be refined goes
 * to *quiet. Returns the largest. */
static float collect_tile(const struct block_chunk *chunk, size_t i, size_t m,
                          const struct terms *terms, float *sums, double *quiet)
{
    const float *weights = chunk->weights + (m * chunk->count + i) * PLANE_TILE;
    float term[PLANE_TILE], most = 0.0F, rest = 0.0F;
    for (size_t t = 0; t < PLANE_TILE; t++)
        term[t] = token_term(terms, m, t, weights[t], weights[t] - terms->least[m]);
    for (size_t t = 0; t < PLANE_TILE; t++) {
        most = term[t] > most ? term[t] : most;
        if (term[t] < terms->small) rest += term[t];
        else sums[block_bin(term[t])] += term[t];
    }
    *quiet += (double)rest;
    return most;
}

/* sums (M, BLOCK_BINS) of e², but for what is quiet. */
static void collect(struct block *block, const struct units *units, float *sums, double *quiet)
{
    struct terms terms = { .small = units->small };
    memset(sums, 0, block->rows * BLOCK_BINS * sizeof *sums);
    for (size_t at = 0; at < block->chunk_count; at++) {
        struct block_chunk *chunk = &block->chunks[at];
        chunk->quiet = quiet_tiles(block, chunk, units, quiet);
        for (size_t i = 0; i < chunk->count; i++) {
            if ((chunk->quiet >> i & 1) != 0) continue;
            tile_terms(block, chunk, i, &terms);
            for (size_t m = 0; m < block->rows; m++)
                chunk->tile_most[m * chunk->count + i] =
                    collect_tile(chunk, i, m, &terms, sums + m * BLOCK_BINS, &quiet[m]);
        }
    }
}

/* The first bin that makes the bins below it sum to more than `budget`; that sum in *ret_below.
 * There is nothing below `first`. */
static uint32_t cut(const float *sums, uint32_t first, double budget, double *ret_below)
{
    *ret_below = 0.0;
    for (uint32_t bin = first; bin < BLOCK_BINS; bin++) {
        if (*ret_below + (double)sums[bin] > budget) return bin;
        *ret_below += (double)sums[bin];
    }
    return BLOCK_BINS;
}

/* The thresholds of one row that leave at most `budget` (of e²) behind. First the tokens that 8
 * bits would not help enough, and half of the budget for those that they do help. sums
 * (BLOCK_BINS), none below `first`; returns their sum. */
static double set_thresholds(const float *sums, uint32_t first, double budget, float *ret_lo,
                             float *ret_exact)
{
    double all = 0.0, coded, below = 0.0;
    for (size_t bin = first; bin < BLOCK_BINS; bin++) all += (double)sums[bin];
    *ret_lo = *ret_exact = INFINITY;
    if (all <= budget) return all;
    uint32_t exact = cut(sums, first, 0.5 * budget / (double)lo_share, &coded), lo = first;
    for (; lo < exact; lo++) {
        double more = below + (double)sums[lo];
        if (more + (coded - more) * (double)lo_share > budget) break;
        below = more;
    }
    if (exact < BLOCK_BINS) *ret_exact = block_bin_least(exact);
    *ret_lo = block_bin_least(lo);
    return all;
}

/* Rows gathered for one segment's run of attention. */
struct gathering {
    size_t segment, count;
    bool begun; /* queries are turned, the state is empty */
};

/* refined ⊕= row, whose scores lack the offset of their segment. */
static void merge_row(struct block *block, size_t p)
{
    const struct block_state *into = &block->refined, *from = &block->row;
    for (size_t m = 0; m < block->rows; m++) {
        if (from->max[m] == -INFINITY) continue;
        float score = from->max[m] + block->offset[p * block->rows + m];
        float top = score > into->max[m] ? score : into->max[m];
        float keep = expf(into->max[m] - top), add = expf(score - top);
        float *acc = into->acc + m * block->head_dim;
        const float *more = from->acc + m * block->head_dim;
        for (size_t d = 0; d < block->head_dim; d++) acc[d] = acc[d] * keep + more[d] * add;
        into->sum[m] = into->sum[m] * keep + from->sum[m] * add;
        into->max[m] = top;
    }
}

static void flush(struct block *block, struct gathering *gathering)
{
    if (gathering->count == 0) return;
    for (size_t m = 0; m < block->rows; m++) block->visible[m] = (uint32_t)gathering->count;
    size_t stride = block->head_dim * sizeof(float);
    block->call->backend->partial(&(struct partial_args){
        .q = block->turned, .visible = block->visible, .queries = block->rows,
        .head_dim = block->head_dim, .k = block->gather_k, .v = block->gather_v,
        .k_stride_bytes = stride, .v_stride_bytes = stride, .tokens = gathering->count,
        .k_dtype = DTYPE_FP32, .v_dtype = DTYPE_FP32, .max = block->row.max,
        .sum = block->row.sum, .acc = block->row.acc });
    gathering->count = 0;
}

static void end_segment(struct block *block, struct gathering *gathering)
{
    flush(block, gathering);
    if (gathering->begun) merge_row(block, gathering->segment);
    gathering->begun = false;
}

/* Token at `place` of its segment, at 8 bits. */
static void gather_lo(struct block *block, struct gathering *gathering, size_t place)
{
    const struct planes *planes = block->segments[gathering->segment].planes;
    size_t head_dim = block->head_dim, cluster = place / PLANES_CLUSTER;
    if (!gathering->begun) {
        block_turn_exactly(block, gathering->segment);
        block_clear_state(block, &block->row);
        gathering->begun = true;
    }
    float *v = block->gather_v + gathering->count * head_dim;
    block->call->planes->row(&(struct plane_row_args){
        .key_hi = planes->key_hi, .value_hi = planes->value_hi, .lo = planes->lo,
        .key_scale = planes->key_scale, .value_scale = planes->value_scale, .place = place,
        .head_dim = head_dim, .k = block->gather_k + gathering->count * head_dim, .v = v });
    const int8_t *codes = planes->means + cluster * head_dim;
    for (size_t d = 0; d < head_dim; d++) v[d] += planes->mean_scale[cluster] * (float)codes[d];
    if (++gathering->count == BLOCK_GATHER) flush(block, gathering);
}

/* The exact row of a token, at once. */
static void read_exact(struct block *block, size_t p, size_t place)
{
    const struct view *view = block->segments[p].view;
    const struct rope *rope = block->call->args->base.attend.rope;
    size_t row = block->segments[p].planes->rows[place];
    if (!scan_admit((struct scan *)&block->call->scan, view, row, 1, VIEW_K | VIEW_V)) return;
    const unsigned char *k = (const unsigned char *)view->k + row * view->k_stride_bytes;
    struct partial_args args = { .q = block->q, .visible = block->visible, .queries = block->rows,
                                 .head_dim = block->head_dim, .k = k,
                                 .v = (const unsigned char *)view->v + row * view->v_stride_bytes,
                                 .k_stride_bytes = view->k_stride_bytes,
                                 .v_stride_bytes = view->v_stride_bytes, .tokens = 1,
                                 .k_dtype = view->dtype, .v_dtype = view->dtype,
                                 .max = block->exact.max, .sum = block->exact.sum,
                                 .acc = block->exact.acc };
    _Alignas(64) float turned[1024];
    if (rope != NULL) {
        block->call->backend->rotate(&(struct rotate_args){
            .rope = rope, .rows = k, .stride_bytes = view->k_stride_bytes, .dtype = view->dtype,
            .count = 1, .position = view->position + row, .out = turned });
        args.k = turned;
        args.k_dtype = DTYPE_FP32;
        args.k_stride_bytes = block->head_dim * sizeof *turned;
    }
    for (size_t m = 0; m < block->rows; m++) block->visible[m] = 1;
    block->call->backend->partial(&args);
}

/* Take token t of tile i out of what hi answers. removed (M, 64) gets its weights. */
static void take_out(struct block *block, const struct block_chunk *chunk, size_t i, size_t t,
                     float *removed)
{
    block->coded--;
    for (size_t m = 0; m < block->rows; m++) {
        float *weight = chunk->weights + (m * chunk->count + i) * PLANE_TILE + t;
        removed[m * PLANES_CLUSTERS + chunk->tiles[i]] += *weight;
        block->mass_open[m] -= (double)*weight;
        block->mass_removed[m] += (double)*weight;
        *weight = 0.0F;
    }
}

static bool has_lo(const struct block *block, size_t p, size_t place)
{
    const struct progressive_args *args = block->call->args;
    const struct block_segment *segment = &block->segments[p];
    if (segment->planes->lo == NULL || args->admit_lo == NULL) return segment->planes->lo != NULL;
    return args->admit_lo(args->base.attend.admit_arg, segment->view, place);
}

/* 0 leave, 1 read at 8 bits, 2 read exactly; what that will read is counted, what it will mend
 * taken from code_error, squared: other rows' tokens are refined for this one too. */
static uint8_t wanted_level(struct block *block, const struct block_chunk *chunk, size_t at,
                            const struct terms *terms, const struct refine_thresholds *thresholds)
{
    uint8_t level = 0;
    size_t t = at % PLANE_TILE;
    float term[BLOCK_ROWS], lo[BLOCK_ROWS];
    for (size_t m = 0; m < block->rows; m++) {
        float weight = chunk->weights[m * chunk->count * PLANE_TILE + at];
        term[m] = token_term(terms, m, t, weight, weight - terms->least[m]);
        lo[m] = token_term_lo(terms, m, t, weight);
        if (term[m] < thresholds->lo[m]) continue;
        bool exactly = term[m] >= thresholds->exact[m] || lo[m] > lo_helps * term[m];
        level = exactly || level == 2 ? 2 : 1;
    }
    if (level == 0) return 0;
    size_t place = (size_t)chunk->tiles[at / PLANE_TILE] * PLANE_TILE + t;
    if (level == 1 && !has_lo(block, chunk->segment, place)) level = 2;
    size_t dtype = dtype_bytes(block->segments[chunk->segment].view->dtype);
    size_t bytes = level == 1 ? block->head_dim : 2 * block->head_dim * dtype;
    if (block_bytes_left(block) < bytes) {
        block->limited = true;
        return 0;
    }
    block->level_rows[level == 1 ? INDEX_LO : INDEX_EXACT] += 2;
    block->level_bytes[level == 1 ? INDEX_LO : INDEX_EXACT] += bytes;
    for (size_t m = 0; m < block->rows; m++)
        block->code_error[m] -= (double)(level == 1 ? term[m] - lo[m] : term[m]);
    return level;
}

/* Ask for the low nibbles of a token. Its high ones were read a while ago. */
static void fetch_token(const struct block *block, size_t p, size_t place)
{
    const uint8_t *lo = block->segments[p].planes->lo;
    if (lo != NULL) block_fetch_lines(lo + place * block->head_dim, block->head_dim);
}

/* Tokens of tile i that some row wants refined, as bits: most are not, and finding those that are
 * has no branch for each of them. */
static uint32_t reaching_tokens(const struct block *block, const struct block_chunk *chunk,
                                size_t i, const struct terms *terms,
                                const struct refine_thresholds *thresholds)
{
    int32_t reaching[PLANE_TILE] = { 0 };
    uint32_t bits = 0;
    for (size_t m = 0; m < block->rows; m++) {
        const float *weights = chunk->weights + (m * chunk->count + i) * PLANE_TILE;
        float term[PLANE_TILE], least = thresholds->lo[m];
        if (chunk->tile_most[m * chunk->count + i] < least) continue;
        for (size_t t = 0; t < PLANE_TILE; t++)
            term[t] = token_term(terms, m, t, weights[t], weights[t] - terms->least[m]);
        for (size_t t = 0; t < PLANE_TILE; t++) reaching[t] |= !(term[t] < least);
    }
    for (size_t t = 0; t < PLANE_TILE; t++) bits |= (uint32_t)reaching[t] << t;
    return bits;
}

/* Levels (16) of the tokens of tile i. Is one of them to be refined? */
static bool choose_levels(struct block *block, const struct block_chunk *chunk, size_t i,
                          const struct refine_thresholds *thresholds, uint8_t *ret_levels)
{
    bool reached = false, any = false;
    for (size_t m = 0; m < block->rows; m++)
        reached |= chunk->tile_most[m * chunk->count + i] >= thresholds->lo[m];
    if ((chunk->quiet >> i & 1) != 0 || !reached) return false;
    struct terms terms;
    size_t place = (size_t)chunk->tiles[i] * PLANE_TILE;
    tile_terms(block, chunk, i, &terms);
    memset(ret_levels, 0, PLANE_TILE);
    uint32_t reaching = reaching_tokens(block, chunk, i, &terms, thresholds);
    for (; reaching != 0; reaching &= reaching - 1) {
        size_t t = (size_t)__builtin_ctz(reaching);
        ret_levels[t] = wanted_level(block, chunk, i * PLANE_TILE + t, &terms, thresholds);
        any |= ret_levels[t] != 0;
        if (ret_levels[t] == 1) fetch_token(block, chunk->segment, place + t);
    }
    return any;
}

static void refine_chunk(struct block *block, const struct block_chunk *chunk,
                         const struct refine_thresholds *thresholds)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    struct gathering gathering = { .segment = chunk->segment };
    float removed[BLOCK_ROWS * PLANES_CLUSTERS];
    uint8_t levels[PLANES_TOKENS];
    uint64_t which = 0, clusters = 0;
    for (size_t i = 0; i < chunk->count; i++) {
        bool any = choose_levels(block, chunk, i, thresholds, levels + i * PLANE_TILE);
        which |= (uint64_t)any << i;
        clusters |= (uint64_t)any << chunk->tiles[i];
    }
    if (which == 0) return;
    memset(removed, 0, block->rows * PLANES_CLUSTERS * sizeof *removed);
    block_weigh(block, chunk, which, block->removed);
    for (uint64_t tiles = which; tiles != 0; tiles &= tiles - 1) {
        size_t i = (size_t)__builtin_ctzll(tiles);
        for (size_t t = 0; t < PLANE_TILE; t++) {
            uint8_t level = levels[i * PLANE_TILE + t];
            size_t place = (size_t)chunk->tiles[i] * PLANE_TILE + t;
            if (level == 0) continue;
            take_out(block, chunk, i, t, removed);
            if (level == 1) gather_lo(block, &gathering, place);
            else read_exact(block, chunk->segment, place);
        }
    }
    block_weigh(block, chunk, which, block->residual);
    end_segment(block, &gathering);
    block->call->planes->means(&(struct plane_means_args){
        .clusters = clusters, .mass = removed, .means = planes->means,
        .scale = planes->mean_scale, .queries = block->rows, .head_dim = block->head_dim,
        .acc = block->removed });
}

void block_refine(struct block *block)
{
    float *sums = block->histogram;
    struct refine_thresholds thresholds;
    struct units units;
    double quiet[BLOCK_ROWS] = { 0.0 };
    bool any = false;
    units_init(block, &units);
    if (!bound_tiles(block, &units)) {
        for (size_t m = 0; m < block->rows; m++)
            block->code_error[m] = sqrt(quiet_of_bound * units.bound[m]);
        return;
    }
    collect(block, &units, sums, quiet);
    for (size_t m = 0; m < block->rows; m++) {
        double target = (double)block->call->target, least = 0.25 * target * target;
        double budget = fmax(units.budget[m] - quiet[m], 0.1 * least);
        block->code_error[m] =
            quiet[m] + set_thresholds(sums + m * BLOCK_BINS, block_bin(units.small), budget,
                                      &thresholds.lo[m], &thresholds.exact[m]);
        any |= thresholds.lo[m] < INFINITY;
    }
    for (size_t i = 0; any && i < block->chunk_count; i++)
        refine_chunk(block, &block->chunks[i], &thresholds);
    for (size_t m = 0; m < block->rows; m++)
        block->code_error[m] = sqrt(fmax(block->code_error[m], 0.0));
}
