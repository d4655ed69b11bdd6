/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_block.c — the flow of one block, from exact rows to the answer.
 *
 * 1. Rows without planes, or that some query of the block does not see, are read exactly.
 * 2. The centroids of all clusters are scored. Where clusters look useless by a sample of the
 *    segments, everything is read exactly. Otherwise a few are opened by a first guess; then a
 *    sample of the shut ones says how wrong they are together, and as many more are opened as that
 *    error is too large: it falls about in proportion to the priorities left shut. One round or two
 *    mostly, four at most.
 * 3. Tokens whose codes matter too much are refined.
 * 4. Everything is joined.
 *
 * The two errors add up in the square: shut clusters may use shut_share of the target, codes what
 * is left of it.
 *
 *     answer Z = exact + refined + base + residual - removed + correction Z
 *
 * base: mean values of all clusters, by W or, of opened ones, by their tokens' weights (W is at
 * most e² times that, so that exchanging one for the other in a sum costs no digits); residual:
 * V-hi; removed: both, of tokens that were refined (where that takes the digits with it,
 * everything is read exactly).
 *
 * Rejected: opening clusters segment by segment (those of a context compete with each other); a
 * fixed share of them (layers differ by 100×).
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/kernels/partial.h"
#include "base/tensor.h"
#include "index/backend.h"
#include "index/progressive_block.h"
#include "index/rotation.h"

enum {
    SINKS = 4,         /* tokens */
    SAMPLED = 8,       /* of so many segments, one is asked whether clusters are worth it */
    SAMPLED_FROM = 24, /* segments */
    LOOKED = 32,       /* segments that are asked at most */
    REFINED = 3, /* times at most */
    LANES = 4,   /* sums side by side */
};

static const double shut_share = 0.9;   /* of the target, for shut clusters */
static const double aim = 0.95;         /* of that, when clusters are opened */
static const double first_guess = 0.1; /* error per priority left shut, before any sample */
static const double digits_lost = 1e-6; /* of what was taken out of sums of floats, at most */
static const double units_alike = 2.0;    /* what errors are relative to, before and after */
static const double shut_slack = 1.5;     /* of the target, without opening more */
static const double sampled_fully = 0.05; /* targets up to here get the whole sample */

uint64_t block_bytes_left(const struct block *block)
{
    uint64_t used = 0;
    for (size_t level = 0; level < INDEX_LEVELS; level++) used += block->level_bytes[level];
    return used < block->call->block_bytes ? block->call->block_bytes - used : 0;
}

size_t block_query(const struct block *block, size_t m)
{
    return (block->first + m) / block->call->scan.group;
}

void block_clear_state(const struct block *block, const struct block_state *state)
{
    memset(state->acc, 0, block->rows * block->head_dim * sizeof *state->acc);
    for (size_t m = 0; m < block->rows; m++) {
        state->max[m] = -INFINITY;
        state->sum[m] = 0.0F;
    }
}

/* Attention over rows begin … end-1 of the scan, exactly. */
static void read_rows(struct block *block, size_t begin, size_t end)
{
    struct scan *scan = (struct scan *)&block->call->scan;
    struct scan_run run;
    struct partial_args args = { .q = block->q, .visible = block->visible, .queries = block->rows,
                                 .head_dim = block->head_dim, .max = block->exact.max,
                                 .sum = block->exact.sum, .acc = block->exact.acc };
    scan_open(block->cursor, scan, block->kv_head, begin, end);
    while (scan_next(block->cursor, &run)) {
        for (size_t m = 0; m < block->rows; m++)
            block->visible[m] = scan_visible(scan, block_query(block, m), &run);
        args.k = run.k;
        args.v = run.v;
        args.k_stride_bytes = run.k_stride_bytes;
        args.v_stride_bytes = run.v_stride_bytes;
        args.k_dtype = run.k_dtype;
        args.v_dtype = run.v_dtype;
        args.tokens = run.rows;
        block->call->backend->partial(&args);
        block->level_rows[INDEX_EXACT] += 2 * run.rows;
        block->level_bytes[INDEX_EXACT] += 2 * run.rows * block->head_dim *
                                           dtype_bytes(run.v_dtype);
    }
}

static uint64_t least_limit(const struct block *block)
{
    const struct scan *scan = &block->call->scan;
    uint64_t least = UINT64_MAX;
    for (size_t m = 0; m < block->rows; m++) {
        uint64_t limit = scan->args->limits[scan->first + block_query(block, m)];
        if (limit < least) least = limit;
    }
    return least;
}

