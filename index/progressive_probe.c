/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_probe.c — how wrong are the clusters that stayed shut? Ask a sample of them.
 *
 * The error of an answer from shut clusters is a sum of vectors, one per cluster,
 *
 *     e_c = (M_c - R W_c) (v_c - o) + Σ_i w_i r_i          (over Z)
 *
 * M_c the true mass, W_c the estimate, v_c the mean value, r_i a value's residual to it. No model
 * of its size held on real keys: in the first, diffuse layers keys and values of a cluster vary
 * together in the same way everywhere, the vectors add up, and a sum of variances is 12 times too
 * small; elsewhere they cancel. So the sum is *estimated*: S clusters are drawn with chances pi_c
 * in proportion to their priority, read as if they were open, and y = e / pi averaged. That mean is
 * unbiased whatever the keys are (Horvitz-Thompson), its own variance N is known from the spread of
 * the y, and so
 *
 *     |Σ e|² ≈ U = |mean y|² - N                  (at least Σ pi |e|²/pi², were they independent)
 *
 * is a prediction without a fitted constant. Two things more come from the same reads: R, the mass
 * that the shut clusters really have over what was estimated, and a correction: adding lambda
 * mean y with lambda = U / (U + N) (Stein's shrinkage) leaves an error of U N / (U + N), in diffuse
 * heads a third of what it was. The answer is then importance sampling with the clusters as control
 * variate; MagicPIG (arXiv 2410.16179) samples tokens without one.
 *
 * Masses have a lambda of their own. They are often wrong in the same direction where the answers
 * of clusters are wrong at random, and it is by its mass that an engine weighs this answer against
 * its own window.
 *
 * Drawn systematically (one pass, even distances), from the mean of the query rows' chances, so
 * that all rows of the block share the sample. Measured: docs/decisions/0032.
 */
#include <math.h>
#include <string.h>

#include "index/backend.h"
#include "index/progressive_block.h"

enum {
    LANES = 4,
    DRAWS_LEAST = 4,
    AHEAD = 4, /* probes that are asked for before they are read */
};

/* Scores above the shift at most: (16 e^24)² times the square of any fp16 value is a finite float,
 * and what is so far above is nearly all of the answer anyway. */
static const float probe_slack = 24.0F;

/* Sum over rows of priority / all shut priority, for 64 clusters; 0 for those with values. Returns
 * their sum. */
static double chances(const struct block *block, size_t p, const float *inverse, float *ret_chance)
{
    float sums[LANES] = { 0 };
    memset(ret_chance, 0, PLANES_CLUSTERS * sizeof *ret_chance);
    if (block->segments[p].blank) return 0.0;
    for (size_t m = 0; m < block->rows; m++) {
        const float *priority = block->priority + (p * block->rows + m) * PLANES_CLUSTERS;
        for (size_t c = 0; c < PLANES_CLUSTERS; c++) ret_chance[c] += priority[c] * inverse[m];
    }
    for (uint64_t valued = block->segments[p].valued; valued != 0; valued &= valued - 1)
        ret_chance[__builtin_ctzll(valued)] = 0.0F;
    for (size_t c = 0; c < PLANES_CLUSTERS; c += LANES)
        for (size_t lane = 0; lane < LANES; lane++) sums[lane] += ret_chance[c + lane];
    return ((double)sums[0] + (double)sums[1]) + ((double)sums[2] + (double)sums[3]);
}

/* That sum alone. Of a segment that nothing was read of it is known. */
static double chance_of_segment(const struct block *block, size_t p, const float *inverse)
{
    float chance[PLANES_CLUSTERS];
    if (block->segments[p].blank) return 0.0;
    if (block->segments[p].opened != 0) return chances(block, p, inverse, chance);
    double sum = 0.0;
    for (size_t m = 0; m < block->rows; m++)
        sum += (double)(block->priority_sum[p * block->rows + m] * inverse[m]);
    return sum;
}

/* Where next to nothing is left of all priorities, the running difference is but rounding: summed
 * anew. */
static double shut_priority(const struct block *block, size_t m)
{
    if (block->priority_shut[m] > 1e-8 * block->priority_all[m]) return block->priority_shut[m];
    double sum = 0.0;
    for (size_t p = 0; p < block->segment_count; p++) {
        if (block->segments[p].blank) continue;
        const float *priority = block->priority + (p * block->rows + m) * PLANES_CLUSTERS;
        for (uint64_t shut = ~block->segments[p].valued; shut != 0; shut &= shut - 1)
            sum += (double)priority[__builtin_ctzll(shut)];
    }
    return sum;
}

/* `most` draws more, evenly between those of the first half of the sample if there are any; probes
 * as they are when there is nothing to draw from. */
static void draw(struct block *block, size_t most)
{
    float inverse[BLOCK_ROWS], chance[PLANES_CLUSTERS];
    double total = 0.0;
    for (size_t m = 0; m < block->rows; m++) {
        double shut = block->priority_shut[m] = shut_priority(block, m);
        inverse[m] = shut > 1e-30 ? (float)(1.0 / shut) : 0.0F;
        total += shut > 1e-30 ? 1.0 : 0.0;
    }
    size_t shut = block_shut_count(block), draws = shut / 8 < most ? shut / 8 : most;
    if (shut == 0 || total == 0.0) return;
    if (draws < DRAWS_LEAST) draws = DRAWS_LEAST;
    double step = total / (double)draws, before = 0.0;
    double next = block->draws == 0 ? 0.25 * step : 0.75 * step;
    for (size_t p = 0; p < block->segment_count; p++) {
        double sum = before;
        before += chance_of_segment(block, p, inverse);
        if (next > before) continue;
        (void)chances(block, p, inverse, chance);
        for (size_t c = 0; c < PLANES_CLUSTERS && next <= before; c++) {
            sum += (double)chance[c];
            if (sum < next || chance[c] == 0.0F) continue;
            struct block_probe *probe = &block->probes[block->probe_count++];
            *probe = (struct block_probe){ .segment = p, .cluster = c,
                                           .chance = (double)chance[c] / total };
            while (next <= sum) {
                probe->draws++;
                next += step;
            }
            block->draws += probe->draws;
            if (block->probe_count == BLOCK_PROBES) return;
        }
    }
}

/* Ask for the codes of probe i. */
static void fetch_probe(const struct block *block, size_t i)
{
    if (i >= block->probe_count) return;
    const struct block_probe *probe = &block->probes[i];
    block_fetch(block, probe->segment, UINT64_C(1) << probe->cluster);
}

/* Read probe i: its mass, its Σ w r of residuals and its mean value. */
static void read_probe(struct block *block, size_t i)
{
    const struct block_probe *probe = &block->probes[i];
    const struct planes *planes = block->segments[probe->segment].planes;
    const struct plane_backend *kernels = block->call->planes;
    size_t rows = block->rows, head_dim = block->head_dim;
    uint16_t tile = (uint16_t)probe->cluster;
    _Alignas(64) float weights[BLOCK_ROWS * PLANE_TILE], centres[BLOCK_ROWS * PLANES_CLUSTERS];
    float shares[PLANE_TILE], square[BLOCK_ROWS], *sum = block->probe_masses + i * rows;
    struct plane_queries queries = block_plane_queries(block, probe->segment);
    kernels->score(&(struct plane_score_args){
        .queries = &queries, .key_hi = planes->key_hi, .key_scale = planes->key_scale,
        .tiles = &tile, .count = 1, .stride = PLANE_TILE, .scores = weights });
    uint64_t cluster = UINT64_C(1) << probe->cluster;
    const float *centre = block_centres(block, probe->segment, cluster, centres) + tile;
    block_centre_shares(planes->key_scale + tile * PLANE_TILE, shares);
    for (size_t m = 0; m < rows; m++) {
        float most = block->shift[m] + probe_slack;
        block_centre_tile(weights + m * PLANE_TILE, centre[m * PLANES_CLUSTERS], shares);
        for (size_t t = 0; t < PLANE_TILE; t++) {
            float *score = &weights[m * PLANE_TILE + t];
            *score = *score < most ? *score : most;
        }
    }
    kernels->soften(&(struct plane_soften_args){
        .scores = weights, .shift = block->shift, .queries = rows, .count = 1,
        .stride = PLANE_TILE, .tile_sum = sum, .tile_square = square });
    float *mean = block->probe_means + i * head_dim;
    const int8_t *codes = planes->means + probe->cluster * head_dim;
    float scale = planes->mean_scale[probe->cluster];
    for (size_t d = 0; d < head_dim; d++) mean[d] = scale * (float)codes[d];
    float *values = block->probe_values + i * rows * head_dim;
    memset(values, 0, rows * head_dim * sizeof *values);
    struct block_chunk one = { .segment = probe->segment, .count = 1, .tiles = &tile,
                               .weights = weights };
    block_weigh(block, &one, 1, values);
}

static float estimated_mass(const struct block *block, const struct block_probe *probe, size_t m)
{
    if ((block->segments[probe->segment].dropped >> probe->cluster & 1) != 0) return 0.0F;
    return block->mass[(probe->segment * block->rows + m) * PLANES_CLUSTERS + probe->cluster];
}

/* What rounding of its mean value makes of the answer's error by probe i, squared: independent from
 * cluster to cluster, and in no sample, whose residuals are to the rounded mean. */
static double rounding_of(const struct block *block, size_t i, size_t m)
{
    const struct block_probe *probe = &block->probes[i];
    const struct planes *planes = block->segments[probe->segment].planes;
    double mass = (double)block->probe_masses[i * block->rows + m];
    return mass * mass * (double)block_mean_rounding(block, planes, probe->cluster);
}

/* e_c of all probes for row m, not yet over Z |o|: their sum, by what `weight` says of each, to the
 * correction; squares (probe_count). With the values of its tokens as mean value and residuals,
 * e_c = (M - W)(v_c - o) + Σ w r. */
static void miss_probes(struct block *block, size_t m, const float *more, const float *weight,
                        float *ret_squares)
{
    size_t head_dim = block->head_dim;
    block->call->planes->miss(&(struct plane_miss_args){
        .values = block->probe_values + m * head_dim, .means = block->probe_means,
        .output = block->output + m * head_dim, .more = more, .weight = weight,
        .count = block->probe_count, .stride = block->rows * head_dim, .head_dim = head_dim,
        .sum = block->correction + m * head_dim, .square = ret_squares });
}

static double square_of(const float *x, size_t head_dim)
{
    double sums[LANES] = { 0.0 };
    for (size_t d = 0; d < head_dim; d += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            sums[lane] += (double)x[d + lane] * (double)x[d + lane];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* The square of a mean of draws: what of it is not noise, at least what independent terms make. */
struct belief {
    double signal, noise;
};

static struct belief believe(double mean_square, double squares, double independent, double draws)
{
    double noise = fmax(squares - mean_square, 0.0) / fmax(draws - 1.0, 1.0);
    return (struct belief){ fmax(mean_square - noise, independent), noise };
}

/* Stein's factor. */
static double belief_share(const struct belief *belief)
{
    double sum = belief->signal + belief->noise;
    return sum > 0.0 ? belief->signal / sum : 0.0;
}

/* Prediction and correction of row m. */
static void judge(struct block *block, size_t m)
{
    size_t head_dim = block->head_dim;
    const float *output = block->output + m * head_dim;
    float more[BLOCK_PROBES], weight[BLOCK_PROBES], square[BLOCK_PROBES];
    double draws = (double)block->draws, squares = 0.0, independent = 0.0;
    double mass = 0.0, mass_squares = 0.0, mass_independent = 0.0, rounding = 0.0;
    for (size_t i = 0; i < block->probe_count; i++) {
        const struct block_probe *probe = &block->probes[i];
        double each = (double)probe->draws / draws / probe->chance;
        more[i] = block->probe_masses[i * block->rows + m] - estimated_mass(block, probe, m);
        weight[i] = (float)each;
        double moved = each * (double)more[i];
        mass += moved;
        mass_independent += moved * (double)more[i];
        mass_squares += moved * (double)more[i] / probe->chance;
        rounding += each * rounding_of(block, i, m);
    }
    miss_probes(block, m, more, weight, square);
    for (size_t i = 0; i < block->probe_count; i++) {
        const struct block_probe *probe = &block->probes[i];
        double each = (double)probe->draws / draws / probe->chance * (double)square[i];
        independent += each;
        squares += each / probe->chance;
    }
    float *correction = block->correction + m * head_dim;
    struct belief answer = believe(square_of(correction, head_dim), squares, independent, draws);
    struct belief masses = believe(mass * mass, mass_squares, mass_independent, draws);
    double lambda = belief_share(&answer), unit = block->total[m] * block->norm[m];
    block->shut_error[m] = unit > 0.0 ? sqrt(lambda * answer.noise + rounding) / unit : 0.0;
    mass = fmax(belief_share(&masses) * mass, -0.9 * block->mass_shut[m]);
    block->correction_mass[m] = mass;
    for (size_t d = 0; d < head_dim; d++)
        correction[d] = (float)(lambda * (double)correction[d] + mass * (double)output[d]);
}

void block_probe(struct block *block, size_t draws, bool more)
{
    size_t tile_bytes = 2 * block_plane_bytes(block);
    uint64_t affordable = block_bytes_left(block) / (tile_bytes + block_centre_bytes(block));
    if (!more) block->probe_count = block->draws = 0;
    size_t before = block->probe_count;
    draw(block, affordable < draws ? (size_t)affordable : draws);
    for (size_t i = before; i < before + AHEAD; i++) fetch_probe(block, i);
    for (size_t i = before; i < block->probe_count; i++) {
        fetch_probe(block, i + AHEAD);
        read_probe(block, i);
    }
    size_t fresh = block->probe_count - before;
    block->level_rows[INDEX_HI] += fresh * PLANES_CLUSTER * 2;
    block->level_bytes[INDEX_HI] += fresh * tile_bytes;
    if (block->draws > 0)
        for (size_t m = 0; m < block->rows; m++) judge(block, m);
}
