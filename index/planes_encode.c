/* SPDX-License-Identifier: Apache-2.0 */
/* planes_encode.c — code one KV head of a segment: clusters first, then tile by tile.
 *
 * Keys are widened once and kept in the metric of the observed queries, m = w (k - key_mean) with
 * w_c = rms_q,c, for clustering; the factor t / w leads from there into the space of codes, so that
 * one copy of the keys serves both. Values are read once, in cluster order, straight from where
 * they are stored.
 *
 * Channels that queries hardly use get a small w and t instead of none: a later query may use them,
 * and t must have an inverse.
 *
 * Nothing is checked on the way: what overflows becomes infinite or NaN in some scale, and one look
 * over the result at the end refuses it.
 */
#include "index/planes.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/view.h"
#include "base/arena.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/tensor.h"
#include "index/bisect.h"
#include "index/encode_backend.h"
#include "index/rotation.h"

enum {
    ALIGN = 64,
    CHUNK = 64, /* rows that are still in a near cache when they are summed, and after which rotate
                 * takes sines anew anyway */
};

/* Below this part of the overall rms, a channel counts as if it had that much. */
static const double FLOOR = 1e-3;
/* rms of the rows of k': the largest of 1,024 rows is at most 32 times longer, and a step of 2^-24
 * (the smallest) belongs to one a million times shorter. */
static const double CODED_NORM = 1024.0;

struct coder {
    const struct planes_layout *layout;
    const struct planes_source *source;
    unsigned char *hi, *lo;
    float *rows;    /* (1024, D) keys, then in the metric */
    float *metric;  /* (D) w */
    float *factor;  /* (D) t / w */
    float *weight;  /* (D) query_square / w² */
    float *square;  /* (D) Σ over the rows of (k - mean)² */
    float *scratch; /* (17, D) */
    uint8_t *centroids;                       /* (64, D) codes */
    uint16_t *order;                          /* (1024) in the payload */
    float *balance, *query_square, *key_mean; /* (D) in the payload */
};

/* The same where the model wants keys rotated. */
static void rotate_keys(const struct coder *coder, struct encode_load_args load)
{
    const struct view *view = coder->source->view;
    const unsigned char *from = load.rows;
    for (size_t row = 0; row < PLANES_TOKENS; row += CHUNK) {
        backend_get()->rotate(&(struct rotate_args){
            .rope = coder->source->rope, .rows = from + row * view->k_stride_bytes,
            .stride_bytes = view->k_stride_bytes, .dtype = view->dtype, .count = CHUNK,
            .position = view->position + row, .out = load.out });
        load.rows = load.out;
        load.stride_bytes = load.head_dim * sizeof(float);
        load.dtype = DTYPE_FP32;
        load.count = CHUNK;
        encode_backend_get()->load(&load);
        load.out += CHUNK * load.head_dim;
    }
}

/* Keys as fp32, and their mean. */
static void load_keys(const struct coder *coder)
{
    const struct view *view = coder->source->view;
    const size_t head_dim = coder->layout->head_dim;
    memset(coder->key_mean, 0, head_dim * sizeof(float));
    struct encode_load_args load = { .rows = view->k, .stride_bytes = view->k_stride_bytes,
                                     .dtype = view->dtype, .count = PLANES_TOKENS,
                                     .head_dim = head_dim, .out = coder->rows,
                                     .sum = coder->key_mean };
    if (coder->source->rope == NULL) encode_backend_get()->load(&load);
    else rotate_keys(coder, load);
    for (size_t d = 0; d < head_dim; d++) coder->key_mean[d] /= PLANES_TOKENS;
}

static double mean_of(const float *values, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += (double)values[i];
    return sum / (double)count;
}

