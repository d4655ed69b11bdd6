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
    ALL_FROM = 24, /* centroids of a segment: then all of them are scored at once */
    AHEAD = 8,   /* segments whose lines are asked for before they are needed */
};

/* s² in the mass counts up to 4; the priority is of a token 3 deviations above the centroid, but no
 * more than 16 nats. */
static const struct plane_reach reach = { 4.0F, 3.0F, 16.0F };
/* Priorities count as 0 where all of them together, were there one in every cluster, have less than
 * this times the target of the largest. */
static const double blank_share = 1e-3;
/* Clusters with less than this times the target of the average mass are left out (0042). */
static const double negligible = 3.0;

const float *block_key_spread(const struct block *block, size_t p)
{
    const struct planes *planes = block->segments[p].planes;
    return planes->entry.space != NULL ? planes->entry.key_spread : planes->key_spread;
}

/* Scores of the 7-bit centroids of segment p, in its own space. ret_scores (M, 64) */
static void score_own_centroids(struct block *block, size_t p, const struct plane_queries *queries,
                                float *ret_scores)
{
    const struct planes *planes = block->segments[p].planes;
    block->call->planes->centroid(&(struct plane_centroid_args){
        .queries = queries, .centroids = planes->centroids, .scale = planes->centroid_scale,
        .scores = ret_scores });
}

void block_score_centroids(struct block *block, size_t p, float *ret_scores)
{
    const struct planes_entry *entry = &block->segments[p].planes->entry;
    struct plane_queries queries = block_centroid_queries(block, p);
    if (entry->space == NULL) {
        score_own_centroids(block, p, &queries, ret_scores);
        block->scored_count++;
        return;
    }
    block->call->planes->score(&(struct plane_score_args){
        .queries = &queries, .key_hi = entry->codes, .key_scale = entry->steps,
        .count = PLANES_CLUSTERS / PLANE_TILE, .stride = PLANES_CLUSTERS, .scores = ret_scores });
    block->tabled_count++;
}

/* What turns a query into the space of a segment. */
static size_t vector_bytes(const struct block *block)
{
    return 3 * block->head_dim * sizeof(float);
}

size_t block_centroid_bytes(const struct block *block)
{
    size_t own = PLANES_CLUSTERS * (block->head_dim + 2 * sizeof(float)) + vector_bytes(block);
    size_t tabled = PLANES_CLUSTERS * (block->head_dim / 2 + sizeof(uint16_t) + sizeof(float));
    return block->scored_count * own + block->tabled_count * tabled;
}

size_t block_centre_bytes(const struct block *block)
{
    return block->tabled_count > 0 ? block->head_dim + sizeof(float) + vector_bytes(block) : 0;
}

const float *block_centres(struct block *block, size_t p, uint64_t clusters, float *room)
{
    const struct planes_entry *entry = &block->segments[p].planes->entry;
    if (entry->space == NULL) return block_scored(block, p);
    if (!block->segments[p].vectors) block->level_bytes[INDEX_CLUSTERS] += vector_bytes(block);
    block->segments[p].vectors = true;
    struct plane_queries queries = block_plane_queries(block, p);
    size_t count = (size_t)__builtin_popcountll(clusters);
    if (count < ALL_FROM || block->call->block_bytes != UINT64_MAX) {
        block->call->planes->dot(&(struct plane_dot_args){
            .queries = &queries, .clusters = clusters, .codes = entry->rows,
            .scale = entry->row_scale, .scores = room });
    } else {
        score_own_centroids(block, p, &queries, room);
        count = PLANES_CLUSTERS;
    }
    block->level_bytes[INDEX_CLUSTERS] += count * (block->head_dim + sizeof(float));
    return room;
}

/* What a segment may lack to be blank, per row: its logarithms of masses and priorities lie below
 * these. The shifts only rise, so what is below them once stays so. */
struct reaches {
    float mass, priority; /* over the shifts */
};

