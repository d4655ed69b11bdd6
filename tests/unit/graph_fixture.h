/* SPDX-License-Identifier: Apache-2.0 */
/* graph_fixture.h — a past with kept queries, and what the tests of graphs ask of it.
 *
 * Keys lie around a common point, in clusters that come again along the positions; queries point to
 * two clusters and away from the common point, so that their inner products with keys are of
 * another kind than those between keys: out of distribution, as in real models.
 */
#ifndef MEMD_TESTS_UNIT_GRAPH_FIXTURE_H
#define MEMD_TESTS_UNIT_GRAPH_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "index/exact.h"
#include "index/graph.h"
#include "tests/unit/past.h"
#include "tests/unit/subset.h"

enum { CLUSTERS = 24, SINKS = 16, WINDOW = 64 };

/* A past with kept queries; past.queries come after them. */
struct fixture {
    struct past past;
    float centres[CLUSTERS * 128];
    uint16_t *kept;      /* (kept_count, H, D) */
    uint64_t *positions; /* (kept_count) */
    size_t kept_count;
    double options[GRAPH_OPTIONS];
    uint64_t random;
};

static inline void make_query(struct fixture *fx, float *ret_q)
{
    size_t head_dim = fx->past.head_dim;
    const float *a = fx->centres + random_below(&fx->random, CLUSTERS) * head_dim;
    const float *b = fx->centres + random_below(&fx->random, CLUSTERS) * head_dim;
    for (size_t d = 0; d < head_dim; d++)
        ret_q[d] = 4.0F * a[d] + 2.0F * b[d] - 2.0F + 0.5F * random_float(&fx->random);
}

static inline void set(struct fixture *fx, enum graph_option option, double value)
{
    fx->options[option] = value;
}

/* The fields of `past` up to dtype are given; limits of the queries are all tokens. */
static inline void setup(struct fixture *fx, const struct past *shape)
{
    *fx = (struct fixture){ .past = *shape, .random = random_seed() };
    struct past *past = &fx->past;
    past_make(past, &fx->random);
    for (size_t i = 0; i < CLUSTERS * past->head_dim; i++)
        fx->centres[i] = random_float(&fx->random);
    size_t row = 0;
    for (size_t g = 0; g < past->kv_heads; g++)
        for (size_t t = 0; t < past->tokens; t++, row++) {
            const float *centre = fx->centres + (t / 7 + g) % CLUSTERS * past->head_dim;
            float *k = past->k + row * past->head_dim, *v = past->v + row * past->head_dim;
            for (size_t d = 0; d < past->head_dim; d++) {
                k[d] = 0.8F + centre[d] + 0.25F * k[d];
                v[d] = 0.5F - centre[d] + 0.5F * v[d];
            }
        }
    size_t q_floats = past->query_heads * past->head_dim;
    past_round(past);
    for (size_t i = 0; i < past->queries; i++) past->limits[i] = past->tokens;
    for (size_t i = 0; i < past->queries * past->query_heads; i++)
        make_query(fx, past->q + i * past->head_dim);
    fx->kept = past_alloc(past->tokens * q_floats, sizeof *fx->kept);
    fx->positions = past_alloc(past->tokens, sizeof *fx->positions);
    float *q = past_alloc(past->head_dim, sizeof *q);
    for (size_t t = 1; t < past->tokens; t += 2 + t % 2, fx->kept_count++) {
        fx->positions[fx->kept_count] = t;
        for (size_t h = 0; h < past->query_heads; h++) {
            make_query(fx, q);
            half_store(q, past->head_dim, DTYPE_FP16,
                       fx->kept + fx->kept_count * q_floats + h * past->head_dim);
        }
    }
    free(q);
    past_cut(past, 200, &fx->random);
    assert_int_equal(options_parse(graph_type.options, NULL, 0, fx->options, NULL), 0);
    set(fx, GRAPH_SINKS, SINKS);
    set(fx, GRAPH_WINDOW, WINDOW);
    set(fx, GRAPH_K, 20);
    set(fx, GRAPH_EF, 150);
    set(fx, GRAPH_L, 100);
    set(fx, GRAPH_M, 16);
    set(fx, GRAPH_NQ, 40);
}

static inline void teardown(struct fixture *fx)
{
    past_free(&fx->past);
    free(fx->kept);
    free(fx->positions);
}

static const struct past small = { .query_heads = 4, .kv_heads = 2, .head_dim = 32,
                                   .tokens = 1200, .queries = 3, .dtype = DTYPE_FP16 };

