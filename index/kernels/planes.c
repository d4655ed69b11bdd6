/* SPDX-License-Identifier: Apache-2.0 */
/* planes.c — reference and oracle of planes.cu: double sums, from the references of the CPU's own
 * kernels and the reference decoder of planes.h.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "index/index.h"
#include "index/kernels/encode.h"
#include "index/kernels/plane.h"
#include "index/kernels/planes_launch.h"

static const double lo_share = 1.0 / 256.0; /* of hi's error, squared */

/* The run's planes, unchecked. */
static void open_run(const struct planes_launch *args, const struct planes_run *run,
                     struct planes *ret_planes)
{
    const struct planes_layout *layout = &args->layout;
    const unsigned char *hi = run->hi;
    *ret_planes = (struct planes){
        .balance = (const float *)(const void *)(hi + layout->balance),
        .key_mean = (const float *)(const void *)(hi + layout->key_mean),
        .rows = (const uint16_t *)(const void *)(hi + layout->rows),
        .centroid_scale = (const float *)(const void *)(hi + layout->centroid_scale),
        .mean_scale = (const float *)(const void *)(hi + layout->mean_scale),
        .value_spread = (const float *)(const void *)(hi + layout->value_spread),
        .centroids = hi + layout->centroids,
        .means = (const int8_t *)(const void *)(hi + layout->means),
        .key_scale = (const uint16_t *)(const void *)(hi + layout->key_scale),
        .value_scale = (const uint16_t *)(const void *)(hi + layout->value_scale),
        .key_hi = hi + layout->key_hi,
        .value_hi = hi + layout->value_hi,
        .lo = run->lo,
    };
}

/* rows (count, D) by the rotation of codes, or its inverse */
static void rotate(const struct planes_launch *args, float *rows, size_t count, bool invert)
{
    encode_rotate_ref(&(struct encode_rotate_args){
        .rows = rows, .count = count, .head_dim = args->head_dim,
        .signs = { args->signs, args->signs + 128 }, .invert = invert });
}

static void score_run(const struct planes_launch *args, uint32_t at)
{
    const struct planes_run *run = &args->runs[at];
    uint32_t dims = args->head_dim;
    float turned[LAUNCH_QUERIES * LAUNCH_HEAD_DIM], scale[LAUNCH_QUERIES], offset[LAUNCH_QUERIES];
    float deviation[LAUNCH_QUERIES], centre[LAUNCH_QUERIES * PLANES_CLUSTERS];
    int8_t q8[LAUNCH_QUERIES * LAUNCH_HEAD_DIM];
    int32_t sum[LAUNCH_QUERIES];
    struct planes planes;
    open_run(args, run, &planes);
    plane_turn_ref(&(struct plane_turn_args){
        .q = args->q + (size_t)run->query * dims, .balance = planes.balance,
        .key_mean = planes.key_mean, .signs = { args->signs, args->signs + 128 },
        .queries = run->queries, .head_dim = dims, .turned = turned, .q8 = q8, .scale = scale,
        .offset = offset, .deviation = deviation, .square = args->square + at * LAUNCH_QUERIES,
        .sum = sum });
    struct plane_queries queries = { q8, scale, offset, sum, run->queries, dims };
    plane_centroid_ref(&(struct plane_centroid_args){
        .queries = &queries, .centroids = planes.centroids, .scale = planes.centroid_scale,
        .scores = centre });
    float *scores = args->scores + (size_t)at * LAUNCH_QUERIES * PLANES_TOKENS;
    plane_score_ref(&(struct plane_score_args){
        .queries = &queries, .key_hi = planes.key_hi, .key_scale = planes.key_scale,
        .count = PLANES_CLUSTERS, .stride = PLANES_TOKENS, .scores = scores });
    for (size_t i = 0; i < (size_t)run->queries * PLANES_CLUSTERS; i++) {
        float *tile = scores + i * PLANES_CLUSTER;
        const uint16_t *steps = planes.key_scale + i % PLANES_CLUSTERS * PLANES_CLUSTER;
        double excess = -(double)centre[i] * PLANES_CLUSTER, squares = 0.0;
        for (size_t t = 0; t < PLANES_CLUSTER; t++) {
            double step = (double)half_from_fp16(steps[t]);
            excess += (double)tile[t];
            squares += step * step;
        }
        for (size_t t = 0; squares > 0.0 && t < PLANES_CLUSTER; t++) {
            double step = (double)half_from_fp16(steps[t]);
            tile[t] = (float)((double)tile[t] - excess * (step * step / squares));
        }
    }
    memset(args->levels + (size_t)at * PLANES_TOKENS, PLANES_AT_HI, PLANES_TOKENS);
    args->picked[at] = 0;
}

