/* SPDX-License-Identifier: Apache-2.0 */
/* graph_rows.c — copies of scattered rows (rows.h finds them), and views cut to a range. */
#include "index/graph_rows.h"

#include <assert.h>
#include <string.h>

#include "attention/backend.h"
#include "base/tensor.h"

enum {
    AHEAD = 64, /* rows prefetched before the first is copied */
    RAW_BYTES = 32 << 10, RAW_ROWS = 256, /* copied before they are rotated */
};

void graph_rows_init(struct graph_rows *ret_rows, const struct rows *all)
{
    *ret_rows = (struct graph_rows){ .all = *all };
    if (all->view_count > 0) ret_rows->value_dtype = all->views[0].dtype;
    ret_rows->key_dtype = all->rope == NULL ? ret_rows->value_dtype : DTYPE_FP32;
    uint64_t tokens = 0;
    for (size_t i = 0; i < all->view_count; i++) {
        assert(all->views[i].position == tokens && all->views[i].tokens > 0);
        assert(all->views[i].dtype == ret_rows->value_dtype);
        tokens += all->views[i].tokens;
    }
}

size_t graph_rows_key_bytes(const struct graph_rows *rows)
{
    return rows->all.head_dim * dtype_bytes(rows->key_dtype);
}

static const void *key_row(const struct graph_rows *rows, uint64_t position)
{
    const struct view *view = rows_view(&rows->all, 0, position);
    return (const unsigned char *)view->k + (position - view->position) * view->k_stride_bytes;
}

static const void *value_row(const struct graph_rows *rows, uint64_t position)
{
    const struct view *view = rows_view(&rows->all, 0, position);
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
    size_t bytes = rows->all.head_dim * dtype_bytes(rows->value_dtype);
    for (size_t i = 0; i < count + AHEAD; i++) {
        if (i >= AHEAD) memcpy(ret_rows + (i - AHEAD) * bytes, ring[i % AHEAD], bytes);
        if (i >= count) continue;
        ring[i % AHEAD] = row(rows, rows->first + ids[i]);
        prefetch(ring[i % AHEAD], bytes);
    }
}

void graph_rows_keys(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                     void *ret_keys)
{
    if (rows->all.rope == NULL) {
        copy_rows(rows, ids, count, key_row, ret_keys);
        return;
    }
    unsigned char raw[RAW_BYTES];
    uint64_t positions[RAW_ROWS];
    size_t row_bytes = rows->all.head_dim * dtype_bytes(rows->value_dtype), some = 0;
    size_t most = RAW_BYTES / row_bytes < RAW_ROWS ? RAW_BYTES / row_bytes : RAW_ROWS;
    for (size_t begin = 0; begin < count; begin += some) {
        some = count - begin < most ? count - begin : most;
        copy_rows(rows, ids + begin, some, key_row, raw);
        for (size_t i = 0; i < some; i++) positions[i] = rows->first + ids[begin + i];
        backend_get()->rotate(&(struct rotate_args){
            .rope = rows->all.rope, .rows = raw, .stride_bytes = row_bytes,
            .dtype = rows->value_dtype, .count = some, .positions = positions,
            .out = (float *)ret_keys + begin * rows->all.head_dim });
    }
}

void graph_rows_values(const struct graph_rows *rows, const uint32_t *ids, size_t count,
                       void *ret_values)
{
    copy_rows(rows, ids, count, value_row, ret_values);
}

void graph_rows_key(const struct graph_rows *rows, uint32_t id, float *ret_key)
{
    rows_keys(&rows->all, 0, rows->first + id, 1, ret_key);
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
