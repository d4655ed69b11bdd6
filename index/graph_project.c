/* SPDX-License-Identifier: Apache-2.0 */
/* graph_project.c — kept queries to links between the keys they want.
 *
 * Step 1, the exact best N_q keys of each query (RoarGraph: Nq = 100), is exact_search over the
 * nodes that the query could see outside its own window, since it will never ask a graph for those:
 * every key is shared among 32 query heads. The heads of a group are pooled (AlayaDB §5, sharing
 * under GQA).
 *
 * Step 2 (src/index_bipartite.cpp, LinkProjection): the best key of a query is its pivot, the
 * others are candidates, pruned around the pivot to M and filled up (PruneBiSearchBaseGetBase);
 * these become the pivot's links, whatever it had before; then reverse links, and nodes with more
 * than M are pruned again (ProjectionAddReverse). That the last query of a pivot overwrites what
 * earlier ones made looks wrong and is better than pruning all their candidates together
 * (decisions/0037). pivot = 1 draws the pivot among the N_q instead: in attention a few keys are
 * the best of most queries.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/rope.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/exact.h"
#include "index/graph_build.h"

enum { WAVE_ROWS = 512 }; /* query heads of one wave */

/* (node << 32 | candidate), sorted; runs of one node */
struct pairs {
    uint64_t *pairs;
    size_t *begin; /* of each run, and the end of the last */
    size_t count, runs;
};

