/* SPDX-License-Identifier: Apache-2.0 */
/* graph_links.h — the links of one KV head while they grow, and their packed form afterwards.
 *
 * A node has up to M projected links and up to 2 M extra ones (RoarGraph appends at most 2 M,
 * src/index_bipartite.cpp, LinkProjection), without duplicates and without itself. Growing links
 * have 3 M places per node; packed ones lie without gaps.
 *
 * Memory   graph_links_fini frees; safe on a zeroed object
 * Threads  different nodes may be changed by different threads
 * Tests    tests/unit/test_graph.c, tests/unit/test_graph_versions.c
 */
#ifndef MEMD_INDEX_GRAPH_LINKS_H
#define MEMD_INDEX_GRAPH_LINKS_H

#include "index/graph_beam.h"

/* Room for `edges` links, which no node has yet. False: no memory. */
bool graph_links_alloc(struct graph_links *ret_links, uint32_t nodes, size_t edges);

/* Growing links: all of `before` (NULL: none), and nodes without links up to `nodes`. False: no
 * memory. */
bool graph_links_grow(struct graph_links *ret_links, const struct graph_links *before,
                      uint32_t nodes, size_t m);

/* Packed, in place. False: no memory, and nothing has changed. */
bool graph_links_pack(struct graph_links *links);

void graph_links_fini(struct graph_links *links);

size_t graph_links_edges(const struct graph_links *links);
size_t graph_links_bytes(const struct graph_links *links);

bool graph_links_has(const struct graph_links *links, uint32_t node, uint32_t other);

/* The projected links of a node become `ids`; an extra link that is among them goes. */
void graph_links_set_near(struct graph_links *links, uint32_t node, const uint32_t *ids,
                          size_t count);
/* The extra links become those of `ids` that are not projected ones. */
void graph_links_set_extra(struct graph_links *links, uint32_t node, const uint32_t *ids,
                           size_t count);

/* Mark what can be reached from `start` in bits (nodes) that may hold marks already; `stack`
 * (nodes). Returns how many nodes are new. */
uint32_t graph_links_reach(const struct graph_links *links, uint32_t start, uint64_t *bits,
                           uint32_t *stack);

#endif
