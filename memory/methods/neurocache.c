/* SPDX-License-Identifier: Apache-2.0 */
/* neurocache.c — Neurocache (Safaya, Yuret, arXiv 2407.02486) and the code beside it
 * (alisafaya/neurocache): one ring of compressed hidden states for all later layers, one search for
 * each token, keys and values made of what it found.
 *
 *     granularity  states of W numbers instead of keys and values; the newest `memory`, a ring
 *     selector     k nearest for each token, all heads alike: exact, of the best guesses in a large
 *                  ring (the default), or bucketed as published with min(max(k, 512), memory)
 *                  buckets; by L2 or dot (index/vectors.h)
 *     modifiers    `neighbours` of each hit by slot (index/bucketed.h); `window` tokens read
 *                  together what each of them found
 *     positions    none
 *     merge        separate: softmax over what was found, alone; the client adds W_o o
 *
 * A context holds states at its cache layers. A query brings the state of its token and the q of
 * the attention layer that it is asked for; `key` and `value` of that layer, uploaded, make cache
 * attention of it. `cache_layer` says whose states it reads. Without uploads `search` names the
 * tokens that were found, in published order, and `fetch` returns their states. With `encode` and
 * the norm uploaded, hidden states may be sent in place of states, by appends and queries.
 *
 * Faithful: slot p mod m holds token p; neighbours go by slot and are clipped there, so that once
 * the ring is full the oldest state is the next of the newest; where fewer than k slots are written
 * rows of zeros are found and take part with logit 0 and value 0, the counter of tokens says which
 * (the published test for a sum of zero fails on normalised states); both head layouts
 * (neurocache.h). A segment never retrieves itself because its queries set their limit at its
 * beginning, whatever has been appended by then: order of append and attend does not matter.
 * The window over tokens is that of a segment: it reaches back to the first query of the request
 * and is clamped there, as published. While decoding, a request holds the tokens before, too.
 *
 * eviction = lru is the published rule (index/lru.h): what was found, with its neighbours, is used
 * when it is found, and written states are when they are written. So what the ring holds depends on
 * earlier queries, and on whether a segment was appended before it asked: with lru a client asks
 * first, as the published code does. A ring that was read is stored with the rows.
 *
 * Ours: GQA; with lru a query whose limit goes back sees of the ring what is below it, what has
 * left does not come back. An empty memory answers (0, -inf). `norm_eps` differs between
 * versions of the published code (1e-6, 1e-5): a checkpoint decides.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/bucketed.h"
#include "index/vectors.h"
#include "memory/methods/methods.h"
#include "memory/methods/neurocache.h"

enum {
    WIDTH,
    MEMORY,
    K,
    NEIGHBOURS,
    WINDOW,
    SEARCH,
    METRIC,
    EVICTION,
    CACHE_LAYER,
    HEAD_LAYOUT,
    ZERO_ROWS,
    NORM_EPS,
    SKETCH,
    RERANK,
    PROBE,
    OPTIONS
};
enum { BUCKETED, EXACT, SKETCHED, AUTO };
enum { FIFO, LRU };
enum { RAW_VIEW, TRANSPOSED };
enum { BUCKETS_LEAST = 512, LRU_MEMORY_MAX = 65536 };

static const char *const searches[] = { "bucketed", "exact", "sketched", "auto" };
static const char *const metrics[] = { "l2", "dot" };
static const char *const orders[] = { "fifo", "lru" };
static const char *const layouts[] = { "raw-view", "transposed" };
static const struct option_spec specs[OPTIONS] = {
    [WIDTH] = OPTION_WHOLE("width", "numbers of a state, a multiple of 16", 1024, 16, 2048),
    [MEMORY] = OPTION_WHOLE("memory", "newest states of a layer that are searched", 16384, 1,
                            1 << 24),
    [K] = OPTION_WHOLE("k", "states that are found for each token", 16, 1, 4096),
    [NEIGHBOURS] = OPTION_WHOLE("neighbours",
                                "states read for each one found: itself (1), or an "
                                "even number around it",
                                2, 1, 64),
    [WINDOW] = OPTION_WHOLE("window", "tokens of a request that read together what each found", 2,
                            1, 64),
    [SEARCH] = OPTION_CHOICE("search",
                             "bucketed: the best of each of min(max(k, 512), memory) "
                             "buckets, which must divide memory, and of those the best k (as "
                             "published); exact: the best k; sketched: the best k of the rerank "
                             "best guesses, exact where a query sees fewer than 4096 states or "
                             "16 rerank; auto: sketched where the ring allows it, else exact",
                             AUTO, searches),
    [METRIC] = OPTION_CHOICE("metric", "what is nearest: by squared distance or product",
                             VECTORS_L2, metrics),
    [EVICTION] = OPTION_CHOICE("eviction",
                               "which state leaves a full ring: the oldest, or the one that was "
                               "written or found longest ago (memory at most 65536, search not "
                               "sketched)",
                               FIFO, orders),
    [CACHE_LAYER] = OPTION_WHOLE("cache_layer",
                                 "layer whose states queries of all layers read; "
                                 "-1 = each its own",
                                 -1, -1, 1023),
    [HEAD_LAYOUT] = OPTION_CHOICE("head_layout",
                                  "raw-view: heads as the published code sees "
                                  "projected states; transposed: as the paper says",
                                  RAW_VIEW, layouts),
    [ZERO_ROWS] = OPTION_WHOLE("zero_rows",
                               "1 = rows of zeros stand in where fewer than k are "
                               "found",
                               1, 0, 1),
    [NORM_EPS] = OPTION_REAL("norm_eps", "added to the variance when hidden states are encoded",
                             1e-6, 0, 1),
    [SKETCH] = OPTION_WHOLE("sketch",
                            "numbers of a state that guesses are made from, a multiple "
                            "of 8, at most half the width",
                            192, 8, SKETCHES_DIMS_MAX),
    [RERANK] = OPTION_WHOLE("rerank", "best guesses that are scored exactly, at least k", 96, 1,
                            65536),
    [PROBE] = OPTION_WHOLE("probe", "cells of sketches that a query looks into, of 256", 16, 1,
                           SKETCHES_CELLS),
};
static const struct option_table options = { "neurocache", specs, OPTIONS };

static const struct param_spec tensors[] = {
    { "key", "GDW", "of an attention layer: keys of states, needed by attend" },
    { "value", "GDW", "of an attention layer: values of states, needed by attend" },
    { "encode", "Wh", "of a cache layer: states of hidden states, before the norm" },
    { "norm_weight", "W", "of the norm behind encode; absent: 1" },
    { "norm_bias", "W", "of the norm behind encode; absent: 0" },
};
static const struct param_table params = { tensors, sizeof tensors / sizeof tensors[0] };

/* ---- the fold, and other things that only depend on options ---- */

