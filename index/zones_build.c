/* SPDX-License-Identifier: Apache-2.0 */
/* zones_build.c — clusters of a prompt, clusters of 1,024 tokens, and the version made of both.
 *
 * A *chunk* is what is clustered together: the prompt in segments of about 8,192 tokens of equal
 * length, or 1,024 later tokens in one. Four rounds of tasks over (KV head, segment): the mean key
 * of a chunk (one task per KV head) · training inside each segment · labels against all centroids
 * of the chunk · members and plain means (one per KV head). Rows are widened to fp32 one segment at
 * a time, so that a build needs a few MiB per thread beside the centroids.
 *
 * Rejected: inserting tokens into clusters that exist (the paper does not, and centroids would
 * drift from their members).
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/kmeans.h"
#include "index/rows.h"
#include "index/zones.h"
#include "proto/limits.h"

enum { LOAD_ROWS = 16 };

static const float FP16_MOST = 65504.0F;

struct chunk {
    const struct layer_source *source;
    struct rows rows;
    struct zones *zones;
    uint64_t begin;        /* position of its first token */
    size_t tokens, segments;
    size_t first, clusters; /* its clusters among those of the version; a multiple of segments */
    size_t passes;
    float *mean;      /* (G, D) of keys */
    float *centroids; /* (G, clusters, D) of centred keys */
    uint32_t *labels; /* (G, tokens) */
    int *codes;       /* (G, segments) */
};

struct zones *zones_new(const struct layer_source *shape, uint64_t tokens, uint64_t sinks,
                        size_t clusters)
{
    struct zones *zones = calloc(1, sizeof *zones);
    if (zones == NULL) return NULL;
    size_t heads = shape->kv_heads;
    zones->base.type = &zones_type;
    zones->base.tokens = tokens;
    atomic_init(&zones->base.references, 1);
    zones->kv_heads = heads;
    zones->head_dim = shape->head_dim;
    zones->clusters = clusters;
    zones->sinks = sinks;
    size_t floats = heads * clusters * shape->head_dim, covered = heads * zones_covered(zones);
    zones->begin = calloc(heads * (clusters + 1), sizeof *zones->begin);
    zones->members = calloc(covered + 1, sizeof *zones->members);
    zones->centroids = calloc(floats + 1, sizeof *zones->centroids);
    zones->means = calloc(floats + 1, sizeof *zones->means);
    zones->base.bytes = sizeof *zones + heads * (clusters + 1) * sizeof *zones->begin +
                        covered * sizeof *zones->members + floats * 2 * sizeof *zones->means;
    if (zones->begin != NULL && zones->members != NULL && zones->centroids != NULL &&
        zones->means != NULL)
        return zones;
    zones_type.free(&zones->base);
    return NULL;
}

/* The first row of segment s, counted in the chunk. */
static size_t segment_begin(const struct chunk *chunk, size_t s)
{
    return chunk->tokens * s / chunk->segments;
}

static void mean_task(void *arg, size_t g)
{
    struct chunk *chunk = arg;
    size_t head_dim = chunk->rows.head_dim;
    double sum[LIMIT_HEAD_DIM] = { 0 };
    float keys[LOAD_ROWS * LIMIT_HEAD_DIM];
    for (size_t at = 0; at < chunk->tokens; at += LOAD_ROWS) {
        size_t count = chunk->tokens - at < LOAD_ROWS ? chunk->tokens - at : LOAD_ROWS;
        rows_keys(&chunk->rows, g, chunk->begin + at, count, keys);
        for (size_t i = 0; i < count; i++)
            for (size_t d = 0; d < head_dim; d++) sum[d] += (double)keys[i * head_dim + d];
    }
    for (size_t d = 0; d < head_dim; d++)
        chunk->mean[g * head_dim + d] = (float)(sum[d] / (double)chunk->tokens);
}