void planes_score_ref(const struct planes_launch *args)
{
    for (uint32_t at = 0; at < args->count; at++) score_run(args, at);
    memset(args->histogram, 0, (size_t)args->queries * PLANES_BINS * sizeof *args->histogram);
}

/* Weights of the tokens at hi, over the largest, of query row m. ret_weights (1024) */
static double weigh_tokens(const struct planes_launch *args, uint32_t at, uint32_t m,
                           double *ret_weights, double *ret_max)
{
    const float *scores =
        args->scores + ((size_t)at * LAUNCH_QUERIES + m) * PLANES_TOKENS;
    const uint8_t *levels = args->levels + (size_t)at * PLANES_TOKENS;
    double max = -INFINITY, sum = 0.0;
    for (size_t p = 0; p < PLANES_TOKENS; p++)
        if (levels[p] == PLANES_AT_HI) max = fmax(max, (double)scores[p]);
    for (size_t p = 0; p < PLANES_TOKENS; p++) {
        ret_weights[p] = levels[p] == PLANES_AT_HI ? exp((double)scores[p] - max) : 0.0;
        sum += ret_weights[p];
    }
    *ret_max = max;
    return sum;
}

static double least_of_tile(const double *values)
{
    double least = values[0];
    for (size_t t = 1; t < PLANES_CLUSTER; t++) least = fmin(least, values[t]);
    return least;
}

static int value_code(const struct planes *planes, size_t dims, size_t place, size_t d)
{
    size_t i = place % PLANES_CLUSTER;
    const uint8_t *tile = planes->value_hi + place / PLANES_CLUSTER * PLANES_CLUSTER * dims / 2;
    uint8_t byte = tile[(i / 8 * dims + d) * 4 + i % 4];
    return i % 8 < 4 ? byte & 15 : byte >> 4;
}

static void weigh_row(const struct planes_launch *args, uint32_t at, uint32_t m)
{
    const struct planes_run *run = &args->runs[at];
    size_t dims = args->head_dim;
    double weights[PLANES_TOKENS], max = 0.0;
    float *o = args->o + (size_t)(run->result + m) * dims;
    struct planes planes;
    open_run(args, run, &planes);
    double sum = weigh_tokens(args, at, m, weights, &max);
    for (size_t d = 0; d < dims; d++) {
        double value = 0.0;
        for (size_t p = 0; p < PLANES_TOKENS; p++) {
            size_t c = p / PLANES_CLUSTER;
            double mean = (double)planes.mean_scale[c] * (double)planes.means[c * dims + d];
            double fine = weights[p] - least_of_tile(weights + c * PLANES_CLUSTER);
            double step = (double)half_from_fp16(planes.value_scale[p]);
            value += weights[p] * mean +
                     fine * step * ((double)value_code(&planes, dims, p, d) - 7.5);
        }
        o[d] = sum > 0.0 ? (float)(value / sum) : 0.0F;
    }
    rotate(args, o, 1, true);
    args->lse[run->result + m] = sum > 0.0 ? (float)(max + log(sum)) : -INFINITY;
}