static int by_value(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static void sort_pairs(struct pairs *pairs)
{
    size_t kept = 0;
    qsort(pairs->pairs, pairs->count, sizeof *pairs->pairs, by_value);
    pairs->runs = 0;
    for (size_t i = 0; i < pairs->count; i++) {
        uint64_t pair = pairs->pairs[i];
        if (kept > 0 && pairs->pairs[kept - 1] == pair) continue;
        if (kept == 0 || pairs->pairs[kept - 1] >> 32 != pair >> 32)
            pairs->begin[pairs->runs++] = kept;
        pairs->pairs[kept++] = pair;
    }
    pairs->count = pairs->begin[pairs->runs] = kept;
}

/* The projected links of the run's node: those it has and the run's, at most M. */
static void merge_run(struct graph_builder *builder, struct graph_worker *worker, size_t run,
                      void *arg)
{
    const struct pairs *pairs = arg;
    struct graph_links *links = builder->links;
    uint32_t node = (uint32_t)(pairs->pairs[pairs->begin[run]] >> 32);
    size_t count = links->near[node];
    const uint32_t *near = links->edges + links->begin[node];
    memcpy(worker->list, near, count * sizeof *near);
    for (size_t i = pairs->begin[run]; i < pairs->begin[run + 1]; i++) {
        uint32_t id = (uint32_t)pairs->pairs[i];
        bool known = id == node;
        for (size_t j = 0; j < links->near[node]; j++) known = known || near[j] == id;
        if (!known) worker->list[count++] = id;
    }
    if (count > builder->m) {
        graph_pruner_load(&worker->pruner, node, worker->list, count);
        count = graph_prune(&worker->pruner, builder->m, true, worker->list);
    }
    graph_links_set_near(links, node, worker->list, count);
}

struct wave {
    float *q;         /* (n, H/G, D) rotated */
    uint64_t *limits; /* (n) */
    uint64_t *ids;    /* (n, H/G, nq) positions, best first */
    float *scores;    /* the same */
    uint32_t *pivots; /* (n, H/G); GRAPH_NONE: a query without two keys */
    uint32_t *links;  /* (n, H/G, M) of the pivots */
    size_t *counts;   /* (n, H/G) */
    struct view *views;
    size_t view_count, queries, group;
    struct pairs back;
};

/* The links that query head `row` of the wave wants for its pivot. */
static void prune_row(struct graph_builder *builder, struct graph_worker *worker, size_t row,
                      void *arg)
{
    struct wave *wave = arg;
    const uint64_t *hits = wave->ids + row * builder->nq;
    size_t count = 0, others = 0;
    while (count < builder->nq && hits[count] != INDEX_NONE) count++;
    wave->pivots[row] = GRAPH_NONE;
    wave->counts[row] = 0;
    if (count < 2) return;
    uint64_t pivot = hits[0];
    if (builder->any_pivot) pivot = hits[graph_draw(hits[0] ^ hits[count - 1], row) % count];
    for (size_t i = 0; i < count; i++)
        if (hits[i] != pivot) worker->list[others++] = (uint32_t)(hits[i] - builder->rows.first);
    wave->pivots[row] = (uint32_t)(pivot - builder->rows.first);
    graph_pruner_load(&worker->pruner, wave->pivots[row], worker->list, others);
    wave->counts[row] =
        graph_prune(&worker->pruner, builder->m, true, wave->links + row * builder->m);
}

/* The pivots get their links, in the order of the queries, and pairs (link, pivot) are made. */
static void enter_pivots(const struct graph_builder *builder, struct wave *wave, size_t rows)
{
    wave->back.count = 0;
    for (size_t row = 0; row < rows; row++) {
        const uint32_t *links = wave->links + row * builder->m;
        if (wave->pivots[row] == GRAPH_NONE) continue;
        graph_links_set_near(builder->links, wave->pivots[row], links, wave->counts[row]);
        for (size_t i = 0; i < wave->counts[row]; i++)
            wave->back.pairs[wave->back.count++] = (uint64_t)links[i] << 32 | wave->pivots[row];
    }
}

static bool allocate(const struct graph_builder *builder, struct wave *wave)
{
    const struct layer_source *source = builder->source;
    wave->group = source->query_heads / source->kv_heads;
    wave->queries = wave->group < WAVE_ROWS ? WAVE_ROWS / wave->group : 1;
    size_t rows = wave->queries * wave->group, hits = rows * builder->nq;
    size_t links = rows * builder->m;
    struct arena *arena = builder->arena;
    wave->q = arena_alloc_aligned(arena, rows * source->head_dim * sizeof *wave->q, 64);
    wave->limits = arena_alloc(arena, wave->queries * sizeof *wave->limits);
    wave->ids = arena_alloc(arena, hits * sizeof *wave->ids);
    wave->scores = arena_alloc(arena, hits * sizeof *wave->scores);
    wave->pivots = arena_alloc(arena, rows * sizeof *wave->pivots);
    wave->links = arena_alloc(arena, links * sizeof *wave->links);
    wave->counts = arena_alloc(arena, rows * sizeof *wave->counts);
    wave->views = arena_alloc(arena, builder->rows.all.view_count * sizeof *wave->views);
    wave->back.pairs = arena_alloc(arena, links * sizeof *wave->back.pairs);
    wave->back.begin = arena_alloc(arena, (links + 1) * sizeof *wave->back.begin);
    return wave->q != NULL && wave->limits != NULL && wave->ids != NULL && wave->scores != NULL &&
           wave->pivots != NULL && wave->links != NULL && wave->counts != NULL &&
           wave->views != NULL && wave->back.pairs != NULL && wave->back.begin != NULL;
}

/* The group's heads of kept query `at` -> q (H/G, D) in fp32, rotated. */
static void load_query(const struct graph_builder *builder, size_t at, float *ret_q)
{
    const struct layer_source *source = builder->source;
    size_t group = source->query_heads / source->kv_heads, head_dim = source->head_dim;
    const uint16_t *q = source->queries.q +
                        (at * source->query_heads + builder->kv_head * group) * head_dim;
    backend_widen(q, DTYPE_FP16, group, head_dim, ret_q);
    if (source->rope == NULL) return;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    rope_angles(source->rope, source->queries.positions[at], cos, sin);
    rope_apply(source->rope, cos, sin, ret_q, group);
}

/* Kept queries first … first + count - 1. */
static int project_wave(struct graph_builder *builder, struct wave *wave, size_t first,
                        size_t count, struct error *err)
{
    const struct layer_source *source = builder->source;
    for (size_t i = 0; i < count; i++) {
        load_query(builder, first + i, wave->q + i * wave->group * source->head_dim);
        uint64_t seen = source->queries.positions[first + i] + 1; /* causal */
        wave->limits[i] = seen > builder->window ? seen - builder->window : 0;
    }
    struct attend_args args = {
        .q = { .data = wave->q, .dtype = DTYPE_FP32, .dims = 3,
               .shape = { count, wave->group, source->head_dim } },
        .limits = wave->limits, .scale = source->scale, .views = wave->views, .kv_heads = 1,
        .view_count = wave->view_count, .pool = source->pool, .stop = source->stop,
        .stop_arg = source->stop_arg };
    struct index_hits hits = { .ids = wave->ids, .scores = wave->scores, .k = builder->nq };
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, SIZE_MAX);
    int rc = exact_search(&args, &arena, &hits, err);
    if (rc < 0) return rc;
    graph_each(builder, count * wave->group, prune_row, wave);
    enter_pivots(builder, wave, count * wave->group);
    sort_pairs(&wave->back);
    graph_each(builder, wave->back.runs, merge_run, &wave->back);
    return 0;
}

int graph_project(struct graph_builder *builder, struct error *err)
{
    const struct kept_queries *queries = &builder->source->queries;
    struct wave wave = { 0 };
    size_t at = 0;
    while (at < queries->count && queries->positions[at] < builder->from) at++;
    if (at == queries->count || builder->nq < 2) return 0;
    if (!allocate(builder, &wave)) return MEMD_ENOMEM;
    const struct graph_rows *rows = &builder->rows;
    wave.view_count = graph_rows_clip(rows->all.views, rows->all.view_count, rows->first,
                                      rows->first + builder->nodes, wave.views);
    int rc = 0;
    for (; rc == 0 && at < queries->count; at += wave.queries) {
        size_t count = queries->count - at;
        rc = project_wave(builder, &wave, at, count < wave.queries ? count : wave.queries, err);
    }
    return rc;
}
