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
    struct graph_item *items; /* (room) candidates of a node; `expanded`: became a link */
    size_t count, room;
    float *key;    /* (D) of the node */
    float *other;  /* (D) of a link that was taken */
    void *keys;    /* (GRAPH_CANDIDATES, D) */
    uint32_t *ids; /* (GRAPH_CANDIDATES) */
    float *scores; /* (GRAPH_CANDIDATES) to the link taken last */
    float *cover;  /* (GRAPH_CANDIDATES) similarity to the nearest link */
};

/* Candidates at most: `room`. False: no memory. */
bool graph_pruner_init(struct graph_pruner *ret_pruner, const struct graph_rows *rows, size_t room,
                       struct arena *arena);

/* Score ids[0 … count-1] against `node` and take them as the candidates. */
void graph_pruner_load(struct graph_pruner *pruner, uint32_t node, const uint32_t *ids,
                       size_t count);

/* Candidates (loaded, or copied into items by the caller; without the node itself, each once) →
 * ret_ids (limit); returns their number. */
size_t graph_prune(struct graph_pruner *pruner, size_t limit, bool fill, uint32_t *ret_ids);

#endif