void planes_weigh_ref(const struct planes_launch *args)
{
    for (uint32_t at = 0; at < args->count; at++)
        for (uint32_t m = 0; m < args->runs[at].queries; m++)
            if (args->again == 0 || args->picked[at] > 0) weigh_row(args, at, m);
}

/* e² of all tokens of a run for query row m. ret_errors (1024) */
static void errors_of(const struct planes_launch *args, uint32_t at, uint32_t m,
                      double *ret_errors)
{
    const struct planes_run *run = &args->runs[at];
    size_t dims = args->head_dim;
    const float *scores = args->scores + ((size_t)at * LAUNCH_QUERIES + m) * PLANES_TOKENS;
    double lse = (double)args->total_lse[run->query + m], shares[PLANES_TOKENS], square = 0.0;
    float total[LAUNCH_HEAD_DIM];
    struct planes planes;
    open_run(args, run, &planes);
    memcpy(total, args->total_o + (size_t)(run->query + m) * dims, dims * sizeof *total);
    rotate(args, total, 1, false);
    for (size_t d = 0; d < dims; d++) square += (double)total[d] * (double)total[d];
    for (size_t p = 0; p < PLANES_TOKENS; p++)
        shares[p] = lse > -INFINITY ? exp((double)scores[p] - lse) : 0.0;
    for (size_t p = 0; p < PLANES_TOKENS; p++) {
        size_t c = p / PLANES_CLUSTER;
        double distance = (double)planes.value_spread[c];
        for (size_t d = 0; d < dims; d++) {
            double mean = (double)planes.mean_scale[c] * (double)planes.means[c * dims + d];
            distance += (mean - (double)total[d]) * (mean - (double)total[d]);
        }
        double key = (double)half_from_fp16(planes.key_scale[p]);
        double value = (double)half_from_fp16(planes.value_scale[p]);
        double uneven = shares[p] - least_of_tile(shares + c * PLANES_CLUSTER);
        double moved = shares[p] * shares[p] * (double)args->square[at * LAUNCH_QUERIES + m] *
                           key * key * distance +
                       uneven * uneven * (double)dims * value * value;
        ret_errors[p] = square > 0.0 ? moved / (12.0 * square) : 0.0;
    }
}

static uint32_t bin_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 21;
}

