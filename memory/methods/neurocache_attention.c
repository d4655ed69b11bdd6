/* SPDX-License-Identifier: Apache-2.0 */
/* neurocache_attention.c — states of some queries are loaded once, then each KV head of each query
 * is a task. */
#include "memory/methods/neurocache.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/index.h"
#include "index/vectors.h"
#include "memory/methods/methods.h"

enum { WAVE_BYTES = 16 << 20 }; /* of states and scratch that are there at a time */

struct wave {
    const struct neurocache_attention *attention;
    size_t first, queries; /* of this wave */
    size_t sets;           /* window * set: states of a query */
    size_t width, head_dim, group;
    float *states;  /* (queries, sets, W) */
    float *scratch; /* (queries, G, scratch_floats) */
    size_t scratch_floats;
    const struct partial *partial;
};

/* Token of the request whose set is the `t`-th of query i's window: the published code clamps at
 * the first. */
static size_t source_of(const struct neurocache_attention *attention, size_t query, size_t t)
{
    size_t back = attention->window - 1 - t;
    return query < back ? 0 : query - back;
}

static void load_states(void *arg, size_t idx)
{
    struct wave *wave = arg;
    const struct neurocache_attention *attention = wave->attention;
    size_t set = attention->set;
    for (size_t t = 0; t < attention->window; t++) {
        size_t from = source_of(attention, wave->first + idx, t);
        vectors_load(&attention->rows, attention->found + from * set, set,
                     wave->states + (idx * wave->sets + t * set) * wave->width);
    }
}

static bool is_read(const struct wave *wave, size_t idx, size_t at)
{
    const struct neurocache_attention *attention = wave->attention;
    size_t from = source_of(attention, wave->first + idx, at / attention->set);
    uint64_t position = attention->found[from * attention->set + at % attention->set];
    return attention->zero_rows || position != INDEX_NONE;
}

/* q (D) of a head, scaled. */
static void load_query(const struct wave *wave, size_t query, size_t head, float *ret_q)
{
    const struct attend_args *args = &wave->attention->reading->attend;
    size_t at = (query * args->q.shape[1] + head) * wave->head_dim * dtype_bytes(args->q.dtype);
    backend_widen((const unsigned char *)args->q.data + at, args->q.dtype, 1, wave->head_dim,
                  ret_q);
    for (size_t d = 0; d < wave->head_dim; d++) ret_q[d] *= args->scale;
}

/* scores (sets) → weights in place; the lse, -inf where nothing is read. */
static float soften(const struct wave *wave, size_t idx, float *scores)
{
    float max = -INFINITY;
    double sum = 0.0;
    for (size_t i = 0; i < wave->sets; i++)
        if (is_read(wave, idx, i)) max = fmaxf(max, scores[i]);
    for (size_t i = 0; i < wave->sets; i++) {
        scores[i] = is_read(wave, idx, i) ? expf(scores[i] - max) : 0.0F;
        sum += (double)scores[i];
    }
    for (size_t i = 0; i < wave->sets && sum > 0.0; i++)
        scores[i] = (float)((double)scores[i] / sum);
    return sum > 0.0 ? (float)((double)max + log(sum)) : -INFINITY;
}

/* into (W) += factor * row (W) */
static void add(float *into, float factor, const float *row, size_t width)
{
    for (size_t i = 0; i < width; i++) into[i] += factor * row[i];
}

/* Scratch (2 W + sets + D). */
static void attend_transposed(const struct wave *wave, size_t idx, size_t g, float *scratch)
{
    const struct neurocache_attention *attention = wave->attention;
    size_t width = wave->width, dim = wave->head_dim, heads = attention->kv_heads * wave->group;
    const float *states = wave->states + idx * wave->sets * width;
    const float *key = attention->key + g * dim * width,
                *value = attention->value + g * dim * width;
    float *inward = scratch, *mean = inward + width, *scores = mean + width;
    float *q = scores + wave->sets;
    for (size_t m = 0; m < wave->group; m++) {
        size_t head = g * wave->group + m, row = (wave->first + idx) * heads + head;
        load_query(wave, wave->first + idx, head, q);
        memset(inward, 0, 2 * width * sizeof *inward);
        for (size_t d = 0; d < dim; d++) add(inward, q[d], key + d * width, width);
        vectors_products(inward, 1, states, wave->sets, width, scores);
        wave->partial->lse[row] = soften(wave, idx, scores);
        for (size_t i = 0; i < wave->sets; i++) add(mean, scores[i], states + i * width, width);
        vectors_products(mean, 1, value, dim, width, wave->partial->o + row * dim);
    }
}

