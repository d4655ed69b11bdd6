/* SPDX-License-Identifier: Apache-2.0 */
/* rows.c — position → view by a guess and a short walk (sealed segments all have the size of the
 * first view, only the tail behind them is cut differently), then copies of runs. */
#include "index/rows.h"

#include <assert.h>
#include <string.h>

#include "attention/backend.h"
#include "base/half.h"
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

void rows_rotate(const struct rotate_args *args, size_t head_dim)
{
    const unsigned char *from = args->rows;
    if (args->rope != NULL) backend_get()->rotate(args);
    for (size_t i = 0; args->rope == NULL && i < args->count; i++)
        half_load(from + i * args->stride_bytes, args->dtype, head_dim, args->out + i * head_dim);
}

void rows_keys(const struct rows *rows, size_t g, uint64_t begin, size_t count, float *ret_keys)
{
    while (count > 0) {
        const struct view *view = rows_view(rows, g, begin);
        size_t some = here(view, begin, count);
        const unsigned char *from = view->k;
        from += (size_t)(begin - view->position) * view->k_stride_bytes;
        rows_rotate(&(struct rotate_args){ .rope = rows->rope, .rows = from,
                                           .stride_bytes = view->k_stride_bytes,
                                           .dtype = view->dtype, .count = some,
                                           .position = begin, .out = ret_keys },
                    rows->head_dim);
        ret_keys += some * rows->head_dim;
        begin += some;
        count -= some;
    }
}

void rows_values(const struct rows *rows, size_t g, uint64_t begin, size_t count,
                 float *ret_values)
{
    for (size_t i = 0; i < count; i++) {
        const struct view *view = rows_view(rows, g, begin + i);
        const unsigned char *from = view->v;
        from += (size_t)(begin + i - view->position) * view->v_stride_bytes;
        half_load(from, view->dtype, rows->head_dim, ret_values + i * rows->head_dim);
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
