/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_clusters.c — every cluster by its centroid, and which of them to open.
 *
 * A cluster left shut counts 16 exp(L + s²/2) with its mean value, L the score of its centroid and
 * s the deviation of scores inside it, known from key_spread: without s²/2 (Jensen) the mass of
 * tail clusters comes out at 0.1 to 0.6 of the truth, with it at 0.9 to 1.1 of the clusters that
 * matter (docs/decisions/0032). s² counts up to 4: beyond, one token decides, and a cluster that
 * could hold such a token is opened.
 *
 * The priority is exp(L + 3 s) sqrt(value_spread): what a token three deviations above the centroid
 * would move. Ranking by mass alone leaves outliers hidden in quiet clusters shut, ranking by the
 * log-normal variance exp(s²) opens every wide cluster first; both measured worse (0033). It is a
 * ranking and a sampling weight, not a prediction: how wrong the shut clusters are together is
 * measured by the sample (progressive_probe.c).
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "index/backend.h"
#include "index/centroid_table.h"
#include "index/progressive_block.h"

enum {
    RISES = 448, /* by half, from the least float to beyond the largest */
    LINE_BYTES = 64,
    TOUCHED = 8, /* segments whose bytes are asked for together */
    SMALL = 16,  /* of what is allowed, that segments may have without being looked at */
};

/* s² in the mass counts up to 4; the priority is of a token 3 deviations above the centroid, but no
 * more than 16 nats. */
static const struct plane_reach reach = { 4.0F, 3.0F, 16.0F };
/* Priorities count as 0 where all of them together, were there one in every cluster, have less than
 * this times the target of the largest. */
static const double blank_share = 1e-3;
/* Clusters with less than this times the target of the average mass are left out (0042). */
static const double negligible = 3.0;

/* Four floats, which every CPU has instructions for: the loops here are over 64 clusters. */
typedef float four __attribute__((vector_size(16)));
typedef int32_t four_bits __attribute__((vector_size(16)));
enum { FOUR = 4 };

static inline four four_load(const float *at)
{
    four a;
    memcpy(&a, at, sizeof a);
    return a;
}

static inline void four_store(float *at, four a)
{
    memcpy(at, &a, sizeof a);
}

static inline float four_sum(four a)
{
    return (a[0] + a[1]) + (a[2] + a[3]);
}

struct block_centroids block_centroids(const struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    if (planes->table == NULL)
        return (struct block_centroids){ planes->centroids, planes->centroid_scale,
                                         planes->key_spread };
    return (struct block_centroids){ planes->table,
                                     centroid_entry_scale(planes->table, block->head_dim),
                                     centroid_entry_spread(planes->table, block->head_dim) };
}

/* What a segment may lack to be blank, per row: its logarithms of masses and priorities lie below
 * these. The shifts only rise, so what is below them once stays so. */
struct reaches {
    float mass, priority; /* over the shifts */
};

static struct reaches reaches_of(const struct block *block)
{
    double target = (double)block->call->target;
    double each = target / (double)(block->segments_all * PLANES_CLUSTERS);
    return (struct reaches){ (float)log(negligible * each + 1e-30) - logf((float)PLANES_CLUSTER),
                             (float)log(blank_share * each + 1e-30) };
}

/* Has no row of segment p a mass that add_means would keep (the sum of all is at least that of the
 * largest, 1), nor a priority in range, as far as the shifts are known? Segments with sinks are
 * never blank. */
static bool is_blank(const struct block *block, size_t p, const struct reaches *reaches)
{
    const float *mass = block->mass_top + p * block->rows;
    const float *priority = block->priority_log + p * block->rows;
    bool blank = block->segments[p].view->position != 0;
    for (size_t m = 0; m < block->rows; m++)
        blank &= mass[m] < block->shift[m] + reaches->mass &&
                 priority[m] < block->priority_shift[m] + reaches->priority;
    return blank;
}

