/* SPDX-License-Identifier: Apache-2.0 */
/* graph_connect.c — links for nodes that no query led to, and a way to every node.
 *
 * Step 3 (src/index_bipartite.cpp, LinkProjection, "connectivity enhancement"): every node searches
 * from the entry with its own key (L_pjpq = 500), what occlusion pruning leaves (no fill) becomes
 * extra links, with links back; a node with more than 2 M of them is pruned to M. In the end
 * extra links are pruned to M once more. Theirs overwrites the links back that a node got before
 * its turn; here they stay.
 *
 * In a graph of few nodes that list is exact instead: a search visits most of them anyhow, one
 * scattered key after the other, where the products of a block of nodes with all keys are one pass
 * of the score kernel (decisions/0037). It is what the search stands for, so nothing is lost.
 *
 * RoarGraph does not promise that every node can be reached, and after pruning some cannot. The
 * last step is NSG's (VLDB 2019, §4, "tree spanning"), on whose code RoarGraph stands: a node that
 * is not reached is hung on the nearest one that is and has room.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "base/error.h"
#include "index/cut.h"
#include "index/graph_build.h"
#include "proto/limits.h"

enum {
    WAVE_NODES = 128,
    BLOCK_NODES = 16, /* scored against all keys together */
    BLOCK_ROWS = 256, /* keys of one call */
    EXACT_NODES = 64, /* per node of a search's list: so many, and the list is exact */
};

struct wave {
    uint32_t *ids;  /* (WAVE_NODES, M) */
    size_t *counts; /* (WAVE_NODES) */
    uint32_t first;
    size_t nodes;
    struct view *views; /* of the nodes; view_count 0: their lists are searched for */
    size_t view_count;
    float **scores; /* by worker (BLOCK_NODES, nodes of the graph) */
};

/* The list of a search with the node's own key becomes the pruner's candidates, nearest first. */
static void search_own(struct graph_builder *builder, struct graph_worker *worker, uint32_t node)
{
    struct graph_pruner *pruner = &worker->pruner;
    graph_rows_key(&builder->rows, node, pruner->key);
    struct graph_query query = { .q = pruner->key, .links = builder->links,
                                 .rows = &builder->rows, .width = builder->width,
                                 .high = builder->nodes, .except = node, .best = -INFINITY };
    graph_beam_search(&worker->beam, &query);
    pruner->count = 0;
    for (size_t i = 0; i < worker->beam.count; i++)
        if (worker->beam.items[i].id != node)
            pruner->items[pruner->count++] = worker->beam.items[i];
}

/* The candidates of node `item` of the wave become its links. */
static void link_node(struct graph_builder *builder, struct graph_worker *worker,
                      const struct wave *wave, size_t item)
{
    struct graph_pruner *pruner = &worker->pruner;
    uint32_t node = wave->first + (uint32_t)item;
    graph_pruner_order(pruner);
    /* Without the nearest ones that are links already (theirs skips them too). */
    while (pruner->count > 0 && graph_links_has(builder->links, node, graph_pruner_nearest(pruner)))
        graph_pruner_skip(pruner);
    wave->counts[item] = graph_prune(pruner, builder->m, false, wave->ids + item * builder->m);
}

static void search_node(struct graph_builder *builder, struct graph_worker *worker, size_t item,
                        void *arg)
{
    const struct wave *wave = arg;
    search_own(builder, worker, wave->first + (uint32_t)item);
    link_node(builder, worker, wave, item);
}

