/* SPDX-License-Identifier: Apache-2.0 */
/* zones.c — a query over clusters: scores of centroids, one ranking, three zones.
 *
 * Scores are turned into weights once, exp(score - largest) per head; ranking, estimates and the
 * mass of what is dropped all come from them.
 *
 * A cluster counts with those of its members that lie in the middle (pick.h): a member in the local
 * window, or one that a query in the past must not see, is left out of its size and never read.
 * Centroid and mean value stay those of the whole cluster. In decoding that touches clusters of the
 * newest tokens only.
 */
#include "index/zones.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/half.h"
#include "index/pick.h"

enum { LIST_POSITIONS = 1024 };

static const struct option_spec specs[ZONES_OPTIONS] = {
    [ZONES_RETRIEVAL] = OPTION_REAL("retrieval", "percent of clusters that are read exactly",
                                    1.8, 0, 100),
    [ZONES_ESTIMATION] = OPTION_REAL("estimation", "percent of clusters, the next best, that are "
                                     "estimated", 23.2, 0, 100),
    [ZONES_SINKS] = OPTION_WHOLE("sinks", "first tokens that are always read", 4, 0, 65536),
    [ZONES_LOCAL] = OPTION_WHOLE("local", "newest tokens that are always read", 64, 0, 1 << 24),
    [ZONES_ITERATIONS] = OPTION_WHOLE("iterations", "passes of k-means", 10, 1, 1000),
};
static const struct option_table table = { "retroinfer", specs, ZONES_OPTIONS };

/* One query of one KV head over the clusters. */
struct ranking {
    const struct zones *zones;
    const uint32_t *begin, *members; /* of the KV head */
    struct pick_middle middle;
    size_t clusters, best;
    float *weights;  /* (group, C) scores, then exp(score - largest) */
    float *largest;  /* (group) */
    float *mass;     /* (C) of the ranking; -inf: no member to be had */
    uint32_t *sizes; /* (C) members in the middle */
    float *acc;      /* (D) */
    struct topk top; /* (best) the retrieval zone, then the rest of the estimation zone */
};

static size_t ranking_bytes(size_t group, size_t clusters, size_t head_dim)
{
    return clusters * (sizeof(uint64_t) + sizeof(float)) + /* top */
           (group + 1) * clusters * sizeof(float) + clusters * sizeof(uint32_t) +
           (group + head_dim) * sizeof(float);
}

static struct ranking ranking_at(const struct pick *pick, struct pick_middle middle)
{
    const struct zones *zones = pick->call->version;
    size_t g = pick->kv_head, clusters = zones->clusters;
    struct ranking ranking = { .zones = zones, .middle = middle, .clusters = clusters,
                               .begin = zones->begin + g * (clusters + 1),
                               .members = zones->members + g * zones_covered(zones) };
    ranking.top.ids = pick->scratch;
    ranking.top.scores = (float *)(void *)(ranking.top.ids + clusters);
    ranking.weights = ranking.top.scores + clusters;
    ranking.mass = ranking.weights + pick->group * clusters;
    ranking.largest = ranking.mass + clusters;
    ranking.acc = ranking.largest + pick->group;
    ranking.sizes = (uint32_t *)(void *)(ranking.acc + pick->head_dim);
    return ranking;
}

/* The first member of cluster c at or behind `position`, as an index into members. */
static size_t first_member(const struct ranking *ranking, size_t c, uint64_t position)
{
    size_t low = ranking->begin[c], high = ranking->begin[c + 1];
    while (low < high) {
        size_t half = low + (high - low) / 2;
        if (ranking->members[half] < position) low = half + 1;
        else high = half;
    }
    return low;
}

static void count_members(const struct ranking *ranking)
{
    const struct zones *zones = ranking->zones;
    bool all = ranking->middle.begin <= zones->sinks && ranking->middle.end >= zones->base.tokens;
    for (size_t c = 0; c < ranking->clusters; c++) {
        size_t count = ranking->begin[c + 1] - ranking->begin[c];
        if (!all)
            count = first_member(ranking, c, ranking->middle.end) -
                    first_member(ranking, c, ranking->middle.begin);
        ranking->sizes[c] = (uint32_t)count;
    }
}

/* Scores of head m become weights; their softmax is added to the ranking's mass. */
static void soften(const struct ranking *ranking, size_t m)
{
    float *weights = ranking->weights + m * ranking->clusters;
    float largest = -INFINITY;
    for (size_t c = 0; c < ranking->clusters; c++)
        if (ranking->sizes[c] > 0 && weights[c] > largest) largest = weights[c];
    double sum = 0.0;
    for (size_t c = 0; c < ranking->clusters; c++) {
        weights[c] = ranking->sizes[c] > 0 ? expf(weights[c] - largest) : 0.0F;
        sum += (double)weights[c];
    }
    ranking->largest[m] = largest;
    float scale = sum > 0.0 ? (float)(1.0 / sum) : 0.0F;
    for (size_t c = 0; c < ranking->clusters; c++) ranking->mass[c] += scale * weights[c];
}