/* The largest logarithms of segment p raise the shifts. */
static void raise_shifts(struct block *block, size_t p)
{
    for (size_t m = 0; m < block->rows; m++) {
        float mass = block->mass_top[p * block->rows + m];
        float priority = block->priority_log[p * block->rows + m];
        float *shift = &block->shift[m], *high = &block->priority_shift[m];
        *shift = mass > *shift ? mass : *shift;
        *high = priority > *high ? priority : *high;
    }
}

/* Masses and priorities of segment p, whose logarithms are in reach of the largest for some row. */
static void estimate(struct block *block, size_t p, const float *mass_shift)
{
    size_t rows = block->rows, at = p * rows;
    float masses[BLOCK_ROWS], priorities[BLOCK_ROWS];
    const struct planes *planes = block->segments[p].planes;
    struct block_centroids centroids = block_centroids(block, p);
    block->call->planes->estimate(&(struct plane_estimate_args){
        .reach = reach, .centre = block->centre + at * PLANES_CLUSTERS,
        .deviation = block->deviation + at, .key_spread = centroids.key_spread,
        .value_spread = planes->value_spread, .mass_shift = mass_shift,
        .priority_shift = block->priority_shift, .queries = rows,
        .mass = block->mass + at * PLANES_CLUSTERS,
        .priority = block->priority + at * PLANES_CLUSTERS, .mass_sum = masses,
        .priority_sum = priorities, .priority_top = block->priority_top + at });
    for (size_t m = 0; m < rows; m++) {
        block->mass_shut[m] += (double)masses[m];
        block->priority_shut[m] += (double)priorities[m];
        block->priority_all[m] += (double)priorities[m];
    }
}

/* Masses and priorities of all clusters but those of blank segments: they count as 0, and nothing
 * is written for them. */
static void estimate_all(struct block *block, const struct reaches *reaches)
{
    size_t rows = block->rows;
    float shift[BLOCK_ROWS];
    for (size_t m = 0; m < rows; m++) shift[m] = block->shift[m] - logf((float)PLANES_CLUSTER);
    for (size_t p = 0; p < block->segment_count; p++) {
        bool blank = block->segments[p].blank = is_blank(block, p, reaches);
        if (blank) memset(block->priority_top + p * rows, 0, rows * sizeof *block->priority_top);
        else estimate(block, p, shift);
    }
}

/* Masses of segment p below the cut of every row -> 0. Returns how many clusters are left. */
static size_t drop_negligible(struct block *block, size_t p, const float *cut)
{
    size_t rows = block->rows, kept = 0;
    int32_t keep[PLANES_CLUSTERS] = { 0 };
    float *masses = block->mass + p * rows * PLANES_CLUSTERS;
    for (size_t m = 0; m < rows; m++)
        for (size_t c = 0; c < PLANES_CLUSTERS; c++)
            keep[c] |= -(masses[m * PLANES_CLUSTERS + c] > cut[m]);
    for (size_t c = 0; c < PLANES_CLUSTERS; c++) kept += keep[c] != 0;
    if (kept == PLANES_CLUSTERS) return kept;
    for (size_t m = 0; m < rows; m++) {
        float *mass = masses + m * PLANES_CLUSTERS;
        four dropped = { 0 };
        for (size_t c = 0; c < PLANES_CLUSTERS; c += FOUR) {
            four_bits bits;
            memcpy(&bits, keep + c, sizeof bits);
            four here = four_load(mass + c), left = (four)((four_bits)here & bits);
            four_store(mass + c, left);
            dropped += here - left;
        }
        block->mass_shut[m] -= (double)four_sum(dropped);
    }
    return kept;
}

/* Mean values of all clusters into base, by their masses. In a peaked softmax most clusters hold
 * next to nothing: those are not read, and count as mass 0 from here on. What that leaves out is in
 * the sample, like everything that is wrong about shut clusters. */
