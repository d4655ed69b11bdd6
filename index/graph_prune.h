/* SPDX-License-Identifier: Apache-2.0 */
/* graph_prune.h — which of many candidates become the links of a node.
 *
 * Occlusion pruning (RoarGraph, src/index_bipartite.cpp, PruneBiSearchBaseGetBase and its kin): go
 * through the candidates from the nearest on; one is occluded when a link taken before is more
 * similar to it than the node itself is. `fill` then takes occluded ones, nearest first, up to the
 * limit.
 *
 * Memory   scratch from an arena, once per worker
 * Threads  a pruner belongs to one thread
 * Tests    tests/unit/test_graph.c
 */
#ifndef MEMD_INDEX_GRAPH_PRUNE_H
#define MEMD_INDEX_GRAPH_PRUNE_H

#include "index/graph_beam.h"

enum { GRAPH_CANDIDATES = 1024 }; /* the nearest of more */

struct graph_pruner {
    const struct graph_rows *rows;
    struct graph_item *items; /* (room) candidates of a node, a heap once they are ordered */
    size_t count, room;
    float *key;    /* (D) of the node */
    void *keys;    /* (GRAPH_CANDIDATES, D) of candidates */
    float *links;  /* (GRAPH_LINKS_MAX, D) of those that became links */
    uint32_t *ids; /* (GRAPH_CANDIDATES) nearest first */
    bool *taken;   /* (GRAPH_CANDIDATES) became a link */
    float *scores; /* (GRAPH_CANDIDATES), and of a block of candidates to all links */
};

/* Candidates at most: `room`. False: no memory. */
bool graph_pruner_init(struct graph_pruner *ret_pruner, const struct graph_rows *rows, size_t room,
                       struct arena *arena);

/* Score ids[0 … count-1] against `node`, take them as the candidates and order them. */
void graph_pruner_load(struct graph_pruner *pruner, uint32_t node, const uint32_t *ids,
                       size_t count);

/* items (count), put there by the caller (without the node itself, each once), become ordered. */
void graph_pruner_order(struct graph_pruner *pruner);

/* The nearest of the ordered candidates, or GRAPH_NONE; and do without it. */
uint32_t graph_pruner_nearest(const struct graph_pruner *pruner);
void graph_pruner_skip(struct graph_pruner *pruner);

/* Ordered candidates → ret_ids (limit ≤ GRAPH_LINKS_MAX); returns their number. None are left. */
size_t graph_prune(struct graph_pruner *pruner, size_t limit, bool fill, uint32_t *ret_ids);

#endif