static struct reaches reaches_of(const struct block *block)
{
    double target = (double)block->call->target;
    double each = target / (double)(block->segment_count * PLANES_CLUSTERS);
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

/* Masses and priorities of segment p, whose logarithms are in reach of the largest for some row. A
 * segment of the first look has them already. */
static void estimate(struct block *block, size_t p, const float *mass_shift)
{
    size_t rows = block->rows, at = p * rows;
    float *masses = block->mass_sum + at, *priorities = block->priority_sum + at;
    struct block_segment *segment = &block->segments[p];
    if (!segment->estimated)
        block->call->planes->estimate(&(struct plane_estimate_args){
            .reach = reach, .centre = block_scored(block, p), .deviation = block->deviation + at,
            .key_spread = block_key_spread(block, p),
            .value_spread = segment->planes->value_spread, .mass_shift = mass_shift,
            .priority_shift = block->priority_shift, .queries = rows,
            .mass = block->mass + at * PLANES_CLUSTERS,
            .priority = block->priority + at * PLANES_CLUSTERS, .mass_sum = masses,
            .priority_sum = priorities, .priority_top = block->priority_top + at });
    segment->estimated = true;
    for (size_t m = 0; m < rows; m++) {
        block->mass_shut[m] += (double)masses[m];
        block->priority_shut[m] += (double)priorities[m];
        block->priority_all[m] += (double)priorities[m];
    }
}

/* Masses and priorities of the clusters of every `every`-th segment, but for blank ones: those
 * count as 0, and nothing is written for them. Returns how many segments were looked at. */
static size_t estimate_all(struct block *block, size_t every, const struct reaches *reaches)
{
    size_t rows = block->rows, looked = 0;
    float shift[BLOCK_ROWS];
    for (size_t m = 0; m < rows; m++) shift[m] = block->shift[m] - logf((float)PLANES_CLUSTER);
    for (size_t p = 0; p < block->segment_count; p++) {
        size_t soon = p + AHEAD * every;
        block->segments[p].blank = true;
        if (p % every != every / 2) continue;
        looked++;
        block->segments[p].blank = is_blank(block, p, reaches);
        if (soon < block->segment_count && !is_blank(block, soon, reaches))
            block_fetch_near(block->segments[soon].planes->value_spread,
                             PLANES_CLUSTERS * sizeof(float));
        if (block->segments[p].blank)
            memset(block->priority_top + p * rows, 0, rows * sizeof *block->priority_top);
        else
            estimate(block, p, shift);
    }
    return looked;
}

/* Clusters of segment p with a mass of at least the cut of some row; the others are dropped. What
 * is left goes to mass_shut. */
static uint64_t keep_masses(struct block *block, size_t p, const float *cut)
{
    size_t rows = block->rows;
    float *masses = block->mass + p * rows * PLANES_CLUSTERS;
    uint64_t above[BLOCK_ROWS], kept = 0;
    block->call->planes->above(&(struct plane_above_args){
        .scores = masses, .least = cut, .queries = rows, .above = above });
    for (size_t m = 0; m < rows; m++) kept |= above[m];
    block->segments[p].dropped = ~kept;
    for (size_t m = 0; m < rows; m++) {
        float sum = 0.0F;
        for (uint64_t left = kept; left != 0; left &= left - 1)
            sum += masses[m * PLANES_CLUSTERS + (size_t)__builtin_ctzll(left)];
        block->mass_shut[m] += (double)sum;
    }
    return kept;
}

/* Ask for the mean values of some clusters of segment p. */
BLOCK_FETCH void fetch_means(const struct block *block, size_t p, uint64_t clusters)
{
    const struct planes *planes = block->segments[p].planes;
    size_t bytes = block->head_dim;
    for (; clusters != 0; clusters &= clusters - 1) {
        size_t c = (size_t)__builtin_ctzll(clusters);
        block_fetch_near(planes->means + c * bytes, bytes);
        block_fetch_near(planes->mean_scale + c, 1);
    }
}

/* Mean values of segment p into base. */
static void add_means_of(struct block *block, size_t p, uint64_t clusters)
{
    const struct planes *planes = block->segments[p].planes;
    block->call->planes->means(&(struct plane_means_args){
        .clusters = clusters, .mass = block->mass + p * block->rows * PLANES_CLUSTERS,
        .means = planes->means, .scale = planes->mean_scale, .queries = block->rows,
        .head_dim = block->head_dim, .acc = block->base });
}

/* Mean values of all clusters into base, by their masses. In a peaked softmax most clusters hold
 * next to nothing: those are not read, and count as mass 0 from here on. What that leaves out is in
 * the sample, like everything that is wrong about shut clusters. A few clusters in each of many
 * segments are a cache miss each, so that they are asked for some segments ahead. Returns how many
 * were read. */
static size_t add_means(struct block *block, size_t looked)
{
    size_t segments = block->segment_count, kept = 0;
    uint64_t left[AHEAD] = { 0 };
    float cut[BLOCK_ROWS];
    for (size_t m = 0; m < block->rows; m++) {
        double known = exp((double)block->exact.max[m] - (double)block->shift[m]);
        double all = block->mass_shut[m] + (double)block->exact.sum[m] * known;
        cut[m] = (float)(negligible * (double)block->call->target * all /
                         (double)(looked * PLANES_CLUSTERS));
        block->mass_shut[m] = 0.0;
    }
    for (size_t p = 0; p < segments + AHEAD; p++) {
        uint64_t *here = &left[p % AHEAD];
        if (*here != 0) add_means_of(block, p - AHEAD, *here);
        *here = 0;
        if (p >= segments || block->segments[p].blank) continue;
        *here = keep_masses(block, p, cut);
        fetch_means(block, p, *here);
        kept += (size_t)__builtin_popcountll(*here);
    }
    return kept;
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
        if (planes->entry.space != NULL) continue; /* one after the other: the CPU sees that */
        vectors[i] = (struct stretch){ from, (size_t)((const unsigned char *)planes->rows - from) };
        from = (const unsigned char *)planes->centroid_scale;
        clusters[i] = (struct stretch){
            from, (size_t)((const unsigned char *)planes->means - from) };
    }
    touch(vectors, count);
    touch(clusters, count);
}