static void add_means(struct block *block)
{
    size_t rows = block->rows, segments = block->segment_count, kept = 0;
    float cut[BLOCK_ROWS];
    for (size_t m = 0; m < rows; m++) {
        double known = exp((double)block->exact.max[m] - (double)block->shift[m]);
        double all = block->mass_shut[m] + (double)block->exact.sum[m] * known;
        cut[m] = (float)(negligible * (double)block->call->target * all /
                         (double)(segments * PLANES_CLUSTERS));
    }
    for (size_t p = 0; p < segments; p++) {
        const struct planes *planes = block->segments[p].planes;
        size_t here = block->segments[p].blank ? 0 : drop_negligible(block, p, cut);
        kept += here;
        if (here == 0) continue;
        block->call->planes->means(&(struct plane_means_args){
            .mass = block->mass + p * rows * PLANES_CLUSTERS, .means = planes->means,
            .scale = planes->mean_scale, .queries = rows, .head_dim = block->head_dim,
            .acc = block->base });
    }
    block->level_rows[INDEX_CLUSTERS] += segments * PLANES_CLUSTERS + kept;
    block->level_bytes[INDEX_CLUSTERS] +=
        segments * (PLANES_CLUSTERS * (block->head_dim + 3 * sizeof(float)) +
                    3 * block->head_dim * sizeof(float)) +
        kept * (block->head_dim + sizeof(float));
}

/* Bytes of a segment that a stage is about to read. */
struct stretch {
    const unsigned char *at;
    size_t bytes;
};

/* Read one number per line of `count` ≤ TOUCHED stretches, a line of each in turn. Segments lie
 * apart, and what a stage reads of one is too short for the CPU's prefetchers to get going; eight
 * places at once are read as fast as one long one (docs/decisions/0044). */
static void touch(const struct stretch *stretches, size_t count)
{
    size_t most = 0;
    unsigned char sum = 0;
    for (size_t i = 0; i < count; i++)
        most = stretches[i].bytes > most ? stretches[i].bytes : most;
    for (size_t at = 0; at < most; at += LINE_BYTES)
        for (size_t i = 0; i < count; i++)
            if (at < stretches[i].bytes)
                sum += *(const volatile unsigned char *)(stretches[i].at + at);
    (void)sum;
}

/* What scoring the clusters of TOUCHED segments from p reads. Vectors and centroids stand in the
 * order of planes.h, with the rows of the tokens between them. */
static void touch_centroids(const struct block *block, size_t p)
{
    struct stretch vectors[TOUCHED], clusters[TOUCHED];
    size_t count = block->segment_count - p;
    if (count > TOUCHED) count = TOUCHED;
    for (size_t i = 0; i < count; i++) {
        const struct planes *planes = block->segments[p + i].planes;
        const unsigned char *from = (const unsigned char *)planes->balance;
        vectors[i] = clusters[i] = (struct stretch){ 0 };
        if (planes->table != NULL) continue; /* one after the other: the CPU sees that */
        vectors[i] = (struct stretch){ from, (size_t)((const unsigned char *)planes->rows - from) };
        from = (const unsigned char *)planes->centroid_scale;
        clusters[i] = (struct stretch){
            from, (size_t)((const unsigned char *)planes->means - from) };
    }
    touch(vectors, count);
    touch(clusters, count);
}

/* Scores of the centroids of segment p, kept unless it is blank already. */
static void score_segment(struct block *block, size_t p, const struct reaches *reaches)
{
    size_t at = p * block->rows;
    struct plane_queries queries = block_centroid_queries(block, p);
    struct block_centroids centroids = block_centroids(block, p);
    block->call->planes->centroid(&(struct plane_centroid_args){
        .queries = &queries, .centroids = centroids.codes, .scale = centroids.scale,
        .scores = block->scores });
    block->call->planes->rank(&(struct plane_rank_args){
        .reach = reach, .centre = block->scores, .deviation = block->deviation + at,
        .key_spread = centroids.key_spread, .queries = block->rows,
        .mass_top = block->mass_top + at, .priority_top = block->priority_log + at });
    raise_shifts(block, p);
    if (!is_blank(block, p, reaches))
        memcpy(block->centre + at * PLANES_CLUSTERS, block->scores,
               block->rows * PLANES_CLUSTERS * sizeof *block->scores);
}

