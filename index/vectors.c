/* SPDX-License-Identifier: Apache-2.0 */
/* vectors.c — the fold over states, and states by position; vectors_search.c looks for them. */
#include "index/vectors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/error.h"
#include "base/tensor.h"
#include "index/index.h"
#include "proto/limits.h"

enum { TILE = 128 }; /* products at a time */

/* ---- the fold ---- */

int vectors_new(const struct fold_type *type, size_t width, size_t sketch,
                struct vectors **ret_vectors, struct error *err)
{
    struct vectors *vectors = calloc(1, sizeof *vectors);
    if (vectors == NULL) return error_set(err, MEMD_ENOMEM, "no memory for squares of states");
    vectors->base = (struct fold){ .type = type, .bytes = sizeof *vectors };
    grown_init(&vectors->squares, 1, sizeof(float));
    sketches_init(&vectors->sketches, width, sketch);
    *ret_vectors = vectors;
    return 0;
}

void vectors_free(struct fold *fold)
{
    if (fold == NULL) return;
    struct vectors *vectors = (struct vectors *)(void *)fold;
    grown_fini(&vectors->squares);
    sketches_fini(&vectors->sketches);
    free(vectors);
}

static const unsigned char *row_of(const void *rows, size_t stride_bytes, size_t row)
{
    return (const unsigned char *)rows + row * stride_bytes;
}

/* (W) fp32 of one state. */
static void load(const struct rows *rows, uint64_t position, float *ret_state)
{
    const struct view *view = rows_view(rows, 0, position);
    size_t row = (size_t)(position - view->position), half = rows->head_dim;
    backend_widen(row_of(view->k, view->k_stride_bytes, row), view->dtype, 1, half, ret_state);
    backend_widen(row_of(view->v, view->v_stride_bytes, row), view->dtype, 1, half,
                  ret_state + half);
}

static float square_of(const float *state, size_t width)
{
    double sum = 0.0;
    for (size_t i = 0; i < width; i++) sum += (double)state[i] * (double)state[i];
    return (float)sum;
}

int vectors_advance(struct vectors *vectors, const struct fold_source *source, uint64_t end,
                    struct error *err)
{
    float state[2 * LIMIT_HEAD_DIM];
    uint64_t *tokens = &vectors->base.tokens;
    int rc = grown_reserve(&vectors->squares, end, err);
    while (rc == 0 && *tokens < end) {
        size_t some = 0;
        float *squares = grown_rows(&vectors->squares, 0, *tokens, (size_t)(end - *tokens), &some);
        for (size_t i = 0; i < some; i++) {
            load(&source->rows, *tokens + i, state);
            squares[i] = square_of(state, 2 * source->rows.head_dim);
        }
        rc = sketches_advance(&vectors->sketches, &source->rows, &vectors->squares, *tokens + some,
                              err);
        if (rc < 0) break;
        *tokens += some;
        rc = source->stop == NULL ? 0 : source->stop(source->stop_arg);
        if (rc != 0) error_set(err, rc, "%s while states are folded", error_text(rc));
    }
    vectors->base.bytes = sizeof *vectors + grown_bytes(&vectors->squares) +
                          sketches_bytes(&vectors->sketches);
    return rc;
}

/* ---- states ---- */

uint64_t vectors_position(uint64_t slots, uint64_t written, uint64_t slot)
{
    assert(slot < slots);
    if (slot >= written) return INDEX_NONE;
    return slot + (written - 1 - slot) / slots * slots;
}

void vectors_load(const struct rows *rows, const uint64_t *positions, size_t count,
                  float *ret_states)
{
    size_t width = 2 * rows->head_dim;
    for (size_t i = 0; i < count; i++) {
        if (positions[i] == INDEX_NONE)
            memset(ret_states + i * width, 0, width * sizeof(float));
        else
            load(rows, positions[i], ret_states + i * width);
    }
}

/* Of one query, whose numbers are more than the kernel takes at once. */
static void products_in_parts(const float *q, const float *rows, size_t count, size_t width,
                              float *ret_products)
{
    float some[TILE];
    memset(ret_products, 0, count * sizeof *ret_products);
    for (size_t from = 0; from < width; from += LIMIT_HEAD_DIM) {
        size_t dims = width - from < LIMIT_HEAD_DIM ? width - from : LIMIT_HEAD_DIM;
        for (size_t begin = 0; begin < count; begin += TILE) {
            size_t part = count - begin < TILE ? count - begin : TILE;
            backend_get()->score(&(struct score_args){ .q = q + from,
                                                       .queries = 1,
                                                       .head_dim = dims,
                                                       .k = rows + begin * width + from,
                                                       .k_stride_bytes = width * sizeof *rows,
                                                       .tokens = part,
                                                       .dtype = DTYPE_FP32,
                                                       .scores = some });
            for (size_t i = 0; i < part; i++) ret_products[begin + i] += some[i];
        }
    }
}

void vectors_products(const float *q, size_t queries, const float *rows, size_t count, size_t width,
                      float *ret_products)
{
    if (width <= LIMIT_HEAD_DIM) {
        backend_get()->score(&(struct score_args){ .q = q,
                                                   .queries = queries,
                                                   .head_dim = width,
                                                   .k = rows,
                                                   .k_stride_bytes = width * sizeof *rows,
                                                   .tokens = count,
                                                   .dtype = DTYPE_FP32,
                                                   .scores = ret_products });
        return;
    }
    for (size_t i = 0; i < queries; i++)
        products_in_parts(q + i * width, rows, count, width, ret_products + i * count);
}