/* scores (count, nodes): of nodes first … first + count - 1 with every node */
static void score_block(const struct graph_builder *builder, const struct wave *wave,
                        uint32_t first, size_t count, float *ret_scores)
{
    size_t head_dim = builder->rows.all.head_dim, at = 0;
    _Alignas(64) float q[BLOCK_NODES * LIMIT_HEAD_DIM], some[BLOCK_NODES * BLOCK_ROWS];
    for (size_t i = 0; i < count; i++)
        graph_rows_key(&builder->rows, first + (uint32_t)i, q + i * head_dim);
    for (size_t v = 0; v < wave->view_count; v++) {
        const struct view *view = &wave->views[v];
        for (size_t begin = 0; begin < view->tokens; begin += BLOCK_ROWS) {
            size_t rows = view->tokens - begin < BLOCK_ROWS ? view->tokens - begin : BLOCK_ROWS;
            backend_get()->score(&(struct score_args){ .q = q,
                                                       .queries = count,
                                                       .head_dim = head_dim,
                                                       .k = (const unsigned char *)view->k +
                                                            begin * view->k_stride_bytes,
                                                       .k_stride_bytes = view->k_stride_bytes,
                                                       .tokens = rows,
                                                       .dtype = view->dtype,
                                                       .scores = some });
            for (size_t i = 0; i < count; i++)
                memcpy(ret_scores + i * builder->nodes + at, some + i * rows, rows * sizeof *some);
            at += rows;
        }
    }
    assert(at == builder->nodes);
}

/* Block `item` of the wave. */
static void compare_block(struct graph_builder *builder, struct graph_worker *worker, size_t item,
                          void *arg)
{
    const struct wave *wave = arg;
    struct graph_pruner *pruner = &worker->pruner;
    float *scores = wave->scores[worker - builder->workers];
    size_t begin = item * BLOCK_NODES, count = wave->nodes - begin;
    if (count > BLOCK_NODES) count = BLOCK_NODES;
    score_block(builder, wave, wave->first + (uint32_t)begin, count, scores);
    for (size_t i = 0; i < count; i++) {
        float *row = scores + i * builder->nodes;
        uint32_t node = wave->first + (uint32_t)(begin + i);
        row[node] = -INFINITY;
        struct cut cut = cut_largest(row, builder->nodes, builder->width);
        pruner->count = 0;
        for (uint32_t id = 0; id < builder->nodes; id++)
            if (cut_takes(&cut, row[id]) && id != node)
                pruner->items[pruner->count++] = (struct graph_item){ .score = row[id], .id = id };
        link_node(builder, worker, wave, begin + i);
    }
}

/* One more extra link; more than 2 M are pruned to M. */
static void add_extra(struct graph_builder *builder, uint32_t node, uint32_t other)
{
    struct graph_links *links = builder->links;
    struct graph_worker *worker = &builder->workers[0];
    if (graph_links_has(links, node, other)) return;
    size_t count = (size_t)(links->count[node] - links->near[node]);
    const uint32_t *extra = links->edges + links->begin[node] + links->near[node];
    memcpy(worker->list, extra, count * sizeof *extra);
    worker->list[count++] = other;
    if (count > 2 * builder->m) {
        graph_pruner_load(&worker->pruner, node, worker->list, count);
        count = graph_prune(&worker->pruner, builder->m, false, worker->list);
    }
    graph_links_set_extra(links, node, worker->list, count);
}

static void enter_wave(struct graph_builder *builder, const struct wave *wave)
{
    for (size_t i = 0; i < wave->nodes; i++) {
        uint32_t node = wave->first + (uint32_t)i;
        const uint32_t *ids = wave->ids + i * builder->m;
        for (size_t j = 0; j < wave->counts[i]; j++) {
            add_extra(builder, node, ids[j]);
            add_extra(builder, ids[j], node);
        }
    }
}

static void thin_node(struct graph_builder *builder, struct graph_worker *worker, size_t node,
                      void *arg)
{
    (void)arg;
    struct graph_links *links = builder->links;
    size_t count = (size_t)(links->count[node] - links->near[node]);
    if (count <= builder->m) return;
    graph_pruner_load(&worker->pruner, (uint32_t)node,
                      links->edges + links->begin[node] + links->near[node], count);
    count = graph_prune(&worker->pruner, builder->m, false, worker->list);
    graph_links_set_extra(links, (uint32_t)node, worker->list, count);
}