static const struct fold_type states_fold;

static uint64_t reach(const double *values, uint64_t tokens)
{
    (void)values;
    return tokens;
}

/* Can states be guessed? Not where they lie anywhere: sketches are read side by side. */
static bool guessable(const double *values)
{
    return values[EVICTION] == FIFO && 2.0 * values[SKETCH] <= values[WIDTH] &&
           fmod(values[SKETCH], 8.0) == 0.0 && values[RERANK] >= values[K];
}

/* Of the options alone, so that a context keeps its answers. What asks for sketches and cannot be
 * guessed was made by a daemon that had other bounds: it is searched exactly. */
static bool sketched(const double *values)
{
    return (values[SEARCH] == SKETCHED || values[SEARCH] == AUTO) && guessable(values);
}

static int open_fold(const struct fold_source *source, struct fold **ret_fold, struct error *err)
{
    struct vectors *vectors = NULL;
    const double *values = source->options;
    size_t sketch = sketched(values) ? (size_t)values[SKETCH] : 0;
    int rc = vectors_new(&states_fold, (size_t)values[WIDTH], sketch, &vectors, err);
    if (rc == 0) *ret_fold = &vectors->base;
    return rc;
}

static int advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err)
{
    return vectors_advance((struct vectors *)(void *)fold, source, end, err);
}