/* The best `wanted` clusters of the KV head, in front of them the best `retrieval`;
 * ranking->best says how many there are. */
static void rank(struct pick *pick, struct ranking *ranking, size_t wanted, size_t retrieval)
{
    size_t head_dim = pick->head_dim, clusters = ranking->clusters;
    const uint16_t *centroids = ranking->zones->centroids + pick->kv_head * clusters * head_dim;
    count_members(ranking);
    backend_get()->score(&(struct score_args){
        .q = pick->q, .queries = pick->group, .head_dim = head_dim, .k = centroids,
        .k_stride_bytes = head_dim * sizeof *centroids, .tokens = clusters, .dtype = DTYPE_FP16,
        .scores = ranking->weights });
    pick_count(pick, INDEX_CLUSTERS, clusters,
               clusters * (head_dim * sizeof *centroids + sizeof *ranking->begin));
    memset(ranking->mass, 0, clusters * sizeof *ranking->mass);
    for (size_t m = 0; m < pick->group; m++) soften(ranking, m);
    for (size_t c = 0; c < clusters; c++) {
        if (ranking->sizes[c] == 0) continue;
        ranking->top.ids[ranking->top.k] = c;
        ranking->top.scores[ranking->top.k++] = ranking->mass[c];
    }
    if (wanted < ranking->top.k) {
        topk_select(&ranking->top, wanted);
        ranking->top.k = wanted;
    }
    ranking->best = ranking->top.k;
    if (retrieval < ranking->best) topk_select(&ranking->top, retrieval);
}

/* All members of the first `count` clusters of the ranking. */
static void read_members(struct pick *pick, const struct ranking *ranking, size_t count)
{
    uint64_t positions[LIST_POSITIONS];
    size_t filled = 0;
    for (size_t i = 0; i < count; i++) {
        size_t c = (size_t)ranking->top.ids[i];
        size_t at = first_member(ranking, c, ranking->middle.begin);
        pick_count(pick, INDEX_CLUSTERS, 0, ranking->sizes[c] * sizeof *ranking->members);
        for (size_t left = ranking->sizes[c]; left > 0; left--) {
            positions[filled++] = ranking->members[at++];
            if (filled < LIST_POSITIONS) continue;
            pick_list(pick, PICK_GROUP, positions, filled);
            filled = 0;
        }
    }
    pick_list(pick, PICK_GROUP, positions, filled);
}

/* acc += weight * mean; bf16 are the upper halves of fp32 */
static void add_mean(float *restrict acc, float weight, const uint16_t *restrict mean,
                     size_t head_dim)
{
    for (size_t d = 0; d < head_dim; d += 8) {
        uint32_t bits[8];
        float values[8];
        for (size_t i = 0; i < 8; i++) bits[i] = (uint32_t)mean[d + i] << 16;
        memcpy(values, bits, sizeof values);
        for (size_t i = 0; i < 8; i++) acc[d + i] += weight * values[i];
    }
}

/* The clusters `first` … best-1 of the ranking stand for their members in head m. Returns the sum
 * of their weights. */
static double estimate(struct pick *pick, const struct ranking *ranking, size_t m, size_t first)
{
    const float *weights = ranking->weights + m * ranking->clusters;
    const uint16_t *means = ranking->zones->means +
                            pick->kv_head * ranking->clusters * pick->head_dim;
    double sum = 0.0;
    memset(ranking->acc, 0, pick->head_dim * sizeof *ranking->acc);
    for (size_t i = first; i < ranking->best; i++) {
        size_t c = (size_t)ranking->top.ids[i];
        float weight = weights[c] * (float)ranking->sizes[c];
        sum += (double)weight;
        add_mean(ranking->acc, weight, means + c * pick->head_dim, pick->head_dim);
    }
    if (sum > 0.0) pick_merge(pick, m, ranking->largest[m], (float)sum, ranking->acc);
    return sum;
}

/* Shares of the mass, with what was dropped as its centroids estimate it. `exact` is the log of the
 * mass that was read, `estimated` what the estimation zone adds. */