/* w, from the observed queries; 1 where there are none. */
static void choose_metric(const struct coder *coder)
{
    size_t head_dim = coder->layout->head_dim;
    double mean = mean_of(coder->query_square, head_dim);
    for (size_t d = 0; d < head_dim; d++) {
        double square = fmax((double)coder->query_square[d], FLOOR * FLOOR * mean);
        coder->metric[d] = mean > 0.0 ? (float)sqrt(square / mean) : 1.0F;
    }
}

/* t, from queries and keys; a power of two brings the norm of k' near CODED_NORM. */
static void choose_balance(const struct coder *coder)
{
    size_t head_dim = coder->layout->head_dim;
    double key_mean = mean_of(coder->square, head_dim), total = 0.0;
    for (size_t d = 0; d < head_dim; d++) {
        double key = fmax((double)coder->square[d], FLOOR * FLOOR * key_mean);
        double ratio = key_mean > 0.0 ? (double)coder->metric[d] / sqrt(key / key_mean) : 1.0;
        coder->balance[d] = (float)sqrt(ratio);
        total += (double)coder->square[d] * ratio;
    }
    double norm = sqrt(total / PLANES_TOKENS);
    int exponent = 0;
    if (norm > 0.0 && isfinite(norm)) (void)frexp(CODED_NORM / norm, &exponent);
    for (size_t d = 0; d < head_dim; d++) {
        coder->balance[d] = ldexpf(coder->balance[d], exponent);
        coder->factor[d] = coder->balance[d] / coder->metric[d];
        float square = coder->source->queries > 0 ? coder->query_square[d] : 1.0F;
        coder->weight[d] = square / (coder->metric[d] * coder->metric[d]);
    }
}

static int find_clusters(const struct coder *coder, struct arena *arena)
{
    return bisect_rows(coder->rows, PLANES_TOKENS, coder->layout->head_dim, arena, coder->order);
}

/* centroids (64, D) */
static void put_centroids(const struct coder *coder)
{
    size_t head_dim = coder->layout->head_dim;
    for (size_t cluster = 0; cluster < PLANES_CLUSTERS; cluster++) {
        const uint8_t *codes = coder->centroids + cluster * head_dim;
        uint8_t *tile = coder->hi + coder->layout->centroids + cluster / 16 * 16 * head_dim;
        for (size_t d = 0; d < head_dim; d += 4)
            memcpy(tile + 16 * d + 4 * (cluster % 16), codes + d, 4);
    }
}

static void code_keys(const struct coder *coder)
{
    const struct planes_layout *layout = coder->layout;
    size_t head_dim = layout->head_dim;
    encode_backend_get()->keys(&(struct encode_keys_args){
        .rows = coder->rows,
        .order = coder->order,
        .count = PLANES_TOKENS,
        .factor = coder->factor,
        .weight = coder->weight,
        .signs = { rotation_signs(0), rotation_signs(1) },
        .head_dim = head_dim,
        .scratch = coder->scratch,
        .tile = { .hi = coder->hi + layout->key_hi,
                  .step = (uint16_t *)(void *)(coder->hi + layout->key_scale),
                  .lo = coder->lo,
                  .lo_stride_bytes = head_dim,
                  .mean = coder->centroids,
                  .mean_scale = (float *)(void *)(coder->hi + layout->centroid_scale),
                  .spread = (float *)(void *)(coder->hi + layout->key_spread) } });
    put_centroids(coder);
}

static void code_values(const struct coder *coder)
{
    const struct planes_layout *layout = coder->layout;
    const struct view *view = coder->source->view;
    size_t head_dim = layout->head_dim;
    encode_backend_get()->values(&(struct encode_values_args){
        .rows = view->v,
        .stride_bytes = view->v_stride_bytes,
        .dtype = view->dtype,
        .order = coder->order,
        .count = PLANES_TOKENS,
        .signs = { rotation_signs(0), rotation_signs(1) },
        .head_dim = head_dim,
        .scratch = coder->scratch,
        .tile = { .hi = coder->hi + layout->value_hi,
                  .step = (uint16_t *)(void *)(coder->hi + layout->value_scale),
                  .lo = coder->lo + head_dim / 2,
                  .lo_stride_bytes = head_dim,
                  .mean = coder->hi + layout->means,
                  .mean_scale = (float *)(void *)(coder->hi + layout->mean_scale),
                  .spread = (float *)(void *)(coder->hi + layout->value_spread) } });
}

