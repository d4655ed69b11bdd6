/* SPDX-License-Identifier: Apache-2.0 */
/* rows.c — position → view by a guess and a short walk (sealed segments all have the size of the
 * first view, only the tail behind them is cut differently), then copies of runs. */
#include "index/rows.h"

#include <assert.h>
#include <string.h>

#include "attention/backend.h"
#include "index/columns.h"

uint64_t rows_tokens(const struct rows *rows)
{
    if (rows->view_count == 0) return 0;
    const struct view *last = &rows->views[rows->view_count - 1];
    return last->position + last->tokens;
}

const struct view *rows_view(const struct rows *rows, size_t g, uint64_t position)
{
    const struct view *views = rows->views + g * rows->view_count;
    assert(position < rows_tokens(rows));
    size_t at = (size_t)(position / views[0].tokens);
    if (at >= rows->view_count) at = rows->view_count - 1;
    while (views[at].position > position) at--;
    while (position - views[at].position >= views[at].tokens) at++;
    return &views[at];
}

/* Rows of `view` from `position` on, `count` at most. */
static size_t here(const struct view *view, uint64_t position, size_t count)
{
    uint64_t left = view->position + view->tokens - position;
    return left < count ? (size_t)left : count;
}

void rows_keys(const struct rows *rows, size_t g, uint64_t begin, size_t count, float *ret_keys)
{
    for (size_t done = 0, some = 0; done < count; done += some) {
        const struct view *view = rows_view(rows, g, begin + done);
        size_t row = (size_t)(begin + done - view->position);
        some = here(view, begin + done, count - done);
        backend_get()->rotate(&(struct rotate_args){
            .rope = rows->rope, .head_dim = rows->head_dim, .dtype = view->dtype, .count = some,
            .rows = (const unsigned char *)view->k + row * view->k_stride_bytes,
            .stride_bytes = view->k_stride_bytes, .position = begin + done,
            .out = ret_keys + done * rows->head_dim });
    }
}

void rows_values(const struct rows *rows, size_t g, uint64_t begin, size_t count,
                 float *ret_values)
{
    for (size_t done = 0, some = 0; done < count; done += some) {
        const struct view *view = rows_view(rows, g, begin + done);
        size_t row = (size_t)(begin + done - view->position);
        some = here(view, begin + done, count - done);
        backend_get()->rotate(&(struct rotate_args){
            .head_dim = rows->head_dim, .dtype = view->dtype, .count = some,
            .rows = (const unsigned char *)view->v + row * view->v_stride_bytes,
            .stride_bytes = view->v_stride_bytes, .out = ret_values + done * rows->head_dim });
    }
}

const unsigned char *rows_columns(const struct rows *rows, uint64_t position)
{
    const struct view *view = rows_view(rows, 0, position);
    assert(view->columns != NULL);
    return view->columns + (size_t)(position - view->position) * view->columns_stride_bytes;
}

void rows_queries(const struct rows *rows, const struct columns *columns, size_t h, uint64_t begin,
                  size_t count, uint16_t *ret_queries)
{
    size_t dim = rows->head_dim;
    for (size_t i = 0; i < count; i++)
        memcpy(ret_queries + i * dim,
               columns_query(columns, rows_columns(rows, begin + i)) + h * dim,
               dim * sizeof *ret_queries);
}