static float least_of_bin(uint32_t bin)
{
    uint32_t bits = bin << 21;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void planes_judge_ref(const struct planes_launch *args)
{
    double target = (double)args->target, errors[PLANES_TOKENS];
    double quiet = 0.1 * target * target / ((double)args->count * PLANES_TOKENS);
    for (uint32_t at = 0; at < args->count; at++) {
        const struct planes_run *run = &args->runs[at];
        for (uint32_t m = 0; m < run->queries; m++) {
            unsigned long long *bins = args->histogram + (size_t)(run->query + m) * PLANES_BINS;
            errors_of(args, at, m, errors);
            for (size_t p = 0; p < PLANES_TOKENS; p++)
                if (errors[p] >= quiet) bins[bin_of((float)errors[p])]++;
        }
    }
}

/* What the tokens of a bin count: by its middle. */
static double bin_sum(const unsigned long long *bins, uint32_t bin)
{
    return bins[bin] == 0 ? 0.0 : (double)bins[bin] * 1.125 * (double)least_of_bin(bin);
}

void planes_choose_ref(const struct planes_launch *args)
{
    double budget = 0.9 * (double)args->target * (double)args->target;
    for (uint32_t row = 0; row < args->queries; row++) {
        const unsigned long long *bins = args->histogram + (size_t)row * PLANES_BINS;
        double all = 0.0, coded = 0.0, below = 0.0;
        uint32_t exact = 0, lo = 0;
        for (uint32_t bin = 0; bin < PLANES_BINS; bin++) all += bin_sum(bins, bin);
        while (exact < PLANES_BINS && coded + bin_sum(bins, exact) <= 0.5 * budget / lo_share)
            coded += bin_sum(bins, exact++);
        while (lo < exact) {
            double more = below + bin_sum(bins, lo);
            if (more + (coded - more) * lo_share > budget) break;
            below = more;
            lo++;
        }
        bool enough = all <= budget, none = enough || exact == PLANES_BINS;
        args->thresholds[2 * row] = enough ? INFINITY : least_of_bin(lo);
        args->thresholds[2 * row + 1] = none ? INFINITY : least_of_bin(exact);
    }
}

/* The level that a token is to have, as far as it can. */
static enum planes_level level_of(const struct planes_run *run, enum planes_level wanted,
                                  uint32_t lo)
{
    bool can_lo = run->lo != NULL && lo < PLANES_LO_ROWS, can_exact = run->rows.k != NULL;
    if (wanted == PLANES_AT_HI) return PLANES_AT_HI;
    if (wanted == PLANES_AT_LO && can_lo) return PLANES_AT_LO;
    if (can_exact) return PLANES_AT_EXACT;
    return can_lo ? PLANES_AT_LO : PLANES_AT_HI;
}

static void pick_run(const struct planes_launch *args, uint32_t at)
{
    const struct planes_run *run = &args->runs[at];
    uint8_t *levels = args->levels + (size_t)at * PLANES_TOKENS;
    double errors[LAUNCH_QUERIES][PLANES_TOKENS];
    uint32_t lo = 0, exact = 0;
    struct planes planes;
    open_run(args, run, &planes);
    for (uint32_t m = 0; m < run->queries; m++) {
        errors_of(args, at, m, errors[m]);
        args->left[at * LAUNCH_QUERIES + m] = 0.0F;
    }
    for (uint32_t p = 0; p < PLANES_TOKENS; p++) {
        enum planes_level wanted = PLANES_AT_HI;
        for (uint32_t m = 0; m < run->queries; m++) {
            const float *thresholds = args->thresholds + 2 * (size_t)(run->query + m);
            if (errors[m][p] >= (double)thresholds[1]) wanted = PLANES_AT_EXACT;
            else if (errors[m][p] >= (double)thresholds[0] && wanted == PLANES_AT_HI)
                wanted = PLANES_AT_LO;
        }
        levels[p] = (uint8_t)level_of(run, wanted, lo);
        if (levels[p] == PLANES_AT_LO)
            args->lo_places[at * PLANES_LO_ROWS + lo++] = (uint16_t)p;
        if (levels[p] == PLANES_AT_EXACT)
            args->exact_ids[(size_t)at * PLANES_TOKENS + exact++] = planes.rows[p];
        double stays = levels[p] == PLANES_AT_HI ? 1.0 : levels[p] == PLANES_AT_LO ? lo_share : 0.0;
        for (uint32_t m = 0; m < run->queries; m++)
            args->left[at * LAUNCH_QUERIES + m] += (float)(stays * errors[m][p]);
    }
    args->picked[at] = lo + exact;
    args->lo_runs[at].count = lo;
    args->exact_runs[at].count = exact;
}

void planes_pick_ref(const struct planes_launch *args)
{
    for (uint32_t at = 0; at < args->count; at++) pick_run(args, at);
}

void planes_decode_ref(const struct planes_launch *args)
{
    for (uint32_t at = 0; at < args->count; at++) {
        struct planes planes;
        open_run(args, &args->runs[at], &planes);
        for (uint32_t row = 0; row < args->lo_runs[at].count; row++) {
            size_t to = ((size_t)at * PLANES_LO_ROWS + row) * 2 * args->head_dim;
            planes_decode(&args->layout, &planes, args->lo_places[at * PLANES_LO_ROWS + row],
                          INDEX_LO, args->decoded + to, args->decoded + to + args->head_dim);
        }
    }
}