static inline float least_of(float a, float b)
{
    return a < b ? a : b;
}

/* Is segment p blank even if every cluster had the largest spread in it? By block->scores, with a
 * comparison for each. */
static bool is_far_below(struct block *block, size_t p, const struct reaches *reaches)
{
    float least[BLOCK_ROWS], root = block->segments[p].planes->entry.root;
    uint64_t above[BLOCK_ROWS], any = block->segments[p].view->position == 0;
    for (size_t m = 0; m < block->rows; m++) {
        float s = block->deviation[p * block->rows + m] * root;
        float spread = least_of(s * s, reach.spread_most);
        float extra = least_of(reach.deviations * s, reach.above_most);
        least[m] = least_of(block->shift[m] + reaches->mass - 0.5F * spread,
                            block->priority_shift[m] + reaches->priority - extra);
    }
    block->call->planes->above(&(struct plane_above_args){
        .scores = block->scores, .least = least, .queries = block->rows, .above = above });
    for (size_t m = 0; m < block->rows; m++) any |= above[m];
    return any == 0;
}

/* The largest logarithms of masses and priorities in segment p raise the shifts. Its scores are
 * kept unless it is blank already; returns whether it is. */
static bool rank_segment(struct block *block, size_t p, const float *scores,
                         const struct reaches *reaches)
{
    size_t at = p * block->rows;
    block->call->planes->rank(&(struct plane_rank_args){
        .reach = reach, .centre = scores, .deviation = block->deviation + at,
        .key_spread = block_key_spread(block, p), .queries = block->rows,
        .mass_top = block->mass_top + at, .priority_top = block->priority_log + at });
    raise_shifts(block, p);
    if (is_blank(block, p, reaches)) return true;
    float *kept = block_scored(block, p);
    if (scores != kept) memcpy(kept, scores, block->rows * PLANES_CLUSTERS * sizeof *kept);
    return false;
}

