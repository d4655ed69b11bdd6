/* SPDX-License-Identifier: Apache-2.0 */
/* graph_connect.c — links for nodes that no query led to, and a way to every node.
 *
 * Step 3 (src/index_bipartite.cpp, LinkProjection, "connectivity enhancement"): every node searches
 * from the entry with its own key (L_pjpq = 500), what occlusion pruning leaves (no fill) becomes
 * extra links, with links back; a node with more than 2 M of them is pruned to M. In the end
 * extra links are pruned to M once more. Theirs overwrites the links back that a node got before
 * its turn; here they stay.
 *
 * RoarGraph does not promise that every node can be reached, and after pruning some cannot. The
 * last step is NSG's (VLDB 2019, §4, "tree spanning"), on whose code RoarGraph stands: a node that
 * is not reached is hung on the nearest one that is and has room.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "index/graph_build.h"

enum { WAVE_NODES = 128 };

struct wave {
    uint32_t *ids;  /* (WAVE_NODES, M) */
    size_t *counts; /* (WAVE_NODES) */
    uint32_t first;
};

/* The list of a search with the node's own key becomes the pruner's candidates. */
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

static void connect_node(struct graph_builder *builder, struct graph_worker *worker, size_t item,
                         void *arg)
{
    struct wave *wave = arg;
    struct graph_pruner *pruner = &worker->pruner;
    uint32_t node = wave->first + (uint32_t)item;
    search_own(builder, worker, node);
    size_t known = 0; /* the nearest ones that are links already (theirs skips them too) */
    while (known < pruner->count && graph_links_has(builder->links, node, pruner->items[known].id))
        known++;
    pruner->count -= known;
    memmove(pruner->items, pruner->items + known, pruner->count * sizeof *pruner->items);
    wave->counts[item] = graph_prune(pruner, builder->m, false, wave->ids + item * builder->m);
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

static void enter_wave(struct graph_builder *builder, const struct wave *wave, size_t nodes)
{
    for (size_t i = 0; i < nodes; i++) {
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

int graph_connect(struct graph_builder *builder, struct error *err)
{
    struct wave wave = {
        .ids = arena_alloc(builder->arena, WAVE_NODES * builder->m * sizeof *wave.ids),
        .counts = arena_alloc(builder->arena, WAVE_NODES * sizeof *wave.counts),
    };
    if (wave.ids == NULL || wave.counts == NULL) return MEMD_ENOMEM;
    if (builder->old_nodes == builder->nodes) return 0;
    uint32_t size = builder->old_nodes > 0 ? WAVE_NODES : 1; /* a graph to search in comes first */
    for (wave.first = builder->old_nodes; wave.first < builder->nodes; wave.first += size) {
        if (wave.first >= 4 * size && size < WAVE_NODES) size *= 2;
        uint32_t left = builder->nodes - wave.first;
        size_t nodes = left < size ? left : size;
        int rc = graph_stopped(builder, "connection", err);
        if (rc < 0) return rc;
        graph_each(builder, nodes, connect_node, &wave);
        enter_wave(builder, &wave, nodes);
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