void block_sort_views(struct block *block,
                      void (*read)(struct block *block, size_t begin, size_t end))
{
    const struct progressive_args *args = block->call->args;
    const struct attend_args *attend = &args->base.attend;
    const struct view *views = attend->views + block->kv_head * attend->view_count;
    const struct planes *const *planes = args->planes + block->kv_head * attend->view_count;
    uint64_t visible = least_limit(block), limit = block->call->scan.limit_max;
    size_t row = 0, exact_from = 0;
    for (size_t i = 0; i < attend->view_count; i++) {
        const struct view *view = &views[i];
        size_t tokens = limit <= view->position ? 0 : view->tokens;
        if (tokens > limit - view->position) tokens = (size_t)(limit - view->position);
        if (planes[i] != NULL && view->position + view->tokens <= visible) {
            assert(view->tokens == PLANES_TOKENS);
            block->segments[block->segment_count++] =
                (struct block_segment){ .planes = planes[i], .view = view };
            if (row > exact_from) read(block, exact_from, row);
            exact_from = row + tokens;
        }
        row += tokens;
    }
    if (row > exact_from) read(block, exact_from, row);
}

/* What the parts of row m's answer are multiplied with. */
struct part_scales {
    double exact, refined, either; /* the last: of clusters and codes, 1 or 0 */
};

/* The sum of the parts of row m times `inverse`, to output; its square. */
static double sum_row(const struct block *block, size_t m, const struct part_scales *scales,
                      double inverse)
{
    size_t at = m * block->head_dim;
    const float *exact = block->exact_turned + at, *refined = block->refined.acc + at;
    const float *correction = block->correction + at, *base = block->base + at;
    const float *removed = block->removed + at, *residual = block->residual + at;
    float *output = block->output + at;
    double squares[LANES] = { 0.0 };
    for (size_t d = 0; d < block->head_dim; d += LANES)
        for (size_t i = d; i < d + LANES; i++) {
            double sum = (double)exact[i] * scales->exact + (double)refined[i] * scales->refined +
                         (double)correction[i] +
                         scales->either * ((double)base[i] - (double)removed[i] +
                                           (double)residual[i]);
            output[i] = (float)(sum * inverse);
            squares[i - d] += sum * inverse * sum * inverse;
        }
    return (squares[0] + squares[1]) + (squares[2] + squares[3]);
}

void block_sum_up(struct block *block)
{
    for (size_t m = 0; m < block->rows; m++) {
        const struct block_state *exact = &block->exact, *refined = &block->refined;
        double shut = block->mass_shut[m] > 0.0 ? 1.0 : 0.0; /* else rounding is left of it */
        double coded = block->coded > 0 ? 1.0 : 0.0; /* the same */
        struct part_scales scales = {
            .exact = exp((double)exact->max[m] - (double)block->shift[m]),
            .refined = exp((double)refined->max[m] - (double)block->shift[m]),
            .either = fmax(shut, coded) };
        double total = (double)exact->sum[m] * scales.exact + coded * block->mass_open[m] +
                       (double)refined->sum[m] * scales.refined + shut * block->mass_shut[m] +
                       block->correction_mass[m];
        block->total[m] = total;
        block->norm[m] = sqrt(sum_row(block, m, &scales, total > 0.0 ? 1.0 / total : 0.0));
    }
}

static void turn_exact(struct block *block)
{
    memcpy(block->exact_turned, block->exact.acc,
           block->rows * block->head_dim * sizeof *block->exact_turned);
    rotation_apply(block->exact_turned, block->rows, block->head_dim);
}

size_t block_shut_count(const struct block *block)
{
    size_t count = 0;
    for (size_t p = 0; p < block->segment_count; p++)
        count += PLANES_CLUSTERS - (size_t)__builtin_popcountll(block->segments[p].valued);
    return count;
}

/* The clusters of the first tokens of the context, attention sinks: their keys are like no other's,
 * and the centroid of a cluster they are in says nothing about them. */
