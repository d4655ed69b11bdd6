/* SPDX-License-Identifier: Apache-2.0 */
/* indexed.c — every method that is an index of the whole layer (index/layer_index.h): one way of
 * asking for all of them.
 *
 * Until there is a version, everything is read exactly; later what the version does not cover yet
 * is. Kinds without anything to build (streaming, oracle-topk) are asked without a version. None
 * of them is asked for an error.
 */
#include "base/error.h"
#include "index/faiss.h"
#include "index/graph.h"
#include "index/oracle.h"
#include "index/streaming.h"
#include "index/zones.h"
#include "memory/methods/methods.h"

static bool can_answer(const struct method *method, const struct reading *reading)
{
    bool ready = method->layer->build == NULL || reading->version != NULL;
    return ready && reading->attend.view_count > 0;
}

static struct index_args arguments(const struct reading *reading)
{
    return (struct index_args){ .attend = reading->attend, .max_bytes = reading->max_bytes,
                                .plan = reading->plan };
}

static int attend_indexed(const struct method *method, const struct reading *reading,
                          struct arena *arena, const struct index_answer *ret_answer,
                          struct error *err)
{
    if (!can_answer(method, reading))
        return method_attend_exactly(reading, arena, ret_answer, err);
    struct index_args args = arguments(reading);
    return method->layer->attend(reading->version, &args, reading->options, arena, ret_answer, err);
}

static int search_indexed(const struct method *method, const struct reading *reading,
                          struct arena *arena, const struct index_hits *ret_hits,
                          struct index_quality *ret_quality, struct error *err)
{
    if (!can_answer(method, reading))
        return method_search_exactly(reading, arena, ret_hits, ret_quality, err);
    struct index_args args = arguments(reading);
    struct index_found found = { .hits = *ret_hits, .quality = ret_quality };
    return method->layer->search(reading->version, &args, reading->options, arena, &found, err);
}

#define INDEXED(variable, text, type, says) \
    const struct method variable = {        \
        .name = text,                       \
        .help = says,                       \
        .layer = &(type),                   \
        .attend = attend_indexed,           \
        .search = search_indexed,           \
    }

const struct method method_retrieval_attention = {
    .name = "retrieval-attention",
    .help = "a graph of keys made from queries, the nearest read (RetrievalAttention)",
    .layer = &graph_type,
    .keeps_queries = true,
    .attend = attend_indexed,
    .search = search_indexed,
};
INDEXED(method_retroinfer, "retroinfer", zones_type,
        "clusters: the best read, more estimated, the rest dropped (RetroInfer)");
INDEXED(method_streaming, "streaming", streaming_type,
        "the first tokens and the newest, nothing in between (StreamingLLM)");
INDEXED(method_oracle_topk, "oracle-topk", oracle_type,
        "exactly the best k tokens, for comparison");

#ifdef MEMD_FAISS
INDEXED(method_faiss_flat, "faiss-flat", faiss_flat_type, "FAISS, all keys scanned");
INDEXED(method_faiss_ivf, "faiss-ivf", faiss_ivf_type, "FAISS, inverted lists");
INDEXED(method_faiss_hnsw, "faiss-hnsw", faiss_hnsw_type, "FAISS, a graph");
#endif
