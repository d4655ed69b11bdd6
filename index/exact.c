/* SPDX-License-Identifier: Apache-2.0 */
/* exact.c — scores of a few queries over a few hundred rows at a time, then a heap per query head.
 *
 * The heap of the k best (topk.h) lies in the caller's result row; a last heapsort in place puts
 * the best first.
 *
 * Rejected: nth_element over all scores (n * H * T floats of scratch); a threshold from a sample
 * (exact must stay obviously right: it is every other index's oracle).
 */
#include "index/exact.h"

#include <assert.h>

#include "attention/backend.h"
#include "attention/scan.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/plan.h"
#include "index/topk.h"

enum {
    BLOCK_HEADS = 32,      /* query heads of one block, as far as whole queries allow */
    SCORE_FLOATS = 8192,   /* scores in flight, on the worker's stack */
    WAVE_FLOATS = 2 << 20, /* regrouped queries of one wave: 8 MiB */
};

struct search {
    struct scan scan;
    const struct backend *backend;
    const struct index_hits *hits;
    size_t block_queries, blocks; /* per KV head */
};

/* Result row of query `i` of the scan, head `j` of KV head `g`. */
static struct topk result_row(const struct search *search, size_t g, size_t i, size_t j)
{
    const struct scan *scan = &search->scan;
    size_t row = (scan->first + i) * scan->heads + g * scan->group + j;
    size_t k = search->hits->k;
    return (struct topk){ .ids = search->hits->ids + row * k,
                          .scores = search->hits->scores + row * k, .k = k };
}

/* scores (rows) of consecutive positions */
static void offer(const struct topk *top, const float *scores, size_t rows, uint64_t position)
{
    for (size_t row = 0; row < rows; row++) topk_offer(top, scores[row], position + row);
}

/* Score `run` for the queries first … first + queries - 1 of KV head g and offer every visible
 * row. */
static void search_run(const struct search *search, const struct scan_run *run, size_t g,
                       size_t first, size_t queries)
{
    const struct scan *scan = &search->scan;
    float scores[SCORE_FLOATS]; /* (queries * group, rows) */
    size_t heads = queries * scan->group;
    size_t step = SCORE_FLOATS / heads;
    size_t q_row = (g * scan->queries + first) * scan->group;
    for (size_t begin = 0; begin < run->rows; begin += step) {
        struct scan_run part = *run;
        part.k = (const unsigned char *)run->k + begin * run->k_stride_bytes;
        part.position += begin;
        part.rows = run->rows - begin < step ? run->rows - begin : step;
        search->backend->score(&(struct score_args){
            .q = scan->q + q_row * scan->head_dim, .queries = heads, .head_dim = scan->head_dim,
            .k = part.k, .k_stride_bytes = part.k_stride_bytes, .tokens = part.rows,
            .dtype = part.k_dtype, .scores = scores });
        for (size_t m = 0; m < heads; m++) {
            size_t i = first + m / scan->group;
            struct topk top = result_row(search, g, i, m % scan->group);
            offer(&top, scores + m * part.rows, scan_visible(scan, i, &part), part.position);
        }
    }
}

/* idx = g * blocks + block */
static void run_task(void *arg, size_t idx)
{
    struct search *search = arg;
    struct scan *scan = &search->scan;
    size_t g = idx / search->blocks, first = idx % search->blocks * search->block_queries;
    size_t queries = scan->queries - first;
    if (queries > search->block_queries) queries = search->block_queries;
    size_t heads = queries * scan->group;
    for (size_t m = 0; m < heads; m++) {
        struct topk top = result_row(search, g, first + m / scan->group, m % scan->group);
        topk_clear(&top);
    }
    struct scan_cursor cursor;
    struct scan_run run;
    scan_open(&cursor, scan, g, 0, scan->rows);
    while (scan_next(&cursor, &run)) search_run(search, &run, g, first, queries);
    for (size_t m = 0; m < heads; m++) {
        struct topk top = result_row(search, g, first + m / scan->group, m % scan->group);
        topk_sort(&top);
    }
}

struct exact_cost exact_cost(const struct attend_args *args, unsigned parts)
{
    struct exact_cost cost = { 0 };
    uint64_t limit = 0, vectors = parts * args->kv_heads;
    for (size_t i = 0; i < args->q.shape[0]; i++)
        if (args->limits[i] > limit) limit = args->limits[i];
    for (size_t i = 0; i < args->view_count; i++) {
        const struct view *view = &args->views[i];
        uint64_t below = limit > view->position ? limit - view->position : 0;
        if (below > view->tokens) below = view->tokens;
        cost.rows += below * vectors;
        cost.bytes += below * vectors * args->q.shape[2] * dtype_bytes(view->dtype);
    }
    return cost;
}

void exact_plan(const struct attend_args *args, struct plan *plan)
{
    uint64_t tokens = 0;
    for (size_t i = 0; i < args->view_count; i++) tokens += args->views[i].tokens;
    for (size_t i = 0; i < args->q.shape[0]; i++) {
        uint64_t position = args->positions == NULL ? 0 : args->positions[i];
        plan_add(plan, &(struct plan_run){
                           .query = (uint32_t)i, .heads = (uint32_t)args->q.shape[1],
                           .count = args->limits[i] < tokens ? args->limits[i] : tokens,
                           .query_placed = position });
    }
}

int exact_search(const struct attend_args *args, struct arena *arena,
                 const struct index_hits *ret_hits, struct error *err)
{
    size_t queries = args->q.shape[0], heads = args->q.shape[1], head_dim = args->q.shape[2];
    if (queries == 0 || ret_hits->k == 0) return 0;
    size_t group = heads / args->kv_heads;
    assert(group <= SCORE_FLOATS);
    size_t step = WAVE_FLOATS / (heads * head_dim) + 1;
    if (step > queries) step = queries;
    float *q = arena_alloc_aligned(arena, step * heads * head_dim * sizeof *q, 64);
    if (q == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for a search of %zu queries", step);
    struct search search = { .backend = backend_get(), .hits = ret_hits };
    search.block_queries = group < BLOCK_HEADS ? BLOCK_HEADS / group : 1;
    int rc = 0;
    for (size_t first = 0; rc == 0 && first < queries; first += step) {
        size_t count = queries - first < step ? queries - first : step;
        scan_init(&search.scan, args, first, count, q);
        search.scan.parts = VIEW_K;
        search.blocks = (count + search.block_queries - 1) / search.block_queries;
        pool_for(args->pool, args->kv_heads * search.blocks, run_task, &search);
        rc = scan_stopped(&search.scan, err);
    }
    return rc;
}
