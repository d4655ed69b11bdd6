/* SPDX-License-Identifier: Apache-2.0 */
/* graph_project.c — kept queries to links between the keys they want.
 *
 * Step 1, the exact best N_q keys of each query (RoarGraph: Nq = 100), is exact_search over the
 * nodes that the query could see: it shares every key among 32 query heads and is where the time
 * goes. The heads of a group are pooled (AlayaDB §5, "GQA-based index sharing").
 *
 * Step 2 (src/index_bipartite.cpp, LinkProjection): the best key of a query is its pivot, the
 * others are candidates, pruned around the pivot to M and filled up; then reverse links, and nodes
 * with more than M are pruned again. Theirs lets the last query of a pivot overwrite the links that
 * earlier ones made; in attention a few keys are the pivot of most queries, so here the candidates
 * of all of them and the links so far are pruned together.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention/rope.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "index/exact.h"
#include "index/graph_build.h"

enum { WAVE_ROWS = 2048 }; /* query heads of one wave */

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

/* The projected links of the run's node: those it has and the run's, pruned to M. */
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

/* For each node of the runs a pair (link, node) for each of its links. */
static void reverse(const struct graph_builder *builder, const struct pairs *from,
                    struct pairs *ret_to)
{
    const struct graph_links *links = builder->links;
    ret_to->count = 0;
    for (size_t run = 0; run < from->runs; run++) {
        uint32_t node = (uint32_t)(from->pairs[from->begin[run]] >> 32);
        for (size_t i = 0; i < links->near[node]; i++)
            ret_to->pairs[ret_to->count++] =
                (uint64_t)links->edges[links->begin[node] + i] << 32 | node;
    }
}

/* ids (rows, nq) positions, best first -> pairs (pivot, other) */
static void pair_hits(const struct graph_builder *builder, const uint64_t *ids, size_t rows,
                      struct pairs *ret_pairs)
{
    uint64_t first = builder->rows.first;
    ret_pairs->count = 0;
    for (size_t row = 0; row < rows; row++) {
        const uint64_t *hits = ids + row * builder->nq;
        for (size_t i = 1; i < builder->nq && hits[i] != INDEX_NONE; i++)
            ret_pairs->pairs[ret_pairs->count++] = (hits[0] - first) << 32 | (hits[i] - first);
    }
}

struct wave {
    float *q;          /* (n, H/G, D) rotated */
    uint64_t *limits;  /* (n) */
    uint64_t *ids;     /* (n, H/G, nq) */
    float *scores;     /* the same */
    struct view *views;
    size_t view_count, queries, group;
    struct pairs hits, back;
};

static bool allocate(const struct graph_builder *builder, struct wave *wave)
{
    const struct layer_source *source = builder->source;
    wave->group = source->query_heads / source->kv_heads;
    wave->queries = wave->group < WAVE_ROWS ? WAVE_ROWS / wave->group : 1;
    size_t rows = wave->queries * wave->group, pairs = rows * builder->nq;
    size_t back = pairs * builder->m; /* a run has one link at least, a node M at most */
    if (back > builder->nodes * builder->m) back = builder->nodes * builder->m;
    struct arena *arena = builder->arena;
    wave->q = arena_alloc_aligned(arena, rows * source->head_dim * sizeof *wave->q, 64);
    wave->limits = arena_alloc(arena, wave->queries * sizeof *wave->limits);
    wave->ids = arena_alloc(arena, pairs * sizeof *wave->ids);
    wave->scores = arena_alloc(arena, pairs * sizeof *wave->scores);
    wave->views = arena_alloc(arena, builder->rows.view_count * sizeof *wave->views);
    wave->hits.pairs = arena_alloc(arena, pairs * sizeof *wave->hits.pairs);
    wave->hits.begin = arena_alloc(arena, (pairs + 1) * sizeof *wave->hits.begin);
    wave->back.pairs = arena_alloc(arena, back * sizeof *wave->back.pairs);
    wave->back.begin = arena_alloc(arena, (back + 1) * sizeof *wave->back.begin);
    return wave->q != NULL && wave->limits != NULL && wave->ids != NULL && wave->scores != NULL &&
           wave->views != NULL && wave->hits.pairs != NULL && wave->hits.begin != NULL &&
           wave->back.pairs != NULL && wave->back.begin != NULL;
}

/* The group's heads of kept query `at` -> q (H/G, D) in fp32, rotated. */
static void load_query(const struct graph_builder *builder, size_t at, float *ret_q)
{
    const struct layer_source *source = builder->source;
    size_t group = source->query_heads / source->kv_heads, head_dim = source->head_dim;
    const uint16_t *q = source->queries.q +
                        (at * source->query_heads + builder->kv_head * group) * head_dim;
    half_load(q, DTYPE_FP16, group * head_dim, ret_q);
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
        wave->limits[i] = source->queries.positions[first + i] + 1; /* causal */
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
    pair_hits(builder, wave->ids, count * wave->group, &wave->hits);
    sort_pairs(&wave->hits);
    graph_each(builder, wave->hits.runs, merge_run, &wave->hits);
    reverse(builder, &wave->hits, &wave->back);
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
    wave.view_count = graph_rows_clip(rows->views, rows->view_count, rows->first,
                                      rows->first + builder->nodes, wave.views);
    int rc = 0;
    for (; rc == 0 && at < queries->count; at += wave.queries) {
        size_t count = queries->count - at;
        rc = project_wave(builder, &wave, at, count < wave.queries ? count : wave.queries, err);
    }
    return rc;
}