static const struct fold_type states_fold = {
    .name = "neurocache",
    .reach = reach,
    .open = open_fold,
    .free = vectors_free,
    .advance = advance,
};

static size_t width_of(const double *values)
{
    return (size_t)values[WIDTH];
}

static uint32_t rows_layer(const double *values, uint32_t layer)
{
    return values[CACHE_LAYER] < 0 ? layer : (uint32_t)values[CACHE_LAYER];
}

static size_t ring_of(const double *values)
{
    return values[EVICTION] == LRU ? (size_t)values[MEMORY] : 0;
}

static size_t buckets_of(const double *values)
{
    size_t k = (size_t)values[K], memory = (size_t)values[MEMORY];
    if (values[SEARCH] != BUCKETED) return 0;
    size_t buckets = k > BUCKETS_LEAST ? k : BUCKETS_LEAST;
    return buckets < memory ? buckets : memory;
}

static int check_sketches(const double *values, struct error *err)
{
    if (values[SEARCH] != SKETCHED || guessable(values)) return 0;
    if (values[EVICTION] == LRU)
        return error_set(err, MEMD_EINVAL, "neurocache: eviction = lru needs search = exact or "
                                           "bucketed");
    if (values[RERANK] < values[K])
        return error_set(err, MEMD_EINVAL, "neurocache: rerank is less than k");
    return error_set(err, MEMD_EINVAL,
                     "neurocache: sketches of %g numbers of states of %g; must be a multiple of 8 "
                     "and at most half the width",
                     values[SKETCH], values[WIDTH]);
}

/* Such a ring is stored whole with every commit. */
static int check_lru(const double *values, struct error *err)
{
    if (values[EVICTION] != LRU || values[MEMORY] <= LRU_MEMORY_MAX) return 0;
    return error_set(err, MEMD_EINVAL, "neurocache: memory %g with eviction = lru, at most %d",
                     values[MEMORY], LRU_MEMORY_MAX);
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    (void)method;
    uint64_t memory = (uint64_t)values[MEMORY];
    size_t neighbours = (size_t)values[NEIGHBOURS], buckets = buckets_of(values);
    if (values[K] > values[MEMORY])
        return error_set(err, MEMD_EINVAL, "neurocache: k is more than memory %" PRIu64, memory);
    if (buckets > 0 && memory % buckets != 0)
        return error_set(err, MEMD_EINVAL,
                         "neurocache: memory %" PRIu64 " is not a multiple of "
                         "%zu buckets, as bucketed search needs",
                         memory, buckets);
    if (neighbours > 1 && neighbours % 2 != 0)
        return error_set(err, MEMD_EINVAL, "neurocache: neighbours is %zu, must be 1 or even",
                         neighbours);
    if (neighbours >= memory && neighbours > 1)
        return error_set(err, MEMD_EINVAL, "neurocache: neighbours must be fewer than memory");
    if (values[CACHE_LAYER] >= (double)model->layers)
        return error_set(err, MEMD_EINVAL,
                         "neurocache: cache_layer is %g, the model has %" PRIu32 " layers",
                         values[CACHE_LAYER], model->layers);
    int rc = check_lru(values, err);
    return rc < 0 ? rc : check_sketches(values, err);
}

/* ---- hidden states ---- */

/* state (W) = (state - mean) / deviation * weight + bias */
static void normalise(const double *values, const struct tensor *weight, const struct tensor *bias,
                      float *state)
{
    size_t width = (size_t)values[WIDTH];
    double mean = 0.0, variance = 0.0;
    for (size_t i = 0; i < width; i++) mean += (double)state[i] / (double)width;
    for (size_t i = 0; i < width; i++)
        variance += ((double)state[i] - mean) * ((double)state[i] - mean) / (double)width;
    double scale = 1.0 / sqrt(variance + values[NORM_EPS]);
    for (size_t i = 0; i < width; i++) {
        double w = weight == NULL ? 1.0 : (double)((const float *)weight->data)[i];
        double b = bias == NULL ? 0.0 : (double)((const float *)bias->data)[i];
        state[i] = (float)(((double)state[i] - mean) * scale * w + b);
    }
}