/* Segment p, where that is all there is to say: of a peaked softmax most are, and that they are is
 * seen sooner than what their largest logarithms are. */
static void set_blank(struct block *block, size_t p)
{
    for (size_t m = 0; m < block->rows; m++)
        block->mass_top[p * block->rows + m] = block->priority_log[p * block->rows + m] =
            -INFINITY;
}

void block_score_clusters(struct block *block)
{
    struct reaches reaches = reaches_of(block);
    bool blank = false; /* the segment before: where one is not, the next one hardly is */
    block->scored_count = block->tabled_count = 0;
    for (size_t m = 0; m < block->rows; m++) {
        block->shift[m] = block->exact.max[m];
        block->priority_shift[m] = -INFINITY;
    }
    for (size_t p = 0; p < block->segment_count; p++) {
        bool tabled = block->segments[p].planes->entry.space != NULL;
        if (p % TOUCHED == 0) touch_centroids(block, p);
        float *scores = blank ? block->scores : block_scored(block, p);
        block_score_centroids(block, p, scores);
        if (blank && tabled && is_far_below(block, p, &reaches)) set_blank(block, p);
        else blank = rank_segment(block, p, scores, &reaches);
    }
    for (size_t m = 0; m < block->rows; m++) block_set_unit(block, m);
}

size_t block_estimate_clusters(struct block *block, size_t every)
{
    struct reaches reaches = reaches_of(block);
    uint64_t *rows = &block->level_rows[INDEX_CLUSTERS];
    uint64_t *bytes = &block->level_bytes[INDEX_CLUSTERS];
    for (size_t m = 0; m < block->rows; m++)
        block->mass_shut[m] = block->priority_shut[m] = block->priority_all[m] = 0.0;
    memset(block->base, 0, block->rows * block->head_dim * sizeof *block->base);
    size_t looked = estimate_all(block, every, &reaches), kept = add_means(block, looked);
    size_t spreads = 0;
    *rows = block->segment_count * PLANES_CLUSTERS + kept;
    for (size_t p = 0; p < block->segment_count; p++) spreads += !block->segments[p].blank;
    *bytes = block_centroid_bytes(block) + spreads * PLANES_CLUSTERS * sizeof(float) +
             kept * (block->head_dim + sizeof(float));
    return looked;
}

/* Priorities of segment p for row m: those that are large go to the histogram, the sum of all
 * others of clusters without V is returned. */
static double collect_priorities(struct block *block, size_t p, size_t m, uint64_t large)
{
    const struct block_segment *segment = &block->segments[p];
    const float *priority = block->priority + (p * block->rows + m) * PLANES_CLUSTERS;
    float *sums = block->histogram + m * BLOCK_BINS;
    double all = (double)block->priority_sum[p * block->rows + m];
    if (segment->opened != 0) {
        all = 0.0;
        for (uint64_t shut = ~segment->valued; shut != 0; shut &= shut - 1)
            all += (double)priority[__builtin_ctzll(shut)];
    }
    for (uint64_t left = large & ~segment->valued; left != 0; left &= left - 1) {
        float value = priority[__builtin_ctzll(left)];
        sums[block_bin(value)] += value;
        all -= (double)value;
    }
    return fmax(all, 0.0);
}

/* The largest thresholds such that clusters without V and with a priority below them sum to at most
 * allowed[m]. Were all of them below allowed / their number, the sum would be allowed: only what is
 * above needs a histogram. */