/* The centred keys of a segment, on the heap; NULL without memory. */
static float *load_segment(const struct chunk *chunk, size_t g, size_t begin, size_t count)
{
    size_t head_dim = chunk->rows.head_dim;
    float *keys = malloc(count * head_dim * sizeof *keys);
    if (keys == NULL) return NULL;
    const float *mean = chunk->mean + g * head_dim;
    rows_keys(&chunk->rows, g, chunk->begin + begin, count, keys);
    for (size_t i = 0; i < count; i++)
        for (size_t d = 0; d < head_dim; d++) keys[i * head_dim + d] -= mean[d];
    return keys;
}

/* idx = g * segments + s: centroids of the segment */
static void train_task(void *arg, size_t idx)
{
    struct chunk *chunk = arg;
    size_t g = idx / chunk->segments, s = idx % chunk->segments, head_dim = chunk->rows.head_dim;
    size_t begin = segment_begin(chunk, s), count = segment_begin(chunk, s + 1) - begin;
    size_t clusters = chunk->clusters / chunk->segments;
    CLEANUP(free_ptr) float *keys = load_segment(chunk, g, begin, count);
    chunk->codes[idx] = MEMD_ENOMEM;
    if (keys == NULL) return;
    float *centroids = chunk->centroids + (g * chunk->clusters + s * clusters) * head_dim;
    for (size_t c = 0; c < clusters; c++) { /* the key in the middle of each run of 16 */
        size_t row = (2 * c + 1) * count / (2 * clusters);
        memcpy(centroids + c * head_dim, keys + row * head_dim, head_dim * sizeof *keys);
    }
    struct kmeans kmeans = { .rows = keys, .count = count, .head_dim = head_dim,
                             .centroids = centroids, .clusters = clusters,
                             .labels = chunk->labels + g * chunk->tokens + begin,
                             .stop = chunk->source->stop, .stop_arg = chunk->source->stop_arg };
    chunk->codes[idx] = kmeans_train(&kmeans, chunk->passes - 1, NULL);
}

/* The same idx: labels among all centroids of the chunk */
static void label_task(void *arg, size_t idx)
{
    struct chunk *chunk = arg;
    size_t g = idx / chunk->segments, s = idx % chunk->segments, head_dim = chunk->rows.head_dim;
    size_t begin = segment_begin(chunk, s), count = segment_begin(chunk, s + 1) - begin;
    CLEANUP(free_ptr) float *keys = load_segment(chunk, g, begin, count);
    chunk->codes[idx] = keys == NULL ? MEMD_ENOMEM : 0;
    if (keys == NULL) return;
    kmeans_assign(&(struct kmeans){
        .rows = keys, .count = count, .head_dim = head_dim,
        .centroids = chunk->centroids + g * chunk->clusters * head_dim,
        .clusters = chunk->clusters, .labels = chunk->labels + g * chunk->tokens + begin });
}

/* begin[c+1] … and members of KV head g, by counting. */
static void sort_members(const struct chunk *chunk, size_t g)
{
    struct zones *zones = chunk->zones;
    const uint32_t *labels = chunk->labels + g * chunk->tokens;
    uint32_t *begin = zones->begin + g * (zones->clusters + 1) + chunk->first;
    uint32_t *members = zones->members + g * zones_covered(zones);
    assert(begin[0] == chunk->begin - zones->sinks);
    for (size_t c = 1; c <= chunk->clusters; c++) begin[c] = 0;
    for (size_t i = 0; i < chunk->tokens; i++) begin[labels[i] + 1]++;
    for (size_t c = 0; c < chunk->clusters; c++) begin[c + 1] += begin[c];
    for (size_t i = 0; i < chunk->tokens; i++) /* begin[c] runs on to where c + 1 begins … */
        members[begin[labels[i]]++] = (uint32_t)(chunk->begin + i);
    for (size_t c = chunk->clusters; c > 0; c--) begin[c] = begin[c - 1]; /* … and comes back */
    begin[0] = (uint32_t)(chunk->begin - zones->sinks);
}