static uint64_t sink_clusters(const struct planes *planes)
{
    uint64_t clusters = 0;
    for (size_t c = 0; c < PLANES_CLUSTERS; c++) {
        int16_t rows[PLANES_CLUSTER], least = SINKS; /* signed, which every CPU compares */
        memcpy(rows, planes->rows + c * PLANES_CLUSTER, sizeof rows);
        for (size_t i = 0; i < PLANES_CLUSTER; i++) least = rows[i] < least ? rows[i] : least;
        clusters |= (uint64_t)(least < SINKS) << c;
    }
    return clusters;
}

/* Returns their number. */
static size_t choose_sinks(struct block *block)
{
    size_t count = 0;
    for (size_t p = 0; p < block->segment_count; p++) {
        const struct block_segment *segment = &block->segments[p];
        block->fresh[p] = segment->view->position == 0 ? sink_clusters(segment->planes) : 0;
        count += (size_t)__builtin_popcountll(block->fresh[p]);
    }
    return count;
}

/* Ask for what those clusters will be read from, while rows are read: they are always opened. */
static void fetch_sinks(const struct block *block)
{
    const struct progressive_args *args = block->call->args;
    const struct attend_args *attend = &args->base.attend;
    const struct planes *planes = args->planes[block->kv_head * attend->view_count];
    if (planes == NULL || attend->views[block->kv_head * attend->view_count].position != 0) return;
    struct block_segment segment = { .planes = planes };
    block_fetch_planes(&segment, block->head_dim, sink_clusters(planes));
}

/* Of the exact rows that planes stand for. */
static uint64_t rows_bytes(const struct block *block)
{
    return (uint64_t)block->segment_count * PLANES_TOKENS * 4 * block->head_dim;
}

/* Would reading `fresh` too, of so many segments, take longer than reading all their rows exactly?
 * Only where the caller leaves the choice to the measured rule. */
static bool exact_is_cheaper(const struct block *block, size_t segments)
{
    size_t all = segments * PLANES_CLUSTERS, keys = 0, values = 0, shut = 0;
    for (size_t p = 0; p < block->segment_count; p++) {
        const struct block_segment *segment = &block->segments[p];
        uint64_t known = block->fresh[p] & segment->opened;
        shut += (size_t)__builtin_popcountll(block->fresh[p] & ~segment->opened);
        keys += (size_t)__builtin_popcountll(segment->opened | block->fresh[p]);
        values += (size_t)__builtin_popcountll(segment->valued | known);
    }
    /* Half of those that are opened will want their values (0042). */
    double opened = 0.5 * ((double)(keys + values) + 0.5 * (double)shut);
    /* What a token costs in codes falls with D against what it costs as a row (0034). */
    double share = 0.2 + (double)block->head_dim / 320.0;
    if (share > 0.7) share = 0.7;
    return block->call->args->exact_below == UINT64_MAX &&
           rows_bytes(block) < block_bytes_left(block) && opened > share * (double)all;
}

/* How loose the target is: 0 up to a half, 1 where an answer may be wrong by its own length. */
static double looseness(const struct block *block)
{
    double target = fmin((double)block->call->args->base.target_error, 1.0);
    return fmax(2.0 * target - 1.0, 0.0);
}

/* Half of the draws of a sample. What is asked coarsely is judged by fewer: at 0.3, reading a point
 * of bytes in clusters does more than knowing their error better (docs/decisions/0045). */
static size_t half_sample(const struct block *block)
{
    double target = (double)block->call->args->base.target_error;
    double draws = BLOCK_PROBES * sqrt(sampled_fully / fmax(target, sampled_fully));
    draws *= 1.0 - 0.5 * looseness(block);
    return (size_t)fmax(draws, BLOCK_PROBES_LEAST) / 2;
}

/* Sample the shut clusters. Are they right enough for all rows? Half of the sample may say no; only
 * all of it says yes. Sets what may be left shut otherwise. */
static bool judge_shut(struct block *block, double wanted, double *ret_allowed)
{
    bool met = true;
    for (int half = 0; half < 2 && met; half++) {
        block_probe(block, half_sample(block), half > 0);
        for (size_t m = 0; m < block->rows; m++) met &= block->shut_error[m] <= wanted;
    }
    for (size_t m = 0; m < block->rows; m++) {
        double error = block->shut_error[m];
        ret_allowed[m] = error <= wanted ? INFINITY
                                         : block->priority_shut[m] * aim * wanted / error;
    }
    return met;
}

/* What the first guess leaves shut: everything at the loosest target, where the sample mends
 * enough. ret_allowed (M) */
