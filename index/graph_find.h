/* SPDX-License-Identifier: Apache-2.0 */
/* graph_find.h — one query head on a graph: which tokens, attention over them, and what the others
 * may be worth.
 *
 * Memory   scratch from an arena, once per thread
 * Threads  a finder belongs to one thread
 * Tests    tests/unit/test_graph.c
 */
#ifndef MEMD_INDEX_GRAPH_FIND_H
#define MEMD_INDEX_GRAPH_FIND_H

#include "attention/softmax.h"
#include "index/graph_beam.h"

struct graph_finder {
    struct graph_beam beam;
    struct graph_item *hits; /* in beam.items: the first hit_count, best first */
    size_t hit_count;
    uint32_t *ids;    /* (room) of the hits */
    void *values;     /* (GRAPH_LINKS_MAX, D) */
    float *o, *value; /* (D) */
    uint64_t values_read;
};

struct graph_find_args {
    const struct graph_rows *rows;
    const struct graph_links *links;
    const float *q;     /* (D) scaled, rotated */
    uint32_t low, high; /* wanted nodes, at least one */
    size_t width, k;
    float best, band;   /* band > 0: DIPR instead of k */
    uint64_t seed;      /* of the tail's sample */
};

/* What a tail is worth, in relation to the answer it was merged into. */
struct graph_tail {
    float error; /* predicted relative L2 error of o; NaN: nothing can be said */
    float lse;   /* of the estimate */
};

/* Room for lists of `width`; false: no memory. */
bool graph_finder_init(struct graph_finder *ret_finder, const struct graph_rows *rows,
                       uint32_t nodes, size_t width, struct arena *arena);

/* The hits of a query. */
void graph_find(struct graph_finder *finder, const struct graph_find_args *args);

/* into (one row) ⊕= attention over the hits. */
void graph_find_attend(struct graph_finder *finder, const struct graph_find_args *args,
                       const struct partial *into);

/* into (one row) ⊕= an estimate of the wanted nodes that are no hits. Spoils the hits. */
struct graph_tail graph_find_tail(struct graph_finder *finder, const struct graph_find_args *args,
                                  const struct partial *into);

#endif
