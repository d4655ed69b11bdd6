/* SPDX-License-Identifier: Apache-2.0 */
/* scan.c — rows are numbered over the clipped views, so that a split of the work never looks at
 * positions.
 *
 * Clipping every view at the largest limit (instead of assuming that views ascend) lets sinks,
 * segments and tail come in any order. Rotated keys go through a tile on the worker's stack: the
 * cache it lives in is the one that the kernel reads from next.
 */
#include "attention/scan.h"

#include <assert.h>

#include "attention/backend.h"
#include "attention/rope.h"
#include "base/error.h"
#include "proto/limits.h"

static size_t clipped_tokens(const struct view *view, uint64_t limit)
{
    if (limit <= view->position) return 0;
    uint64_t below = limit - view->position;
    return below < view->tokens ? (size_t)below : view->tokens;
}

/* q (H, D) of query `i` -> its rows of scan->q */
static void regroup_query(struct scan *scan, size_t i, const float *cos, const float *sin)
{
    const struct attend_args *args = scan->args;
    size_t row_bytes = scan->head_dim * dtype_bytes(args->q.dtype);
    const unsigned char *from = args->q.data;
    from += (scan->first + i) * scan->heads * row_bytes;
    size_t numbers = scan->group * scan->head_dim;
    for (size_t g = 0; g < args->kv_heads; g++) {
        float *to = scan->q + (g * scan->queries + i) * numbers; /* (group, D) */
        backend_widen(from + g * scan->group * row_bytes, args->q.dtype, scan->group,
                      scan->head_dim, to);
        if (args->rope != NULL) rope_apply(args->rope, cos, sin, to, scan->group);
        for (size_t d = 0; d < numbers; d++) to[d] *= args->scale;
    }
}

static void check(const struct attend_args *args)
{
    assert(args->q.dims == 3 && dtype_is_float(args->q.dtype));
    assert(args->kv_heads > 0 && args->q.shape[1] % args->kv_heads == 0);
    assert(args->q.shape[2] % 8 == 0 && args->q.shape[2] <= LIMIT_HEAD_DIM);
    assert(args->q.shape[0] == 0 || args->limits != NULL);
    assert(args->rope == NULL || args->positions != NULL);
    assert(args->rope == NULL || args->rope->head_dim == args->q.shape[2]);
    assert(args->view_count == 0 || args->views != NULL);
}

void scan_init(struct scan *scan, const struct attend_args *args, size_t first, size_t queries,
               float *q)
{
    check(args);
    assert(first + queries <= args->q.shape[0]);
    *scan = (struct scan){ .args = args, .heads = args->q.shape[1],
                           .group = args->q.shape[1] / args->kv_heads,
                           .head_dim = args->q.shape[2], .queries = queries, .first = first,
                           .q = q, .parts = VIEW_K | VIEW_V };
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t i = 0; i < queries; i++) {
        uint64_t limit = args->limits[first + i];
        if (limit > scan->limit_max) scan->limit_max = limit;
        if (args->rope != NULL) rope_angles(args->rope, args->positions[first + i], cos, sin);
        regroup_query(scan, i, cos, sin);
    }
    for (size_t i = 0; i < args->view_count; i++)
        scan->rows += clipped_tokens(&args->views[i], scan->limit_max);
}

void scan_open(struct scan_cursor *cursor, struct scan *scan, size_t kv_head, size_t begin,
               size_t end)
{
    const struct attend_args *args = scan->args;
    assert(kv_head < args->kv_heads);
    assert(begin <= end && end <= scan->rows);
    cursor->scan = scan;
    cursor->view = args->views + kv_head * args->view_count;
    cursor->view_end = cursor->view + args->view_count;
    cursor->view_row = begin;
    cursor->left = end - begin;
    while (cursor->left > 0) {
        size_t tokens = clipped_tokens(cursor->view, scan->limit_max);
        if (cursor->view_row < tokens) break;
        cursor->view_row -= tokens;
        cursor->view++;
    }
}

static bool asked_to_stop(struct scan *scan)
{
    if (atomic_load_explicit(&scan->stopped, memory_order_relaxed) != 0) return true;
    if (scan->args->stop == NULL) return false;
    int code = scan->args->stop(scan->args->stop_arg);
    if (code == 0) return false;
    atomic_store_explicit(&scan->stopped, code, memory_order_relaxed);
    return true;
}

bool scan_admit(struct scan *scan, const struct view *view, size_t row, size_t count,
                unsigned parts)
{
    if (scan->args->admit == NULL) return true;
    int code = scan->args->admit(scan->args->admit_arg, view, row, count, parts);
    if (code == 0) return true;
    atomic_store_explicit(&scan->stopped, code, memory_order_relaxed);
    return false;
}

/* Replace the keys of the run by rotated ones in the cursor's tile. */
static void rotate(struct scan_cursor *cursor, struct scan_run *run)
{
    backend_get()->rotate(&(struct rotate_args){
        .rope = cursor->scan->args->rope, .rows = run->k, .stride_bytes = run->k_stride_bytes,
        .dtype = run->k_dtype, .count = run->rows, .position = run->position,
        .out = cursor->tile });
    run->k = cursor->tile;
    run->k_dtype = DTYPE_FP32;
    run->k_stride_bytes = cursor->scan->head_dim * sizeof *cursor->tile;
}

bool scan_next(struct scan_cursor *cursor, struct scan_run *ret_run)
{
    struct scan *scan = cursor->scan;
    if (cursor->left == 0 || asked_to_stop(scan)) return false;
    while (cursor->view_row == clipped_tokens(cursor->view, scan->limit_max)) {
        cursor->view++;
        cursor->view_row = 0;
        assert(cursor->view < cursor->view_end);
    }
    const struct view *view = cursor->view;
    bool rotating = scan->args->rope != NULL;
    size_t rows = rotating ? SCAN_TILE_FLOATS / scan->head_dim : SCAN_RUN_ROWS;
    size_t here = clipped_tokens(view, scan->limit_max) - cursor->view_row;
    if (rows > here) rows = here;
    if (rows > cursor->left) rows = cursor->left;
    if (!scan_admit(scan, view, cursor->view_row, rows, scan->parts)) return false;
    *ret_run = (struct scan_run){
        .k = (const unsigned char *)view->k + cursor->view_row * view->k_stride_bytes,
        .v = (const unsigned char *)view->v + cursor->view_row * view->v_stride_bytes,
        .k_stride_bytes = view->k_stride_bytes, .v_stride_bytes = view->v_stride_bytes,
        .k_dtype = view->dtype, .v_dtype = view->dtype,
        .rows = rows, .position = view->position + cursor->view_row };
    cursor->view_row += rows;
    cursor->left -= rows;
    if (rotating) rotate(cursor, ret_run);
    return true;
}

uint32_t scan_visible(const struct scan *scan, size_t i, const struct scan_run *run)
{
    assert(i < scan->queries);
    uint64_t limit = scan->args->limits[scan->first + i];
    if (limit <= run->position) return 0;
    uint64_t below = limit - run->position;
    return (uint32_t)(below < run->rows ? below : run->rows);
}

int scan_stopped(struct scan *scan, struct error *err)
{
    int code = atomic_load_explicit(&scan->stopped, memory_order_relaxed);
    if (code == 0) return 0;
    return error_set(err, code, "%s while reading %zu rows", error_text(code), scan->rows);
}