/* Plain means of keys and values of one cluster. sum (2, D) and row (D): scratch */
static void mean_cluster(const struct chunk *chunk, size_t g, size_t c, float *sum, float *row)
{
    struct zones *zones = chunk->zones;
    size_t head_dim = zones->head_dim, at = (g * zones->clusters + c) * head_dim;
    const uint32_t *begin = zones->begin + g * (zones->clusters + 1);
    const uint32_t *members = zones->members + g * zones_covered(zones);
    size_t size = begin[c + 1] - begin[c];
    memset(sum, 0, 2 * head_dim * sizeof *sum);
    for (size_t i = begin[c]; i < begin[c + 1]; i++) {
        rows_keys(&chunk->rows, g, members[i], 1, row);
        for (size_t d = 0; d < head_dim; d++) sum[d] += row[d];
        rows_values(&chunk->rows, g, members[i], 1, row);
        for (size_t d = 0; d < head_dim; d++) sum[head_dim + d] += row[d];
    }
    float scale = size == 0 ? 0.0F : 1.0F / (float)size;
    for (size_t d = 0; d < 2 * head_dim; d++) sum[d] *= scale;
    for (size_t d = 0; d < head_dim; d++)
        sum[d] = fminf(fmaxf(sum[d], -FP16_MOST), FP16_MOST);
    half_store(sum, head_dim, DTYPE_FP16, zones->centroids + at);
    half_store(sum + head_dim, head_dim, DTYPE_BF16, zones->means + at);
}

static void finish_task(void *arg, size_t g)
{
    struct chunk *chunk = arg;
    float sum[2 * LIMIT_HEAD_DIM], row[LIMIT_HEAD_DIM];
    sort_members(chunk, g);
    for (size_t c = 0; c < chunk->clusters; c++)
        mean_cluster(chunk, g, chunk->first + c, sum, row);
}

/* The worst code of the tasks of a round, or what `stop` says. */
static int round_code(const struct chunk *chunk, struct error *err)
{
    size_t tasks = chunk->source->kv_heads * chunk->segments;
    int code = chunk->source->stop == NULL ? 0 : chunk->source->stop(chunk->source->stop_arg);
    for (size_t i = 0; code == 0 && i < tasks; i++) code = chunk->codes[i];
    if (code == 0) return 0;
    return error_set(err, code, "%s while clustering %zu tokens", error_text(code), chunk->tokens);
}