static void guess(const struct block *block, double wanted, double *ret_allowed)
{
    double shut = wanted / first_guess / (1.0 - looseness(block));
    for (size_t m = 0; m < block->rows; m++) {
        double unit = block->total[m] * block->norm[m];
        ret_allowed[m] = shut * unit *
                         exp((double)block->shift[m] - (double)block->priority_shift[m]);
    }
}

/* Would the first guess open so many clusters that all rows are better read exactly? Judged by one
 * segment in SAMPLED, or by LOOKED of them, so that keys without clusters cost little more than
 * exact attention (0045). */
static bool looks_exact(struct block *block)
{
    size_t all = block->segment_count, every = all / LOOKED;
    if (block->call->args->exact_below != UINT64_MAX || all < SAMPLED_FROM) return false;
    if (every < SAMPLED) every = SAMPLED;
    size_t looked = block_estimate_clusters(block, every);
    double factor = (double)all / (double)looked, allowed[BLOCK_ROWS];
    for (size_t m = 0; m < block->rows; m++) block->mass_shut[m] *= factor;
    for (size_t d = 0; d < block->rows * block->head_dim; d++) block->base[d] *= (float)factor;
    block_sum_up(block);
    guess(block, (double)block->call->target * shut_share, allowed);
    for (size_t m = 0; m < block->rows; m++) allowed[m] /= factor;
    block_choose(block, allowed, block->fresh);
    block->limited = false;
    return exact_is_cheaper(block, looked);
}

/* As the sample wants to see it: without what a sample before said. */
static void sum_up_uncorrected(struct block *block)
{
    memset(block->correction, 0, block->rows * block->head_dim * sizeof *block->correction);
    memset(block->correction_mass, 0, block->rows * sizeof *block->correction_mass);
    memset(block->shut_error, 0, block->rows * sizeof *block->shut_error);
    block_sum_up(block);
}

/* Open until the sample says that shut clusters keep to their share. False: better read all rows
 * exactly. */
static bool open_clusters(struct block *block)
{
    double wanted = (double)block->call->target * shut_share, allowed[BLOCK_ROWS];
    guess(block, wanted, allowed);
    for (size_t round = 0;; round++) {
        size_t count = block_choose(block, allowed, block->fresh);
        if (exact_is_cheaper(block, block->segment_count)) return false;
        if (count > 0) block_scan_fresh(block, block->fresh);
        if (count > 0 || round > 0) sum_up_uncorrected(block);
        if (judge_shut(block, wanted, allowed) || block->limited || round + 1 == BLOCK_ROUNDS ||
            block_shut_count(block) == 0)
            return true;
    }
}

size_t block_answer_row(const struct block *block, size_t m)
{
    const struct scan *scan = &block->call->scan;
    size_t i = scan->first + block_query(block, m), j = (block->first + m) % scan->group;
    return i * scan->heads + block->kv_head * scan->group + j;
}

/* Share of the mass that a state has; 0 for a query that sees nothing. */
static float share_of(const struct block_state *state, size_t m, double shift, double inverse)
{
    if (!(state->sum[m] > 0.0F)) return 0.0F;
    return (float)((double)state->sum[m] * inverse * exp((double)state->max[m] - shift));
}

/* Write row m of the answer, and what it was made of. */
static void write_row(struct block *block, size_t m)
{
    const struct progressive *call = block->call;
    size_t row = block_answer_row(block, m);
    double total = block->total[m], shift = (double)block->shift[m];
    double inverse = total > 0.0 ? 1.0 / total : 0.0;
    memcpy(call->out->o + row * block->head_dim, block->output + m * block->head_dim,
           block->head_dim * sizeof(float));
    call->out->lse[row] = total > 0.0 ? (float)(shift + log(total)) : -INFINITY;
    if (call->quality == NULL) return;
    double error = hypot(block->shut_error[m], block->code_error[m]);
    float *mass = call->quality->mass + row * INDEX_LEVELS;
    call->quality->predicted_error[row] = (float)error;
    call->quality->limited[row] =
        block->limited && error > (double)call->args->base.target_error;
    mass[INDEX_CLUSTERS] = (float)((block->mass_shut[m] + block->correction_mass[m]) * inverse);
    mass[INDEX_HI] = block->coded > 0 ? (float)(block->mass_open[m] * inverse) : 0.0F;
    mass[INDEX_LO] = share_of(&block->refined, m, shift, inverse);
    mass[INDEX_EXACT] = share_of(&block->exact, m, shift, inverse);
}