/* False: no memory. */
static bool prepare(struct graph_builder *builder, struct wave *wave)
{
    const struct rows *all = &builder->rows.all;
    wave->ids = arena_alloc(builder->arena, WAVE_NODES * builder->m * sizeof *wave->ids);
    wave->counts = arena_alloc(builder->arena, WAVE_NODES * sizeof *wave->counts);
    if (wave->ids == NULL || wave->counts == NULL) return false;
    if (builder->nodes / EXACT_NODES > builder->width) return true;
    wave->views = arena_alloc(builder->arena, all->view_count * sizeof *wave->views);
    wave->scores = arena_alloc(builder->arena, builder->worker_count * sizeof *wave->scores);
    if (wave->views == NULL || wave->scores == NULL) return false;
    wave->view_count = graph_rows_clip(all->views, all->view_count, builder->rows.first,
                                       builder->rows.first + builder->nodes, wave->views);
    size_t bytes = (size_t)BLOCK_NODES * builder->nodes * sizeof(float);
    for (size_t i = 0; i < builder->worker_count; i++) {
        wave->scores[i] = arena_alloc_aligned(builder->arena, bytes, 64);
        if (wave->scores[i] == NULL) return false;
    }
    return true;
}

int graph_connect(struct graph_builder *builder, struct error *err)
{
    struct wave wave = { .first = builder->old_nodes };
    if (builder->old_nodes == builder->nodes) return 0;
    if (!prepare(builder, &wave)) return MEMD_ENOMEM;
    bool exact = wave.view_count > 0;
    uint32_t size = builder->old_nodes > 0 || exact ? WAVE_NODES
                                                    : 1; /* a graph to search in first */
    for (; wave.first < builder->nodes; wave.first += size) {
        if (wave.first >= 4 * size && size < WAVE_NODES) size *= 2;
        uint32_t left = builder->nodes - wave.first;
        wave.nodes = left < size ? left : size;
        int rc = graph_stopped(builder, "connection", err);
        if (rc < 0) return rc;
        if (exact)
            graph_each(builder, (wave.nodes + BLOCK_NODES - 1) / BLOCK_NODES, compare_block, &wave);
        else
            graph_each(builder, wave.nodes, search_node, &wave);
        enter_wave(builder, &wave);
    }
    graph_each(builder, builder->nodes, thin_node, NULL);
    return 0;
}

static bool has_place(const struct graph_builder *builder, uint32_t id)
{
    const struct graph_links *links = builder->links;
    return (size_t)(links->count[id] - links->near[id]) < 2 * builder->m;
}

/* The nearest reached node with a free place, from the candidates or from all. There is one:
 * thinning leaves every node M free places of 2 M, and hanging a node takes one and brings M. */
static uint32_t find_host(const struct graph_builder *builder, const struct graph_pruner *pruner,
                          const uint64_t *reached)
{
    const struct graph_links *links = builder->links;
    for (size_t i = 0; i < pruner->count; i++) {
        uint32_t id = pruner->items[i].id;
        if (graph_bit(reached, id) && has_place(builder, id)) return id;
    }
    for (uint32_t id = 0; id < links->nodes; id++)
        if (graph_bit(reached, id) && has_place(builder, id)) return id;
    return GRAPH_NONE;
}

static void hang(struct graph_links *links, uint32_t host, uint32_t node)
{
    links->edges[links->begin[host] + links->count[host]] = node;
    links->count[host]++;
}

int graph_reach(struct graph_builder *builder)
{
    struct graph_links *links = builder->links;
    struct graph_worker *worker = &builder->workers[0];
    uint64_t *reached = arena_calloc(builder->arena, links->nodes / 64 + 1, sizeof *reached);
    if (reached == NULL) return MEMD_ENOMEM;
    graph_links_reach(links, links->entry, reached, worker->list);
    for (uint32_t node = 0; node < links->nodes; node++) {
        if (graph_bit(reached, node)) continue;
        search_own(builder, worker, node);
        uint32_t host = find_host(builder, &worker->pruner, reached);
        assert(host != GRAPH_NONE);
        hang(links, host, node);
        graph_links_reach(links, node, reached, worker->list);
    }
    return 0;
}