void block_score_clusters(struct block *block, size_t scored)
{
    struct reaches reaches = reaches_of(block);
    for (size_t m = 0; m < block->rows; m++) {
        block->shift[m] = block->exact.max[m];
        block->priority_shift[m] = -INFINITY;
    }
    for (size_t p = 0; p < scored; p++) raise_shifts(block, p);
    for (size_t p = scored; p < block->segment_count; p++) {
        if ((p - scored) % TOUCHED == 0) touch_centroids(block, p);
        score_segment(block, p, &reaches);
    }
    for (size_t m = 0; m < block->rows; m++) block_set_unit(block, m);
    estimate_all(block, &reaches);
    add_means(block);
}

/* The largest threshold for row m such that clusters without V and with a priority below it sum to
 * at most `allowed`. */
static float threshold(const struct block *block, size_t m, double allowed)
{
    float sums[BLOCK_BINS] = { 0 };
    double low = allowed / (double)(SMALL * block->segment_count * PLANES_CLUSTERS), sum = 0.0;
    for (size_t p = 0; p < block->segment_count; p++) {
        double top = (double)block->priority_top[p * block->rows + m];
        if (block->segments[p].blank || top <= low) { /* together 1/16 of what is allowed */
            sum += top * PLANES_CLUSTERS;
            continue;
        }
        const float *priority = block->priority + (p * block->rows + m) * PLANES_CLUSTERS;
        uint64_t shut = ~block->segments[p].valued;
        for (size_t c = 0; c < PLANES_CLUSTERS; c++)
            sums[block_bin(priority[c])] += (shut >> c & 1) != 0 ? priority[c] : 0.0F;
    }
    for (uint32_t bin = 0; bin < BLOCK_BINS; bin++) {
        sum += (double)sums[bin];
        if (sum > allowed) return block_bin_least(bin);
    }
    return INFINITY;
}

size_t block_plane_bytes(const struct block *block)
{
    return PLANES_CLUSTER * (block->head_dim / 2 + sizeof(uint16_t));
}

/* Clusters that may be opened: what is left for them keeps room for the sample that says how wrong
 * the others are. */
static size_t affordable(const struct block *block)
{
    uint64_t left = block_bytes_left(block) / (2 * block_plane_bytes(block));
    uint64_t half = left / 2, sample = half < BLOCK_PROBES ? half : BLOCK_PROBES;
    return (size_t)(left - sample);
}

/* Clusters without V that one of the rows wants at these thresholds. Returns their number. */
static size_t mark(const struct block *block, const float *thresholds, uint64_t *ret_fresh)
{
    size_t count = 0;
    for (size_t p = 0; p < block->segment_count; p++) {
        uint64_t wanted = 0;
        ret_fresh[p] = 0;
        if (block->segments[p].blank) continue;
        for (size_t m = 0; m < block->rows; m++) {
            const float *priority = block->priority + (p * block->rows + m) * PLANES_CLUSTERS;
            if (block->priority_top[p * block->rows + m] < thresholds[m]) continue;
            for (size_t c = 0; c < PLANES_CLUSTERS; c++)
                wanted |= (uint64_t)(priority[c] >= thresholds[m]) << c;
        }
        ret_fresh[p] = wanted & ~block->segments[p].valued;
        count += (size_t)__builtin_popcountll(ret_fresh[p]);
    }
    return count;
}

size_t block_choose(struct block *block, const double *allowed, uint64_t *ret_fresh)
{
    float *thresholds = block->threshold;
    for (size_t m = 0; m < block->rows; m++)
        thresholds[m] = threshold(block, m, allowed[m]);
    size_t count = mark(block, thresholds, ret_fresh);
    /* A threshold of 0 would never rise, and infinite priorities are above all of them. */
    for (int step = 0; step < RISES && count > affordable(block); step++) {
        block->limited = true;
        for (size_t m = 0; m < block->rows; m++)
            thresholds[m] = 1.5F * fmaxf(thresholds[m], FLT_MIN);
        count = mark(block, thresholds, ret_fresh);
    }
    if (count <= affordable(block)) return count;
    memset(ret_fresh, 0, block->segment_count * sizeof *ret_fresh);
    return 0;
}