static void put_head(const struct coder *coder)
{
    struct bytes_writer out = bytes_writer(coder->hi, PLANES_HEAD_BYTES);
    bytes_put_le32(&out, PLANES_MAGIC);
    bytes_put_le16(&out, PLANES_VERSION);
    bytes_put_le16(&out, (uint16_t)coder->layout->head_dim);
    bytes_put_le64(&out, coder->source->queries);
    assert(!out.bad);
}

/* Payload and scratch; false when there is no memory. */
static bool prepare(struct coder *coder, struct arena *arena)
{
    const struct planes_layout *layout = coder->layout;
    size_t head_dim = layout->head_dim;
    const size_t floats = (PLANES_TOKENS + 4 + ENCODE_ROWS + 1) * head_dim;
    float *memory = arena_alloc_aligned(
        arena, floats * sizeof *memory + PLANES_CLUSTERS * head_dim, ALIGN);
    if (memory == NULL) return false;
    coder->rows = memory;
    coder->metric = coder->rows + PLANES_TOKENS * head_dim;
    coder->factor = coder->metric + head_dim;
    coder->weight = coder->factor + head_dim;
    coder->square = coder->weight + head_dim;
    coder->scratch = coder->square + head_dim;
    coder->centroids = (uint8_t *)(coder->scratch + (ENCODE_ROWS + 1) * head_dim);
    coder->order = (uint16_t *)(void *)(coder->hi + layout->rows);
    memset(coder->hi, 0, layout->key_hi); /* gaps between the arrays too */
    memset(coder->hi + layout->value_hi + PLANES_TOKENS * head_dim / 2, 0,
           layout->hi_bytes - layout->value_hi - PLANES_TOKENS * head_dim / 2);
    coder->balance = (float *)(void *)(coder->hi + layout->balance);
    coder->query_square = (float *)(void *)(coder->hi + layout->query_square);
    coder->key_mean = (float *)(void *)(coder->hi + layout->key_mean);
    if (coder->source->queries > 0)
        memcpy(coder->query_square, coder->source->query_square, head_dim * sizeof(float));
    return true;
}

int planes_encode(const struct planes_layout *layout, const struct planes_source *source,
                  struct arena *arena, unsigned char *ret_hi, unsigned char *ret_lo,
                  struct error *err)
{
    assert(source->view->tokens == PLANES_TOKENS && (uintptr_t)ret_hi % ALIGN == 0);
    assert((source->queries == 0) == (source->query_square == NULL));
    struct coder coder = { .layout = layout, .source = source, .hi = ret_hi, .lo = ret_lo };
    if (!prepare(&coder, arena))
        return error_set(err, MEMD_ENOMEM, "planes: no memory for %zu dimensions",
                         layout->head_dim);
    load_keys(&coder);
    choose_metric(&coder);
    encode_backend_get()->centre(&(struct encode_centre_args){
        .rows = coder.rows, .count = PLANES_TOKENS, .head_dim = layout->head_dim,
        .mean = coder.key_mean, .factor = coder.metric, .square = coder.square });
    choose_balance(&coder);
    if (find_clusters(&coder, arena) < 0)
        return error_set(err, MEMD_ENOMEM, "planes: no memory to cluster");
    code_keys(&coder);
    code_values(&coder);
    put_head(&coder);
    struct planes unused;
    struct error why = { 0 };
    if (planes_open(layout, ret_hi, ret_lo, &unused, &why) < 0)
        return error_set(err, MEMD_EUNSUPPORTED, "rows out of range: %s", why.text);
    return 0;
}