/* Scratch (2 sets D + group (D + 2)). */
static void attend_raw(const struct wave *wave, size_t idx, size_t g, float *scratch)
{
    const struct neurocache_attention *attention = wave->attention;
    size_t width = wave->width, dim = wave->head_dim, set = attention->set, count = 0;
    size_t kv_heads = attention->kv_heads, heads = kv_heads * wave->group;
    const float *states = wave->states + idx * wave->sets * width;
    float *k = scratch, *v = k + wave->sets * dim, *q = v + wave->sets * dim;
    float *max = q + wave->group * dim, *sum = max + wave->group;
    for (size_t at = 0; at < wave->sets; at++) {
        size_t flat = g * set + at % set, state = at - at % set + flat / kv_heads;
        if (!is_read(wave, idx, state)) continue;
        const float *c = states + state * width;
        size_t block = flat % kv_heads * dim * width;
        vectors_products(c, 1, attention->key + block, dim, width, k + count * dim);
        vectors_products(c, 1, attention->value + block, dim, width, v + count * dim);
        count++;
    }
    uint32_t visible[LIMIT_HEADS];
    size_t row = (wave->first + idx) * heads + g * wave->group;
    for (size_t m = 0; m < wave->group; m++) {
        load_query(wave, wave->first + idx, g * wave->group + m, q + m * dim);
        visible[m] = (uint32_t)count;
        max[m] = -INFINITY;
        sum[m] = 0.0F;
    }
    struct partial part = { .o = wave->partial->o + row * dim,
                            .lse = wave->partial->lse + row,
                            .rows = wave->group,
                            .head_dim = dim };
    memset(part.o, 0, wave->group * dim * sizeof *part.o);
    backend_get()->partial(&(struct partial_args){ .q = q,
                                                   .visible = visible,
                                                   .queries = wave->group,
                                                   .head_dim = dim,
                                                   .k = k,
                                                   .v = v,
                                                   .k_stride_bytes = dim * sizeof *k,
                                                   .v_stride_bytes = dim * sizeof *v,
                                                   .tokens = count,
                                                   .k_dtype = DTYPE_FP32,
                                                   .v_dtype = DTYPE_FP32,
                                                   .max = max,
                                                   .sum = sum,
                                                   .acc = part.o });
    partial_finish(max, sum, &part);
}

static void attend_head(void *arg, size_t idx)
{
    struct wave *wave = arg;
    size_t kv_heads = wave->attention->kv_heads, query = idx / kv_heads, g = idx % kv_heads;
    float *scratch = wave->scratch + idx * wave->scratch_floats;
    if (wave->attention->raw_view)
        attend_raw(wave, query, g, scratch);
    else
        attend_transposed(wave, query, g, scratch);
}

int neurocache_attend(const struct neurocache_attention *attention, struct arena *arena,
                      const struct partial *ret_partial, struct error *err)
{
    const struct attend_args *args = &attention->reading->attend;
    struct wave wave = { .attention = attention,
                         .sets = attention->window * attention->set,
                         .width = 2 * attention->rows.head_dim,
                         .head_dim = args->q.shape[2],
                         .group = args->q.shape[1] / attention->kv_heads,
                         .partial = ret_partial };
    size_t raw = 2 * wave.sets * wave.head_dim + wave.group * (wave.head_dim + 2);
    size_t transposed = 2 * wave.width + wave.sets + wave.head_dim;
    wave.scratch_floats = ((attention->raw_view ? raw : transposed) + 15) / 16 * 16;
    size_t floats = wave.sets * wave.width + attention->kv_heads * wave.scratch_floats;
    size_t most = WAVE_BYTES / (floats * sizeof(float)) + 1, n = args->q.shape[0];
    if (most > n) most = n;
    wave.states = arena_alloc_aligned(arena, most * wave.sets * wave.width * sizeof(float), 64);
    wave.scratch = arena_alloc_aligned(
        arena, most * attention->kv_heads * wave.scratch_floats * sizeof(float), 64);
    if (wave.states == NULL || wave.scratch == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu states of a query", wave.sets);
    for (; wave.first < n; wave.first += most) {
        int rc = args->stop == NULL ? 0 : args->stop(args->stop_arg);
        if (rc != 0) return error_set(err, rc, "%s while reading states", error_text(rc));
        wave.queries = n - wave.first < most ? n - wave.first : most;
        pool_for(args->pool, wave.queries, load_states, &wave);
        pool_for(args->pool, wave.queries * attention->kv_heads, attend_head, &wave);
    }
    return 0;
}