static void note_mass(struct pick *pick, const struct ranking *ranking, size_t m, double exact,
                      double estimated)
{
    const float *weights = ranking->weights + m * ranking->clusters;
    double all = 0.0, taken = 0.0;
    for (size_t c = 0; c < ranking->clusters; c++)
        all += (double)weights[c] * (double)ranking->sizes[c];
    for (size_t i = 0; i < ranking->best; i++)
        taken += (double)weights[ranking->top.ids[i]] *
                 (double)ranking->sizes[ranking->top.ids[i]];
    double dropped = all > taken ? all - taken : 0.0;
    double read = exp(exact - (double)ranking->largest[m]); /* in units of the weights */
    float *mass = pick->mass + m * INDEX_LEVELS;
    mass[INDEX_EXACT] = isinf(read) ? 1.0F : (float)(read / (read + estimated + dropped));
    mass[INDEX_CLUSTERS] = isinf(read) ? 0.0F : (float)(estimated / (read + estimated + dropped));
    pick->predicted[m] = NAN;
}

static bool reads_all(const struct ranking *ranking, size_t retrieval)
{
    size_t some = 0;
    for (size_t c = 0; c < ranking->clusters; c++) some += ranking->sizes[c] > 0;
    return some <= retrieval;
}

static size_t share_of(double percent, size_t clusters)
{
    return (size_t)ceil(percent / 100.0 * (double)clusters);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const struct zones *zones = pick->call->version;
    const double *options = pick->call->options;
    uint64_t sinks = zones == NULL ? (uint64_t)options[ZONES_SINKS] : zones->sinks;
    uint64_t covered = zones == NULL ? 0 : zones->base.tokens;
    struct pick_middle middle = pick_steady(pick, sinks, (uint64_t)options[ZONES_LOCAL], covered);
    if (middle.begin >= middle.end || zones == NULL || zones->clusters == 0) return 0;
    struct ranking ranking = ranking_at(pick, middle);
    size_t retrieval = share_of(options[ZONES_RETRIEVAL], zones->clusters);
    size_t wanted = share_of(options[ZONES_RETRIEVAL] + options[ZONES_ESTIMATION],
                             zones->clusters);
    if (wanted > zones->clusters) wanted = zones->clusters;
    bool attends = pick->call->partial != NULL;
    if (wanted > 0) rank(pick, &ranking, attends ? wanted : retrieval, retrieval);
    if (retrieval > ranking.best) retrieval = ranking.best;
    read_members(pick, &ranking, retrieval);
    if (wanted == 0) pick_dropped(pick, PICK_GROUP);
    if (!attends || wanted == 0 || pick->stopped != 0 || reads_all(&ranking, retrieval)) return 0;
    size_t estimates = ranking.best - retrieval;
    pick_count(pick, INDEX_CLUSTERS, estimates,
               estimates * pick->head_dim * sizeof *zones->means);
    for (size_t m = 0; m < pick->group; m++) {
        double exact = (double)pick->max[m] + log((double)pick->sum[m]);
        double estimated = estimate(pick, &ranking, m, retrieval);
        note_mass(pick, &ranking, m, exact, estimated);
    }
    return 0;
}

static size_t scratch_bytes(const struct layer_index *version, const struct attend_args *args)
{
    const struct zones *zones = (const struct zones *)(const void *)version;
    if (zones == NULL) return 0;
    assert(zones->kv_heads == args->kv_heads && zones->head_dim == args->q.shape[2]);
    return ranking_bytes(args->q.shape[1] / args->kv_heads, zones->clusters, zones->head_dim);
}

static int zones_attend(const struct layer_index *version, const struct index_args *args,
                        const double *options, struct arena *arena,
                        const struct index_answer *ret_answer, struct error *err)
{
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .version = version,
                                         .scratch_bytes = scratch_bytes(version, &args->attend),
                                         .partial = &ret_answer->partial,
                                         .quality = ret_answer->quality,
                                         .plan = args->plan },
                    arena, err);
}

static int zones_search(const struct layer_index *version, const struct index_args *args,
                        const double *options, struct arena *arena,
                        const struct index_found *ret_found, struct error *err)
{
    if (ret_found->hits.k == 0) return 0;
    return pick_run(&(struct pick_call){ .args = args, .task = task, .options = options,
                                         .version = version,
                                         .scratch_bytes = scratch_bytes(version, &args->attend),
                                         .hits = &ret_found->hits, .quality = ret_found->quality },
                    arena, err);
}

static void zones_free(struct layer_index *version)
{
    if (version == NULL) return;
    struct zones *zones = (struct zones *)(void *)version;
    free(zones->begin);
    free(zones->members);
    free(zones->centroids);
    free(zones->means);
    free(zones);
}

const struct layer_index_type zones_type = {
    .name = "retroinfer", .options = &table, .step_tokens = ZONES_STEP, .build = zones_build,
    .free = zones_free, .save = zones_save, .load = zones_load, .validate = zones_validate,
    .attend = zones_attend, .search = zones_search };