static void set_thresholds(struct block *block, const double *allowed)
{
    size_t rows = block->rows, clusters = block->segment_count * PLANES_CLUSTERS;
    double below[BLOCK_ROWS] = { 0.0 };
    float least[BLOCK_ROWS];
    bool any = false;
    for (size_t m = 0; m < rows; m++) {
        bool all = block->priority_shut[m] <= (1.0 - 1e-6) * allowed[m];
        least[m] = all ? INFINITY : (float)(allowed[m] / (double)clusters);
        any |= !all;
        memset(block->histogram + m * BLOCK_BINS, 0, BLOCK_BINS * sizeof *block->histogram);
    }
    for (size_t p = 0; any && p < block->segment_count; p++) {
        uint64_t large[BLOCK_ROWS];
        if (block->segments[p].blank) continue;
        block->call->planes->above(&(struct plane_above_args){
            .scores = block->priority + p * rows * PLANES_CLUSTERS, .least = least,
            .queries = rows, .above = large });
        for (size_t m = 0; m < rows; m++)
            if (least[m] < INFINITY) below[m] += collect_priorities(block, p, m, large[m]);
    }
    for (size_t m = 0; m < rows; m++) {
        const float *sums = block->histogram + m * BLOCK_BINS;
        uint32_t bin = least[m] < INFINITY ? block_bin(least[m]) : BLOCK_BINS;
        while (bin < BLOCK_BINS && below[m] + (double)sums[bin] <= allowed[m])
            below[m] += (double)sums[bin++];
        block->threshold[m] = bin < BLOCK_BINS ? block_bin_least(bin) : INFINITY;
    }
}

size_t block_plane_bytes(const struct block *block)
{
    return PLANES_CLUSTER * (block->head_dim / 2 + sizeof(uint16_t));
}

/* Clusters that may be opened: what is left for them keeps room for the sample that says how wrong
 * the others are. */
static size_t affordable(const struct block *block)
{
    size_t each = 2 * block_plane_bytes(block) + block_centre_bytes(block);
    uint64_t left = block_bytes_left(block) / each;
    uint64_t half = left / 2, sample = half < BLOCK_PROBES ? half : BLOCK_PROBES;
    return (size_t)(left - sample);
}

/* Clusters without V that one of the rows wants. Returns their number. */
static size_t mark(const struct block *block, uint64_t *ret_fresh)
{
    size_t count = 0, rows = block->rows;
    for (size_t p = 0; p < block->segment_count; p++) {
        uint64_t wanted = 0, above[BLOCK_ROWS];
        bool reached = false;
        ret_fresh[p] = 0;
        if (block->segments[p].blank) continue;
        for (size_t m = 0; m < rows; m++)
            reached |= block->priority_top[p * rows + m] >= block->threshold[m];
        if (!reached) continue;
        block->call->planes->above(&(struct plane_above_args){
            .scores = block->priority + p * rows * PLANES_CLUSTERS, .least = block->threshold,
            .queries = rows, .above = above });
        for (size_t m = 0; m < rows; m++) wanted |= above[m];
        ret_fresh[p] = wanted & ~block->segments[p].valued;
        count += (size_t)__builtin_popcountll(ret_fresh[p]);
    }
    return count;
}

size_t block_choose(struct block *block, const double *allowed, uint64_t *ret_fresh)
{
    float *thresholds = block->threshold;
    set_thresholds(block, allowed);
    size_t count = mark(block, ret_fresh);
    /* A threshold of 0 would never rise, and infinite priorities are above all of them. */
    for (int step = 0; step < RISES && count > affordable(block); step++) {
        block->limited = true;
        for (size_t m = 0; m < block->rows; m++)
            thresholds[m] = 1.5F * fmaxf(thresholds[m], FLT_MIN);
        count = mark(block, ret_fresh);
    }
    if (count <= affordable(block)) return count;
    memset(ret_fresh, 0, block->segment_count * sizeof *ret_fresh);
    return 0;
}
