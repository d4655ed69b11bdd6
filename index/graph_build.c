/* SPDX-License-Identifier: Apache-2.0 */
/* graph_build.c — what the steps of a build share: rows, workers, stopping; and their order.
 *
 * Keys that are stored unrotated are rotated once, into one view in fp32: a build reads every key
 * hundreds of times.
 */
#include "index/graph_build.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/pool.h"

struct each {
    struct graph_builder *builder;
    graph_each_fn *fn;
    void *arg;
    size_t items;
    atomic_size_t next;
};

static void each_task(void *arg, size_t idx)
{
    struct each *each = arg;
    for (;;) {
        size_t item = atomic_fetch_add_explicit(&each->next, 1, memory_order_relaxed);
        if (item >= each->items) return;
        each->fn(each->builder, &each->builder->workers[idx], item, each->arg);
    }
}

void graph_each(struct graph_builder *builder, size_t items, graph_each_fn *fn, void *arg)
{
    struct each each = { .builder = builder, .fn = fn, .arg = arg, .items = items };
    size_t workers = items < builder->worker_count ? items : builder->worker_count;
    pool_for(builder->source->pool, workers, each_task, &each);
}

int graph_stopped(const struct graph_builder *builder, const char *step, struct error *err)
{
    const struct layer_source *source = builder->source;
    int code = source->stop == NULL ? 0 : source->stop(source->stop_arg);
    if (code == 0) return 0;
    return error_set(err, code, "%s: the %s of a graph of %u nodes", error_text(code), step,
                     builder->nodes);
}

/* One view with the rotated keys of positions 0 … first + nodes - 1. */
static bool rotate_keys(struct graph_builder *builder)
{
    struct graph_rows *rows = &builder->rows;
    uint64_t end = rows->first + builder->nodes;
    struct view *view = arena_alloc(builder->arena, sizeof *view);
    float *keys = arena_alloc_aligned(builder->arena,
                                      (size_t)end * rows->all.head_dim * sizeof *keys, 64);
    if (view == NULL || keys == NULL) return false;
    rows_keys(&rows->all, 0, 0, (size_t)end, keys);
    size_t stride = rows->all.head_dim * sizeof *keys;
    *view = (struct view){ .k = keys, .v = keys, .k_stride_bytes = stride,
                           .v_stride_bytes = stride, .tokens = (size_t)end, .dtype = DTYPE_FP32 };
    uint64_t first = rows->first;
    graph_rows_init(rows, &(struct rows){ .views = view, .view_count = 1,
                                          .head_dim = rows->all.head_dim });
    rows->first = first;
    return true;
}

/* The node nearest to the centroid (RoarGraph: CalculateProjectionep, in L2). */
static bool find_entry(struct graph_builder *builder)
{
    const struct graph_rows *rows = &builder->rows;
    double *mean = arena_calloc(builder->arena, rows->all.head_dim, sizeof *mean);
    float *key = builder->workers[0].pruner.key;
    if (mean == NULL) return false;
    for (uint32_t node = 0; node < builder->nodes; node++) {
        graph_rows_key(rows, node, key);
        for (size_t d = 0; d < rows->all.head_dim; d++) mean[d] += (double)key[d];
    }
    double nearest = INFINITY;
    for (uint32_t node = 0; node < builder->nodes; node++) {
        double distance = 0.0;
        graph_rows_key(rows, node, key);
        for (size_t d = 0; d < rows->all.head_dim; d++) {
            double apart = (double)key[d] - mean[d] / (double)builder->nodes;
            distance += apart * apart;
        }
        if (distance >= nearest) continue;
        nearest = distance;
        builder->links->entry = node;
    }
    return true;
}

static bool prepare(struct graph_builder *builder)
{
    if (builder->rows.all.rope != NULL && !rotate_keys(builder)) return false;
    builder->worker_count = pool_threads(builder->source->pool) + 1;
    builder->workers =
        arena_calloc(builder->arena, builder->worker_count, sizeof *builder->workers);
    if (builder->workers == NULL) return false;
    size_t room = builder->nodes + GRAPH_LINKS_MAX + builder->width;
    for (size_t i = 0; i < builder->worker_count; i++) {
        struct graph_worker *worker = &builder->workers[i];
        worker->list = arena_alloc(builder->arena, room * sizeof *worker->list);
        if (worker->list == NULL ||
            !graph_beam_init(&worker->beam, &builder->rows, builder->nodes, builder->width,
                             builder->arena) ||
            !graph_pruner_init(&worker->pruner, &builder->rows, room, builder->arena))
            return false;
    }
    return true;
}

int graph_build(const struct graph_builder *given, const struct graph_links *before,
                struct graph_links *ret_links, struct error *err)
{
    struct graph_builder builder = *given;
    CLEANUP(graph_links_fini) struct graph_links links = { 0 };
    builder.links = &links;
    builder.old_nodes = before == NULL ? 0 : before->nodes;
    assert(builder.nodes > 0 && builder.old_nodes <= builder.nodes);
    bool ok = graph_links_grow(&links, before, builder.nodes, builder.m) && prepare(&builder) &&
              find_entry(&builder);
    int rc = ok ? graph_project(&builder, err) : MEMD_ENOMEM;
    if (rc == 0) rc = graph_connect(&builder, err);
    if (rc == 0) rc = graph_reach(&builder);
    if (rc == 0 && !graph_links_pack(&links)) rc = MEMD_ENOMEM;
    if (rc == MEMD_ENOMEM)
        return error_set(err, rc, "no memory to build a graph of %u nodes", builder.nodes);
    if (rc < 0) return rc;
    *ret_links = links;
    links = (struct graph_links){ 0 };
    return 0;
}