/* c = LayerNorm(W_p h), and 0 / 0 is 0. */
static int encode(const struct encoding *encoding, struct arena *arena, float *ret_states,
                  struct error *err)
{
    const struct tensor *given = &encoding->given;
    const struct params *set = encoding->params;
    const struct tensor *project = params_find(set, "encode", encoding->layer);
    size_t width = (size_t)encoding->options[WIDTH], hidden = given->shape[1];
    if (project == NULL)
        return error_set(err, MEMD_ESHAPE,
                         "states of layer %" PRIu32 " are (n, %zu), not (n, "
                         "%zu); hidden states need the tensor \"encode\"",
                         encoding->layer, hidden, width);
    if (project->shape[1] != hidden || hidden % 8 != 0)
        return error_set(err, MEMD_ESHAPE,
                         "hidden states of layer %" PRIu32 " are (n, %zu), "
                         "\"encode\" takes (n, %zu), a multiple of 8",
                         encoding->layer, hidden, project->shape[1]);
    float *h = arena_alloc_aligned(arena, hidden * sizeof *h, 64);
    if (h == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a hidden state");
    const struct tensor *weight = params_find(set, "norm_weight", encoding->layer);
    const struct tensor *bias = params_find(set, "norm_bias", encoding->layer);
    for (size_t i = 0; i < given->shape[0]; i++) {
        size_t at = i * hidden * dtype_bytes(given->dtype);
        backend_widen((const unsigned char *)given->data + at, given->dtype, 1, hidden, h);
        vectors_products(h, 1, project->data, width, hidden, ret_states + i * width);
        normalise(encoding->options, weight, bias, ret_states + i * width);
    }
    return 0;
}

/* ---- retrieval ---- */

struct retrieved {
    uint64_t *found; /* (n, set) positions in published order: by rank, then by offset */
    float *scores;   /* (n, k) of the hits */
    size_t k, neighbours, set;
    uint64_t states; /* read */
};

/* What a query sees, as far as the fold goes. */
static uint64_t seen_by(const struct reading *reading, size_t query)
{
    uint64_t limit = reading->attend.limits[query], tokens = reading->fold->tokens;
    return limit < tokens ? limit : tokens;
}

/* q (n, W) fp32, and limits: tokens, or slots of a listed ring. */
static int load_queries(const struct reading *reading, struct arena *arena,
                        struct vectors_args *args, struct error *err)
{
    const struct tensor *states = &reading->states;
    size_t width = (size_t)reading->options[WIDTH], n = reading->attend.q.shape[0];
    if (states->dims == 0)
        return error_set(err, MEMD_EINVAL, "neurocache: a query needs the state of its token");
    float *q = arena_alloc_aligned(arena, n * width * sizeof *q, 64);
    uint64_t *limits = arena_calloc(arena, n, sizeof *limits);
    if (q == NULL || limits == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu states of queries", n);
    backend_widen(states->data, states->dtype, n, width, q);
    for (size_t i = 0; i < n; i++) {
        uint64_t seen = seen_by(reading, i);
        limits[i] = reading->ring == NULL ? seen : lru_below(reading->ring, seen);
    }
    args->q = q;
    args->limits = limits;
    return 0;
}

/* The token in a slot that a query sees. */
static uint64_t token_in(const struct vectors_args *args, size_t query, uint64_t slot)
{
    if (args->listed == NULL) return vectors_position(args->slots, args->limits[query], slot);
    return slot < args->limits[query] ? args->listed[slot] : INDEX_NONE;
}

static int retrieve(const struct reading *reading, struct vectors_args *args, struct arena *arena,
                    struct retrieved *ret_retrieved, struct error *err)
{
    const double *values = reading->options;
    size_t n = reading->attend.q.shape[0];
    *args = (struct vectors_args){
        .vectors = (const struct vectors *)(const void *)reading->fold,
        .queries = n,
        .rows = { reading->attend.views, reading->attend.view_count, width_of(values) / 2, NULL },
        .slots = (uint64_t)values[MEMORY],
        .listed = reading->ring == NULL ? NULL : reading->ring->positions,
        .rerank = sketched(values) ? (size_t)values[RERANK] : 0,
        .probes = (size_t)values[PROBE],
        .k = (size_t)values[K],
        .buckets = buckets_of(values),
        .metric = (enum vectors_metric)values[METRIC],
        .pool = reading->attend.pool,
        .stop = reading->attend.stop,
        .stop_arg = reading->attend.stop_arg
    };
    struct retrieved got = { .k = args->k, .neighbours = (size_t)values[NEIGHBOURS] };
    got.set = got.k * got.neighbours;
    uint64_t *slots = arena_calloc(arena, n * got.k, sizeof *slots);
    got.found = arena_calloc(arena, n * got.set, sizeof *got.found);
    got.scores = arena_calloc(arena, n * got.k, sizeof *got.scores);
    if (slots == NULL || got.found == NULL || got.scores == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for what %zu queries find", n);
    int rc = load_queries(reading, arena, args, err);
    if (rc == 0) rc = vectors_search(args, arena, slots, got.scores, &got.states, err);
    for (size_t i = 0; rc == 0 && i < n * got.k; i++) {
        uint64_t *around = got.found + i * got.neighbours;
        bool hit = slots[i] != INDEX_NONE; /* not where states are too large to be multiplied */
        if (hit) bucketed_neighbours(slots[i], got.neighbours, args->slots, around);
        for (size_t j = 0; j < got.neighbours; j++)
            around[j] = hit ? token_in(args, i / got.k, around[j]) : INDEX_NONE;
    }
    if (rc == 0 && reading->ring != NULL)
        *reading->uses = (struct ring_uses){ got.found, n * got.set };
    *ret_retrieved = got;
    return rc;
}

/* Rows of `states` that were searched and of those that were read; K and V are the halves of a
 * state. */
static void report(const struct reading *reading, const struct vectors_args *args, uint64_t states,
                   struct index_quality *quality)
{
    size_t n = reading->attend.q.shape[0], heads = reading->attend.q.shape[1];
    uint32_t dtype = reading->attend.view_count == 0 ? DTYPE_FP32 : reading->attend.views->dtype;
    memset(quality->rows, 0, sizeof quality->rows);
    memset(quality->bytes, 0, sizeof quality->bytes);
    quality->rows[INDEX_EXACT] = 2 * states;
    quality->bytes[INDEX_EXACT] = states * width_of(reading->options) * dtype_bytes(dtype);
    for (size_t row = 0; row < n * heads; row++) {
        uint64_t limit = args == NULL ? 0 : seen_by(reading, row / heads);
        bool all = limit == 0 || (args->buckets == 0 && limit <= args->k &&
                                  limit == args->limits[row / heads] && limit <= args->slots);
        if (quality->predicted_error != NULL) quality->predicted_error[row] = all ? 0 : NAN;
        if (quality->limited != NULL) quality->limited[row] = false;
        for (size_t l = 0; quality->mass != NULL && l < INDEX_LEVELS; l++)
            quality->mass[row * INDEX_LEVELS + l] = !all ? NAN : l == INDEX_EXACT ? 1 : 0;
    }
}

static void write_plan(const struct reading *reading, const struct neurocache_attention *attention)
{
    for (size_t i = 0; i < reading->attend.q.shape[0]; i++) {
        plan_begin(reading->plan, (uint32_t)i, 0, PLAN_SEPARATE);
        for (size_t t = 0; t < attention->window; t++) {
            size_t back = attention->window - 1 - t, from = i < back ? 0 : i - back;
            for (size_t j = 0; j < attention->set; j++) {
                uint64_t id = attention->found[from * attention->set + j];
                struct plan_run run = { .query = (uint32_t)i,
                                        .heads = (uint32_t)reading->attend.q.shape[1],
                                        .kind = PLAN_TOKENS,
                                        .first = id,
                                        .count = 1,
                                        .placed = PLAN_UNPLACED,
                                        .query_placed = PLAN_UNPLACED };
                if (id != INDEX_NONE) plan_add(reading->plan, &run);
            }
        }
        plan_end(reading->plan);
    }
}

static int take_projections(const struct reading *reading, struct neurocache_attention *attention,
                            struct error *err)
{
    const struct tensor *key = params_find(reading->params, "key", reading->layer);
    const struct tensor *value = params_find(reading->params, "value", reading->layer);
    if (key == NULL || value == NULL)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "neurocache: layer %" PRIu32 " has no tensors "
                         "\"key\" and \"value\" (upload them, or search and fetch)",
                         reading->layer);
    attention->key = key->data;
    attention->value = value->data;
    attention->kv_heads = key->shape[0];
    return 0;
}

static int attend_states(const struct method *method, const struct reading *reading,
                         struct arena *arena, const struct index_answer *ret_answer,
                         struct error *err)
{
    (void)method;
    const double *values = reading->options;
    struct neurocache_attention attention = { .reading = reading,
                                              .window = (size_t)values[WINDOW],
                                              .raw_view = values[HEAD_LAYOUT] == RAW_VIEW,
                                              .zero_rows = values[ZERO_ROWS] == 1 };
    struct vectors_args args;
    struct retrieved got;
    int rc = take_projections(reading, &attention, err);
    if (rc < 0) return rc;
    if (reading->attend.view_count == 0) {
        partial_clear(&ret_answer->partial);
        report(reading, NULL, 0, ret_answer->quality);
        return 0;
    }
    rc = retrieve(reading, &args, arena, &got, err);
    if (rc < 0) return rc;
    attention.rows = args.rows;
    attention.found = got.found;
    attention.set = got.set;
    rc = neurocache_attend(&attention, arena, &ret_answer->partial, err);
    if (rc < 0) return rc;
    size_t n = reading->attend.q.shape[0], heads = reading->attend.q.shape[1];
    for (size_t row = 0; row < n * heads; row++) /* nothing but zeros */
        if (args.limits[row / heads] == 0) ret_answer->partial.lse[row] = -INFINITY;
    report(reading, &args, got.states + n * attention.window * got.set, ret_answer->quality);
    if (reading->plan != NULL) write_plan(reading, &attention);
    return 0;
}

/* What was found for each token, the same for all heads. */
static int search_states(const struct method *method, const struct reading *reading,
                         struct arena *arena, const struct index_hits *ret_hits,
                         struct index_quality *ret_quality, struct error *err)
{
    (void)method;
    struct vectors_args args;
    struct retrieved got = { 0 };
    bool none = reading->attend.view_count == 0 || ret_hits->k == 0;
    int rc = none ? 0 : retrieve(reading, &args, arena, &got, err);
    if (rc < 0) return rc;
    size_t n = reading->attend.q.shape[0], heads = reading->attend.q.shape[1];
    for (size_t row = 0; row < n * heads; row++) {
        uint64_t *ids = ret_hits->ids + row * ret_hits->k;
        float *scores = ret_hits->scores + row * ret_hits->k;
        size_t count = 0;
        for (size_t j = 0; j < got.set && count < ret_hits->k; j++) {
            uint64_t id = got.found[row / heads * got.set + j];
            if (id == INDEX_NONE) continue;
            ids[count] = id;
            scores[count++] = got.scores[row / heads * got.k + j / got.neighbours];
        }
        for (; count < ret_hits->k; count++) {
            ids[count] = INDEX_NONE;
            scores[count] = -INFINITY;
        }
    }
    report(reading, none ? NULL : &args, got.states, ret_quality);
    return 0;
}

const struct method method_neurocache = {
    .name = "neurocache",
    .help = "a ring of hidden states, the nearest of them attended to (Neurocache)",
    .options = &options,
    .fold = &states_fold,
    .params = &params,
    .state_width = width_of,
    .ring = ring_of,
    .rows_layer = rows_layer,
    .encode = encode,
    .check = check,
    .attend = attend_states,
    .search = search_states,
};
