/* SPDX-License-Identifier: Apache-2.0 */
/* graph.h — `retrieval-attention`: an attention-aware graph per KV head.
 *
 * RetrievalAttention (arXiv 2409.10516) keeps a static pattern, 128 first and 512 last tokens, and
 * finds the other keys that a query wants by a graph whose links come from earlier queries, since
 * queries are far from all keys and a graph of keys alone gets stuck. Attention over the pattern
 * and over what was found are two partials over disjoint tokens. Ours differs where it says so:
 * one graph per KV head, not per query head (AlayaDB, arXiv 2504.10326 §5), insertion of generated
 * tokens (the paper has none; decisions/0037), and, if asked for, an estimate of the tokens that
 * were not found.
 *
 * A version of T tokens has the tokens sinks … T - window - 1 as nodes; an answer reads sinks, the
 * window, and what came after the version exactly.
 *
 * Cost     build: see decisions/0037; attend: random reads, some percent of the keys per query head
 * Errors   as layer_index.h; MEMD_EUNSUPPORTED from build when no queries were kept; MEMD_ELIMIT
 *          for more nodes than 32-bit links can have; MEMD_EVERSION from load
 * Tests    tests/unit/test_graph.c, tests/unit/test_graph_versions.c
 */
#ifndef MEMD_INDEX_GRAPH_H
#define MEMD_INDEX_GRAPH_H

#include "index/layer_index.h"

extern const struct layer_index_type graph_type;

/* The options, in the order of graph_type.options. */
enum graph_option {
    GRAPH_NQ,
    GRAPH_M,
    GRAPH_L,
    GRAPH_PIVOT,
    GRAPH_K,
    GRAPH_DIPR,
    GRAPH_EF,
    GRAPH_SINKS,
    GRAPH_WINDOW,
    GRAPH_TAIL,
    GRAPH_SAMPLE,
    GRAPH_OPTIONS,
};

#endif
