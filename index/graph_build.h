/* SPDX-License-Identifier: Apache-2.0 */
/* graph_build.h — the graph of one KV head, from nothing or from the version before.
 *
 * Three steps (RoarGraph, VLDB 2024; RetrievalAttention §3 applies them to attention; AlayaDB pools
 * the queries of a GQA group):
 *
 *     project   the N_q best keys of every kept query, the best one linked to the others, pruned
 *               to M, with reverse links
 *     connect   every new node searches the graph with its own key, is linked to what occlusion
 *               pruning leaves of the list, and back
 *     reach     a node that cannot be reached from the entry gets a link from one that can
 *
 * Steps take the nodes in waves of fixed sizes: a wave is computed in parallel on the graph as it
 * was, then entered in order. So a graph depends on its input only, not on the number of threads.
 *
 * Memory   scratch until the end of the build: about 12 bytes per node and thread, and the rotated
 *          keys where keys are stored unrotated
 * Tests    tests/unit/test_graph.c, tests/unit/test_graph_versions.c
 */
#ifndef MEMD_INDEX_GRAPH_BUILD_H
#define MEMD_INDEX_GRAPH_BUILD_H

#include <stdatomic.h>

#include "base/arena.h"
#include "index/graph_links.h"
#include "index/graph_prune.h"
#include "index/layer_index.h"

struct graph_worker {
    struct graph_beam beam;
    struct graph_pruner pruner;
    uint32_t *list; /* (nodes + GRAPH_LINKS_MAX) */
};

struct graph_builder {
    const struct layer_source *source;
    size_t kv_head;
    struct graph_rows rows; /* keys as scored: rotated */
    uint32_t nodes, old_nodes;
    size_t m, nq, width; /* options */
    uint64_t window;
    bool any_pivot;
    uint64_t from;       /* queries at earlier positions are in the graph already */
    struct graph_links *links;
    struct graph_worker *workers;
    size_t worker_count;
    struct arena *arena;
};

/* Given are source … from of the builder. `before` may be NULL; the result is packed. */
int graph_build(const struct graph_builder *given, const struct graph_links *before,
                struct graph_links *ret_links, struct error *err);

/* The steps; MEMD_ENOMEM comes without a text. */
int graph_project(struct graph_builder *builder, struct error *err);
int graph_connect(struct graph_builder *builder, struct error *err);
int graph_reach(struct graph_builder *builder);

/* fn(builder, worker, item, arg) for every item, on all workers. */
typedef void graph_each_fn(struct graph_builder *builder, struct graph_worker *worker, size_t item,
                           void *arg);
void graph_each(struct graph_builder *builder, size_t items, graph_each_fn *fn, void *arg);

/* 0, or the code of `stop` with a text. */
int graph_stopped(const struct graph_builder *builder, const char *step, struct error *err);

#endif
