/* SPDX-License-Identifier: Apache-2.0 */
/* graph_beam.h — links of one KV head's graph, and the beam search over them.
 *
 * A node is a token: position = first + id. Its links are the projected ones (of queries) first,
 * then the extra ones that connectivity enhancement added. Similarity is the inner product, the
 * larger the nearer, between query and key as between key and key: RoarGraph's own choice for
 * maximum inner product search (its distance is −⟨a, b⟩ throughout; no lift to L2).
 *
 * The list of a search is sorted, best first; the best node that was not expanded yet is next.
 * Bounded, it holds `width` nodes (RoarGraph's L_pq, NSG's search). With a band it is AlayaDB's
 * DIPRS (arXiv 2504.10326, algorithm 1): nodes within `band` of the best score so far stay whatever
 * their number, others only among the first `width`.
 *
 * Memory   scratch from an arena, once per worker; a search allocates nothing
 * Threads  a beam belongs to one thread; links and rows are shared
 * Tests    tests/unit/test_graph.c
 */
#ifndef MEMD_INDEX_GRAPH_BEAM_H
#define MEMD_INDEX_GRAPH_BEAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/graph_rows.h"

struct arena;

enum {
    GRAPH_LINKS_MAX = 192, /* of a node: 3 M */
    GRAPH_NONE = INT32_MAX, /* no node; also more nodes than a graph can have */
};

struct graph_links {
    uint32_t nodes, entry;
    uint32_t room; /* places of a node while links grow */
    uint32_t *edges;
    uint32_t *begin; /* (nodes) of a node's links in edges */
    uint8_t *near;   /* (nodes) projected links, which stand first */
    uint8_t *count;  /* (nodes) all links */
};

struct graph_item {
    float score;
    uint32_t id;
    bool expanded;
};

struct graph_beam {
    struct graph_item *items; /* the list, best first */
    size_t count, room;
    size_t next;    /* the first that may not be expanded yet */
    size_t passing; /* of them not in the range that was asked for */
    uint64_t *visited; /* bits */
    uint32_t *fresh;   /* (GRAPH_LINKS_MAX) */
    void *keys;        /* (GRAPH_LINKS_MAX, D) */
    float *scores;     /* (GRAPH_LINKS_MAX) */
    uint64_t keys_read, edges_read; /* of all searches since they were zeroed */
};

struct graph_query {
    const float *q; /* (D) */
    const struct graph_links *links;
    const struct graph_rows *rows;
    size_t width;      /* ≥ 1 */
    uint32_t low, high; /* wanted nodes; others are passed through */
    uint32_t except;   /* a node that is not there; GRAPH_NONE */
    float best, band;  /* band > 0: a best score known already, or -inf */
};

/* Room for searches over `nodes` nodes with lists of `width`; a band, or nodes that are not wanted,
 * need width = nodes. False: no memory. */
bool graph_beam_init(struct graph_beam *ret_beam, const struct graph_rows *rows, uint32_t nodes,
                     size_t width, struct arena *arena);

/* The list of the nodes found; returns the best wanted score (or query->best). */
float graph_beam_search(struct graph_beam *beam, const struct graph_query *query);

/* The i-th number of a seed: splitmix64 (Steele, Lea, Flood 2014). */
static inline uint64_t graph_draw(uint64_t seed, uint64_t i)
{
    uint64_t z = (seed + i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static inline bool graph_bit(const uint64_t *bits, uint32_t id)
{
    return (bits[id / 64] >> (id % 64) & 1) != 0;
}

static inline void graph_bit_set(uint64_t *bits, uint32_t id)
{
    bits[id / 64] |= UINT64_C(1) << (id % 64);
}

#endif
