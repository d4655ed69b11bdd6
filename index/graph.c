/* SPDX-License-Identifier: Apache-2.0 */
/* graph.c — options, and versions made head by head.
 *
 * Heads are built one after the other, each with all threads: scratch of one head only, and a layer
 * of one KV head is built as fast as one of eight. A version that cannot be continued (other
 * options, fewer tokens than before) is built from nothing.
 */
#include "index/graph.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "index/graph_build.h"
#include "index/graph_version.h"

static const struct option_spec specs[] = {
    [GRAPH_NQ] = OPTION_WHOLE("nq", "best keys of a kept query that are linked", 100, 2, 1000),
    [GRAPH_M] = OPTION_WHOLE("m", "links of a node from queries; up to 2 m more", 35, 2, 64),
    [GRAPH_PIVOT] = OPTION_WHOLE("pivot", "the key that is linked: 0 = the best one, 1 = any of "
                                 "the nq", 0, 0, 1),
    [GRAPH_L] = OPTION_WHOLE("l", "length of the list while building", 500, 1, 10000),
    [GRAPH_K] = OPTION_WHOLE("k", "tokens found per query head", 100, 1, 1e6),
    [GRAPH_DIPR] = OPTION_REAL("dipr", "instead of k: all tokens with this share of the best "
                               "one's weight; 0 = off", 0, 0, 0.999999),
    [GRAPH_EF] = OPTION_WHOLE("ef", "length of the list of a search; at least k", 200, 1, 1e6),
    [GRAPH_SINKS] = OPTION_WHOLE("sinks", "first tokens, always read", 128, 0, 1e6),
    [GRAPH_WINDOW] = OPTION_WHOLE("window", "last tokens, always read", 512, 0, 1e6),
    [GRAPH_TAIL] = OPTION_WHOLE("tail", "1 = estimate the tokens that were not found from a "
                                "sample", 0, 0, 1),
    [GRAPH_SAMPLE] = OPTION_REAL("sample", "share of positions whose queries are kept",
                                 0.4, 0.001, 1),
};

static const struct option_table table = { "retrieval-attention", specs, GRAPH_OPTIONS };

struct graph_version *graph_version_new(const struct layer_source *source, uint64_t first,
                                        uint32_t nodes, size_t m)
{
    size_t bytes = sizeof(struct graph_version) + source->kv_heads * sizeof(struct graph_links);
    struct graph_version *version = calloc(1, bytes);
    if (version == NULL) return NULL;
    version->base.type = &graph_type;
    atomic_init(&version->base.references, 1);
    version->base.tokens = source->tokens;
    version->kv_heads = source->kv_heads;
    version->m = m;
    version->first = first;
    version->nodes = nodes;
    return version;
}

void graph_version_finish(struct graph_version *version)
{
    version->base.bytes = sizeof *version;
    for (size_t g = 0; g < version->kv_heads; g++)
        version->base.bytes += sizeof version->links[g] + graph_links_bytes(&version->links[g]);
}

void graph_version_free(struct layer_index *base)
{
    struct graph_version *version = (struct graph_version *)base;
    if (version == NULL) return;
    for (size_t g = 0; g < version->kv_heads; g++) graph_links_fini(&version->links[g]);
    free(version);
}

void graph_version_freep(struct graph_version **version)
{
    graph_version_free((struct layer_index *)*version);
}

/* Can the new version begin with the links of `before`? */
static bool continues(const struct graph_version *before, const struct graph_version *version)
{
    return before != NULL && before->m == version->m && before->kv_heads == version->kv_heads &&
           before->first == version->first && before->nodes <= version->nodes;
}

static int build_head(const struct layer_source *source, const struct graph_version *before,
                      struct graph_version *version, size_t g, struct error *err)
{
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, SIZE_MAX);
    struct graph_builder builder = {
        .source = source, .kv_head = g, .nodes = version->nodes, .m = version->m,
        .window = (uint64_t)source->options[GRAPH_WINDOW],
        .any_pivot = source->options[GRAPH_PIVOT] != 0.0,
        .nq = (size_t)source->options[GRAPH_NQ], .width = (size_t)source->options[GRAPH_L],
        .from = before == NULL ? 0 : before->base.tokens, .arena = &arena };
    graph_rows_init(&builder.rows, &(struct rows){ .views = source->views + g * source->view_count,
                                                   .view_count = source->view_count,
                                                   .head_dim = source->head_dim,
                                                   .rope = source->rope });
    assert(rows_tokens(&builder.rows.all) == source->tokens);
    builder.rows.first = version->first;
    return graph_build(&builder, before == NULL ? NULL : &before->links[g], &version->links[g],
                       err);
}

static int build(const struct layer_source *source, const struct layer_index *base,
                 struct layer_index **ret_version, struct error *err)
{
    const struct graph_version *before = (const struct graph_version *)base;
    uint64_t first = (uint64_t)source->options[GRAPH_SINKS];
    uint64_t window = (uint64_t)source->options[GRAPH_WINDOW];
    uint64_t nodes = source->tokens > first + window ? source->tokens - first - window : 0;
    size_t m = (size_t)source->options[GRAPH_M];
    if (nodes >= GRAPH_NONE || nodes * 3 * m > UINT32_MAX)
        return error_set(err, MEMD_ELIMIT, "retrieval-attention: a graph of %" PRIu64 " tokens is "
                         "too large", nodes);
    CLEANUP(graph_version_freep) struct graph_version *version =
        graph_version_new(source, first, (uint32_t)nodes, m);
    if (version == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a graph");
    if (!continues(before, version)) before = NULL;
    if (source->queries.count == 0 && before == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "retrieval-attention builds its graph from "
                         "queries, and none were sent with the %" PRIu64 " tokens: append q too",
                         source->tokens);
    int rc = 0;
    for (size_t g = 0; rc == 0 && nodes > 0 && g < source->kv_heads; g++)
        rc = build_head(source, before, version, g, err);
    if (rc < 0) return rc;
    graph_version_finish(version);
    *ret_version = (struct layer_index *)TAKE(version);
    return 0;
}

const struct layer_index_type graph_type = {
    .name = "retrieval-attention",
    .options = &table,
    .step_tokens = 1024,
    .needs_queries = true,
    .build = build,
    .free = graph_version_free,
    .save = graph_save,
    .load = graph_load,
    .validate = graph_validate,
    .attend = graph_attend,
    .search = graph_search,
};