static int cluster_chunk(struct chunk *chunk, struct error *err)
{
    const struct layer_source *source = chunk->source;
    size_t heads = source->kv_heads, head_dim = source->head_dim;
    size_t tasks = heads * chunk->segments;
    assert(heads > 0 && chunk->clusters > 0 && chunk->tokens > 0 && head_dim > 0);
    CLEANUP(free_ptr) float *mean = malloc(heads * head_dim * sizeof *mean);
    CLEANUP(free_ptr) float *centroids =
        malloc(heads * chunk->clusters * head_dim * sizeof *centroids);
    CLEANUP(free_ptr) uint32_t *labels = malloc(heads * chunk->tokens * sizeof *labels);
    CLEANUP(free_ptr) int *codes = calloc(tasks, sizeof *codes);
    if (mean == NULL || centroids == NULL || labels == NULL || codes == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for clusters of %zu tokens", chunk->tokens);
    chunk->mean = mean;
    chunk->centroids = centroids;
    chunk->labels = labels;
    chunk->codes = codes;
    pool_for(source->pool, heads, mean_task, chunk);
    pool_for(source->pool, tasks, train_task, chunk);
    int rc = round_code(chunk, err);
    if (rc == 0) pool_for(source->pool, tasks, label_task, chunk);
    if (rc == 0) rc = round_code(chunk, err);
    if (rc == 0) pool_for(source->pool, heads, finish_task, chunk);
    return rc;
}

/* What is clustered for a version of `tokens` tokens after `before` (NULL: nothing). */
struct layout {
    uint64_t tokens, prompt;
    size_t clusters, prompt_segments, prompt_clusters;
    bool anew; /* the prompt is clustered; otherwise `before` is copied */
};

static struct layout plan(const struct zones *before, uint64_t tokens, uint64_t sinks)
{
    uint64_t known = before == NULL ? 0 : before->base.tokens;
    if (before != NULL && before->sinks == sinks && before->clusters > 0 && tokens >= known &&
        tokens - before->prompt < before->prompt) {
        size_t steps = (size_t)((tokens - known) / ZONES_STEP);
        return (struct layout){ .tokens = known + steps * ZONES_STEP, .prompt = before->prompt,
                                .clusters = before->clusters +
                                            steps * (ZONES_STEP / ZONES_CLUSTER) };
    }
    struct layout layout = { .tokens = tokens, .prompt = tokens, .anew = true };
    if (tokens <= sinks) return layout;
    size_t count = (size_t)(tokens - sinks);
    size_t segments = (count + ZONES_SEGMENT / 2) / ZONES_SEGMENT;
    layout.prompt_segments = segments == 0 ? 1 : segments;
    size_t each = count / layout.prompt_segments / ZONES_CLUSTER;
    layout.prompt_clusters = layout.prompt_segments * (each == 0 ? 1 : each);
    layout.clusters = layout.prompt_clusters;
    return layout;
}

static void copy(struct zones *zones, const struct zones *before)
{
    size_t old = before->clusters, head_dim = zones->head_dim;
    for (size_t g = 0; g < zones->kv_heads; g++) {
        size_t to = g * zones->clusters * head_dim, from = g * old * head_dim;
        memcpy(zones->begin + g * (zones->clusters + 1), before->begin + g * (old + 1),
               (old + 1) * sizeof *zones->begin);
        memcpy(zones->members + g * zones_covered(zones),
               before->members + g * zones_covered(before),
               zones_covered(before) * sizeof *zones->members);
        memcpy(zones->centroids + to, before->centroids + from,
               old * head_dim * sizeof *zones->centroids);
        memcpy(zones->means + to, before->means + from, old * head_dim * sizeof *zones->means);
    }
}

static void put_zones(struct zones **zones)
{
    if (*zones != NULL) layer_index_put(&(*zones)->base);
}

int zones_build(const struct layer_source *source, const struct layer_index *before,
                struct layer_index **ret_version, struct error *err)
{
    assert(source->head_dim <= LIMIT_HEAD_DIM && source->head_dim % 8 == 0);
    const struct zones *old = (const struct zones *)(const void *)before;
    uint64_t sinks = (uint64_t)source->options[ZONES_SINKS];
    struct layout layout = plan(old, source->tokens, sinks);
    CLEANUP(put_zones) struct zones *zones = zones_new(source, layout.tokens, sinks,
                                                       layout.clusters);
    if (zones == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu clusters", layout.clusters);
    zones->prompt = layout.prompt;
    struct chunk chunk = {
        .source = source, .zones = zones,
        .rows = { source->views, source->view_count, source->head_dim, source->rope },
        .begin = sinks, .tokens = zones_covered(zones), .segments = layout.prompt_segments,
        .clusters = layout.prompt_clusters, .passes = (size_t)source->options[ZONES_ITERATIONS] };
    int rc = 0;
    if (layout.anew) {
        if (chunk.clusters > 0) rc = cluster_chunk(&chunk, err);
    } else {
        copy(zones, old);
        chunk.segments = 1;
        chunk.tokens = ZONES_STEP;
        chunk.clusters = ZONES_STEP / ZONES_CLUSTER;
        chunk.first = old->clusters;
        chunk.begin = old->base.tokens;
    }
    for (; rc == 0 && !layout.anew && chunk.begin < layout.tokens; chunk.begin += ZONES_STEP) {
        rc = cluster_chunk(&chunk, err);
        chunk.first += chunk.clusters;
    }
    if (rc == 0) *ret_version = &TAKE(zones)->base;
    return rc;
}