/* Build from the first `tokens` tokens, which end with a view. */
static inline int build(struct fixture *fx, uint64_t tokens, struct layer_source *source,
                 const struct layer_index *before, struct layer_index **ret_version)
{
    struct past *past = &fx->past;
    struct view *views = past_alloc(past->kv_heads * past->view_count, sizeof *views);
    size_t count = 0, kept = 0;
    while (count < past->view_count && past->views[count].position < tokens) count++;
    for (size_t g = 0; g < past->kv_heads; g++)
        memcpy(views + g * count, past->views + g * past->view_count, count * sizeof *views);
    for (size_t g = 1; g <= past->kv_heads; g++) {
        struct view *last = &views[g * count - 1];
        last->tokens = (size_t)(tokens - last->position);
    }
    while (kept < fx->kept_count && fx->positions[kept] < tokens) kept++;
    source->views = views;
    source->view_count = count;
    source->kv_heads = past->kv_heads;
    source->tokens = tokens;
    source->query_heads = past->query_heads;
    source->head_dim = past->head_dim;
    source->scale = 1.0F / sqrtf((float)past->head_dim);
    source->queries = (struct kept_queries){ fx->kept, fx->positions, kept };
    source->options = fx->options;
    struct error err = { 0 };
    int rc = graph_type.build(source, before, ret_version, &err);
    if (rc != err.code) fail_msg("code %d, text of %d: %s", rc, err.code, err.text);
    free(views);
    if (rc != 0) return rc;
    if (graph_type.validate(*ret_version, &err) != 0) fail_msg("%s", err.text);
    assert_true((*ret_version)->tokens == tokens);
    return 0;
}

static inline struct layer_index *built(struct fixture *fx, const struct layer_index *before)
{
    struct layer_source source = { 0 };
    struct layer_index *version = NULL;
    assert_int_equal(build(fx, fx->past.tokens, &source, before, &version), 0);
    return version;
}

static inline unsigned char *saved(const struct layer_index *version, size_t *ret_bytes)
{
    *ret_bytes = graph_type.save(version, NULL);
    unsigned char *data = past_alloc(*ret_bytes, 1);
    assert_int_equal(graph_type.save(version, data), *ret_bytes);
    return data;
}

static inline bool same_bytes(const struct layer_index *a, const struct layer_index *b)
{
    size_t a_bytes = 0, b_bytes = 0;
    unsigned char *left = saved(a, &a_bytes), *right = saved(b, &b_bytes);
    bool same = a_bytes == b_bytes && memcmp(left, right, a_bytes) == 0;
    free(left);
    free(right);
    return same;
}

static inline struct index_args ask_args(const struct past *past)
{
    return (struct index_args){ .attend = past_args(past) };
}

/* ids, scores of a search; the quality's rows and bytes. */
static inline struct index_quality search(const struct fixture *fx,
                                          const struct layer_index *version,
                                          const struct index_hits *hits)
{
    struct arena arena;
    struct index_quality quality = { 0 };
    struct index_args args = ask_args(&fx->past);
    struct index_found found = { .hits = *hits, .quality = &quality };
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(graph_type.search(version, &args, fx->options, &arena, &found, NULL), 0);
    arena_fini(&arena);
    return quality;
}

static inline struct index_hits hits_new(const struct past *past, size_t k)
{
    size_t count = past->queries * past->query_heads * k;
    return (struct index_hits){ .ids = past_alloc(count, sizeof(uint64_t)),
                                .scores = past_alloc(count, sizeof(float)), .k = k };
}

static inline void hits_free(struct index_hits *hits)
{
    free(hits->ids);
    free(hits->scores);
}

static inline struct index_hits exact(const struct past *past, size_t k)
{
    struct index_hits hits = hits_new(past, k);
    struct attend_args args = past_args(past);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(exact_search(&args, &arena, &hits, NULL), 0);
    arena_fini(&arena);
    return hits;
}

/* Share of the exact k best that a search finds; what it read goes to ret_quality. */
static inline double recall(const struct fixture *fx, const struct layer_index *version, size_t k,
                     struct index_quality *ret_quality)
{
    struct index_hits truth = exact(&fx->past, k), found = hits_new(&fx->past, k);
    *ret_quality = search(fx, version, &found);
    size_t rows = fx->past.queries * fx->past.query_heads, same = 0;
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < k; j++)
                if (truth.ids[row * k + i] == found.ids[row * k + j]) same++;
    hits_free(&truth);
    hits_free(&found);
    return (double)same / (double)(rows * k);
}

#endif
