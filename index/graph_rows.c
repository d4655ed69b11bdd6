/* SPDX-License-Identifier: Apache-2.0 */
/* graph_rows.c — position → view by a guess and a short walk: sealed segments all have the size of
 * the first view, only the tail behind them is cut differently. */
#include "index/graph_rows.h"

#include <assert.h>
#include <string.h>

#include "attention/backend.h"
#include "base/half.h"
#include "base/tensor.h"

enum { AHEAD = 64 }; /* rows prefetched before the first is copied */

void graph_rows_init(struct graph_rows *ret_rows, const struct view *views, size_t view_count,
                     size_t head_dim, const struct rope *rope)
{
    *ret_rows = (struct graph_rows){ .views = views, .view_count = view_count,
                                     .head_dim = head_dim, .rope = rope };
    if (view_count > 0) ret_rows->value_dtype = views[0].dtype;
    ret_rows->key_dtype = rope == NULL ? ret_rows->value_dtype : DTYPE_FP32;
    for (size_t i = 0; i < view_count; i++) {
        assert(views[i].position == ret_rows->tokens && views[i].tokens > 0);
        assert(views[i].dtype == ret_rows->value_dtype);
        ret_rows->tokens += views[i].tokens;
    }
}

size_t graph_rows_key_bytes(const struct graph_rows *rows)
{
    return rows->head_dim * dtype_bytes(rows->key_dtype);
}

static const struct view *find(const struct graph_rows *rows, uint64_t position)
{
    assert(position < rows->tokens);
    size_t at = (size_t)(position / rows->views[0].tokens);
    if (at >= rows->view_count) at = rows->view_count - 1;
    while (rows->views[at].position > position) at--;
    while (position - rows->views[at].position >= rows->views[at].tokens) at++;
    return &rows->views[at];
}

static const void *key_row(const struct graph_rows *rows, uint64_t position)
{
    const struct view *view = find(rows, position);
    return (const unsigned char *)view->k + (position - view->position) * view->k_stride_bytes;
}

static const void *value_row(const struct graph_rows *rows, uint64_t position)
{
    const struct view *view = find(rows, position);
    return (const unsigned char *)view->v + (position - view->position) * view->v_stride_bytes;
}

static void prefetch(const unsigned char *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

/* Copy rows through a ring of pointers, each prefetched AHEAD rows before its turn. */
static void copy_rows(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                      const void *(*row)(const struct graph_rows *, uint64_t),
                      unsigned char *ret_rows)
{
    const void *ring[AHEAD];
    size_t bytes = rows->head_dim * dtype_bytes(rows->value_dtype);
    for (size_t i = 0; i < count + AHEAD; i++) {
        if (i >= AHEAD) memcpy(ret_rows + (i - AHEAD) * bytes, ring[i % AHEAD], bytes);
        if (i >= count) continue;
        ring[i % AHEAD] = row(rows, rows->first + ids[i]);
        prefetch(ring[i % AHEAD], bytes);
    }
}

static void rotate_key(const struct graph_rows *rows, uint64_t position, float *ret_key)
{
    const struct view *view = find(rows, position);
    backend_get()->rotate(&(struct rotate_args){
        .rope = rows->rope, .rows = key_row(rows, position), .stride_bytes = view->k_stride_bytes,
        .dtype = view->dtype, .count = 1, .position = position, .out = ret_key });
}

void graph_rows_keys(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                     void *ret_keys)
{
    if (rows->rope == NULL) {
        copy_rows(rows, ids, count, key_row, ret_keys);
        return;
    }
    float *keys = ret_keys;
    for (size_t i = 0; i < count; i++)
        rotate_key(rows, rows->first + ids[i], keys + i * rows->head_dim);
}

void graph_rows_values(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                       void *ret_values)
{
    copy_rows(rows, ids, count, value_row, ret_values);
}

void graph_rows_key(const struct graph_rows *rows, uint32_t id, float *ret_key)
{
    uint64_t position = rows->first + id;
    if (rows->rope != NULL)
        rotate_key(rows, position, ret_key);
    else
        half_load(key_row(rows, position), rows->key_dtype, rows->head_dim, ret_key);
}

size_t graph_rows_clip(const struct view *views, size_t view_count, uint64_t begin, uint64_t end,
                       struct view *ret_views)
{
    size_t count = 0;
    for (size_t i = 0; i < view_count; i++) {
        struct view view = views[i];
        uint64_t view_end = view.position + view.tokens, skip = 0;
        if (view_end <= begin || view.position >= end) continue;
        if (view_end > end) view_end = end;
        if (view.position < begin) skip = begin - view.position;
        view.k = (const unsigned char *)view.k + skip * view.k_stride_bytes;
        view.v = (const unsigned char *)view.v + skip * view.v_stride_bytes;
        view.position += skip;
        view.tokens = (size_t)(view_end - view.position);
        ret_views[count++] = view;
    }
    return count;
}