static void finish(struct block *block)
{
    rotation_invert(block->output, block->rows, block->head_dim);
    for (size_t m = 0; m < block->rows; m++) write_row(block, m);
}

/* All rows were exact: no rotation there and back. */
static void finish_exactly(struct block *block)
{
    for (size_t m = 0; m < block->rows; m++) {
        float inverse = block->exact.sum[m] > 0.0F ? 1.0F / block->exact.sum[m] : 0.0F;
        block->shift[m] = block->exact.max[m];
        block->total[m] = (double)block->exact.sum[m];
        for (size_t d = m * block->head_dim; d < (m + 1) * block->head_dim; d++)
            block->output[d] = block->exact.acc[d] * inverse;
        write_row(block, m);
    }
}

/* Tokens that were refined are taken out of sums that had them by their codes. One whose codes
 * scored it far too high (a key hundreds of times longer than others, 20 nats off by rounding)
 * leaves nothing but rounding behind. That is an error of codes too; is it too large for a row? */
static bool is_cancelled(struct block *block)
{
    bool cancelled = false;
    for (size_t m = 0; m < block->rows; m++) {
        if (!(block->mass_removed[m] > 0.0)) continue;
        double total = fmax(block->total[m], 1e-300);
        double left = digits_lost * block->mass_removed[m] / total;
        block->code_error[m] = hypot(block->code_error[m], left);
        cancelled |= left > 0.01 * (double)block->call->target;
    }
    return cancelled;
}

/* Forget what planes said and read every row. */
static void start_again_exactly(struct block *block)
{
    block_clear_state(block, &block->exact);
    block_clear_state(block, &block->refined);
    for (size_t m = 0; m < block->rows; m++) {
        block->mass_shut[m] = block->correction_mass[m] = 0.0;
        block->shut_error[m] = block->code_error[m] = 0.0;
    }
    block->coded = 0;
    read_rows(block, 0, block->call->scan.rows);
    finish_exactly(block);
}

/* Z |o| of every row, what errors are relative to. ret_units (M) */
static void measure_units(const struct block *block, double *ret_units)
{
    for (size_t m = 0; m < block->rows; m++) ret_units[m] = block->total[m] * block->norm[m];
}

/* Refine until errors were judged by the answer that comes out: a token that was taken out because
 * its codes scored it many nats too high was nearly all of the answer that the others were compared
 * with. Once more is enough but for the strangest keys. */
static void refine(struct block *block)
{
    double before[BLOCK_ROWS], after[BLOCK_ROWS];
    bool moved = true;
    for (int round = 0; moved && round < REFINED; round++) {
        moved = false;
        measure_units(block, before);
        block_refine(block);
        turn_exact(block);
        block_sum_up(block);
        measure_units(block, after);
        for (size_t m = 0; m < block->rows; m++) {
            if (!(before[m] > units_alike * after[m])) continue;
            moved = true;
            block->shut_error[m] *= before[m] / fmax(after[m], 1e-300);
        }
    }
}

/* Are the clusters that stayed shut too wrong now for a row? */
static bool is_misjudged(const struct block *block)
{
    bool wrong = false;
    for (size_t m = 0; m < block->rows; m++)
        wrong |= block->shut_error[m] > shut_slack * (double)block->call->target;
    return wrong && !block->limited;
}

void block_run(struct block *block)
{
    fetch_sinks(block);
    block_sort_views(block, read_rows);
    if (block->segment_count == 0) {
        finish_exactly(block);
        return;
    }
    turn_exact(block);
    block_score_clusters(block);
    if (looks_exact(block)) {
        start_again_exactly(block);
        return;
    }
    (void)block_estimate_clusters(block, 1);
    memset(block->threshold, 0, block->rows * sizeof *block->threshold); /* values of sinks: all */
    if (choose_sinks(block) > 0) block_scan_fresh(block, block->fresh);
    block_sum_up(block);
    if (!open_clusters(block)) {
        start_again_exactly(block);
        return;
    }
    bool judged = !is_misjudged(block); /* else all rounds were not enough */
    refine(block);
    if (is_cancelled(block) || (judged && is_misjudged(block))) {
        if (rows_bytes(block) < block_bytes_left(block)) {
            start_again_exactly(block);
            return;
        }
        block->limited = true;
    }
    finish(block);
}
