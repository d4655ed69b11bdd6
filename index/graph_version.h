/* SPDX-License-Identifier: Apache-2.0 */
/* graph_version.h — a version of the graphs of one layer, and the functions of graph_type. */
#ifndef MEMD_INDEX_GRAPH_VERSION_H
#define MEMD_INDEX_GRAPH_VERSION_H

#include "index/graph_links.h"
#include "index/layer_index.h"

struct graph_version {
    struct layer_index base; /* first: a layer_index is one of these */
    size_t kv_heads, m;
    uint64_t first;  /* position of node 0 */
    uint32_t nodes;  /* the same in every head */
    struct graph_links links[]; /* (G) */
};

/* With empty links; NULL: no memory. */
struct graph_version *graph_version_new(const struct layer_source *source, uint64_t first,
                                        uint32_t nodes, size_t m);
/* Once the links are there. */
void graph_version_finish(struct graph_version *version);
void graph_version_free(struct layer_index *version);
void graph_version_freep(struct graph_version **version);

size_t graph_save(const struct layer_index *version, unsigned char *ret_data);
int graph_load(const struct layer_source *shape, const void *data, size_t bytes,
               struct layer_index **ret_version, struct error *err);
int graph_validate(const struct layer_index *version, struct error *err);

int graph_attend(const struct layer_index *version, const struct index_args *args,
                 const double *options, struct arena *arena, const struct index_answer *ret_answer,
                 struct error *err);
int graph_search(const struct layer_index *version, const struct index_args *args,
                 const double *options, struct arena *arena, const struct index_found *ret_found,
                 struct error *err);

#endif
