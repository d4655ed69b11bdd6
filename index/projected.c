/* SPDX-License-Identifier: Apache-2.0 */
/* projected.c — the score kernel multiplies in both directions: projecting a key is scoring it
 * against the components, and ranking keys is scoring them, short as they are, against a query. */
#include "index/projected.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/pca.h"

enum { PIECE_TOKENS = 1024, TILE_FLOATS = 8192, WIDTH_STEP = 8 };
#define FP16_MOST 65504.0F

int projected_open(const struct fold_type *type, const struct fold_source *source,
                   struct fold **ret_fold, struct error *err)
{
    struct projected *projected = calloc(1, sizeof *projected);
    if (projected == NULL) return error_set(err, MEMD_ENOMEM, "no memory for projected keys");
    projected->base = (struct fold){ .type = type, .bytes = sizeof *projected };
    projected->heads = source->kv_heads;
    projected->head_dim = source->head_dim;
    *ret_fold = &projected->base;
    return 0;
}

void projected_free(struct fold *fold)
{
    if (fold == NULL) return;
    struct projected *projected = (struct projected *)(void *)fold;
    grown_fini(&projected->keys);
    free(projected->basis);
    free(projected);
}

static void count_bytes(struct projected *projected)
{
    size_t basis = projected->heads * projected->width * projected->head_dim * sizeof(float);
    projected->base.bytes = sizeof *projected + basis + grown_bytes(&projected->keys);
}

/* Room for a basis of `components`, zeroed. */
static int make_basis(struct projected *projected, size_t components, struct error *err)
{
    assert(projected->width == 0 && components >= 1 && components <= projected->head_dim);
    size_t width = (components + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP;
    size_t bytes = projected->heads * width * projected->head_dim * sizeof(float);
    float *basis = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (basis == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a basis of %zu", bytes);
    memset(basis, 0, bytes);
    projected->basis = basis;
    projected->components = components;
    projected->width = width;
    return 0;
}

/* variances (G, D), descending */
static size_t count_components(const struct projected *projected, const double *variances,
                               const struct projected_wish *wish)
{
    size_t most = wish->components, dim = projected->head_dim;
    if (most > 0) return most < dim ? most : dim;
    for (size_t g = 0; g < projected->heads; g++) {
        size_t count = pca_count(variances + g * dim, dim, wish->share);
        if (count > most) most = count;
    }
    return most;
}

int projected_take(struct projected *projected, const struct tensor *basis,
                   const struct tensor *variances, const struct projected_wish *wish,
                   struct error *err)
{
    size_t heads = projected->heads, dim = projected->head_dim;
    assert(basis->dtype == DTYPE_FP32 && tensor_elements(basis) == heads * dim * dim);
    if (wish->components == 0 && variances == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "a share of the variance is wanted, and no "
                         "variances were uploaded with the basis");
    CLEANUP(free_ptr) double *values = malloc(heads * dim * sizeof *values);
    if (values == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu variances", heads);
    const float *given = variances == NULL ? NULL : variances->data, *p = basis->data;
    for (size_t i = 0; given != NULL && i < heads * dim; i++) values[i] = (double)given[i];
    int rc = make_basis(projected, count_components(projected, values, wish), err);
    if (rc < 0) return rc;
    for (size_t g = 0; g < heads; g++)
        for (size_t c = 0; c < projected->components; c++)
            for (size_t d = 0; d < dim; d++)
                projected->basis[(g * projected->width + c) * dim + d] = p[(g * dim + d) * dim + c];
    return 0;
}

/* ---- principal components ---- */

struct calibration {
    const struct fold_source *source;
    struct rows rows;
    uint64_t tokens;
    double *moments; /* (G, D, D), then components as rows */
    double *values;  /* (G, D) */
    double *scratch; /* (G, D (D + 3)) */
    atomic_int stopped;
};

static bool asked_to_stop(const struct fold_source *source, atomic_int *stopped)
{
    if (atomic_load(stopped) != 0) return true;
    int code = source->stop == NULL ? 0 : source->stop(source->stop_arg);
    if (code != 0) atomic_store(stopped, code);
    return code != 0;
}

static int stopped_with(atomic_int *stopped, struct error *err)
{
    int code = atomic_load(stopped);
    if (code == 0) return 0;
    return error_set(err, code, "%s while keys were projected", error_text(code));
}

static void calibrate_head(void *arg, size_t g)
{
    struct calibration *work = arg;
    _Alignas(64) float keys[TILE_FLOATS];
    size_t dim = work->rows.head_dim, step = TILE_FLOATS / dim, some = 0;
    double *moments = work->moments + g * dim * dim;
    for (uint64_t at = 0; at < work->tokens; at += some) {
        if (asked_to_stop(work->source, &work->stopped)) return;
        some = work->tokens - at < step ? (size_t)(work->tokens - at) : step;
        rows_keys(&work->rows, g, at, some, keys);
        pca_add(keys, some, dim, moments);
    }
    pca_solve(moments, dim, work->values + g * dim, work->scratch + g * dim * (dim + 3));
}

static struct rows rows_of(const struct fold_source *source, bool unrotated)
{
    struct rows rows = source->rows;
    if (unrotated) rows.rope = NULL;
    return rows;
}

int projected_calibrate(struct projected *projected, const struct fold_source *source,
                        bool unrotated, uint64_t tokens, const struct projected_wish *wish,
                        struct error *err)
{
    size_t heads = projected->heads, dim = projected->head_dim, square = dim * dim;
    assert(tokens >= 1 && tokens <= rows_tokens(&source->rows));
    struct calibration work = { .source = source, .rows = rows_of(source, unrotated),
                                .tokens = tokens };
    CLEANUP(free_ptr) double *memory = calloc(heads * (2 * square + 4 * dim), sizeof *memory);
    if (memory == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for components of %zu dimensions", dim);
    work.moments = memory;
    work.values = memory + heads * square;
    work.scratch = work.values + heads * dim;
    pool_for(source->pool, heads, calibrate_head, &work);
    int rc = stopped_with(&work.stopped, err);
    if (rc == 0) rc = make_basis(projected, count_components(projected, work.values, wish), err);
    if (rc < 0) return rc;
    for (size_t g = 0; g < heads; g++)
        for (size_t i = 0; i < projected->components * dim; i++)
            projected->basis[g * projected->width * dim + i] = (float)work.moments[g * square + i];
    return 0;
}

/* ---- the fold ---- */

struct projecting {
    const struct projected *projected;
    const struct fold_source *source;
    struct rows rows;
    uint64_t begin, end;
    size_t pieces; /* of a head */
    atomic_int stopped;
};

static const float *basis_of(const struct projected *projected, size_t head)
{
    return projected->basis + head * projected->width * projected->head_dim;
}

/* Tokens begin … begin+count-1 of a head, all of one chunk; count ≤ what a tile holds. */
static void project(const struct projecting *work, size_t head, uint64_t begin, size_t count,
                    void *ret_rows)
{
    const struct projected *projected = work->projected;
    _Alignas(64) float keys[TILE_FLOATS], scores[TILE_FLOATS], turned[TILE_FLOATS];
    size_t width = projected->width;
    rows_keys(&work->rows, head, begin, count, keys);
    backend_get()->score(&(struct score_args){
        .q = basis_of(projected, head), .queries = width, .head_dim = projected->head_dim,
        .k = keys, .k_stride_bytes = projected->head_dim * sizeof *keys, .tokens = count,
        .dtype = DTYPE_FP32, .scores = scores });
    bool half = projected->dtype == DTYPE_FP16;
    for (size_t t = 0; t < count; t++)
        for (size_t c = 0; c < width; c++) {
            float value = scores[c * count + t];
            turned[t * width + c] = half ? fmaxf(-FP16_MOST, fminf(value, FP16_MOST)) : value;
        }
    half_store(turned, count * width, projected->dtype, ret_rows);
}

/* idx = head * pieces + piece */
static void project_piece(void *arg, size_t idx)
{
    struct projecting *work = arg;
    const struct projected *projected = work->projected;
    size_t head = idx / work->pieces, step = TILE_FLOATS / projected->head_dim, some = 0;
    uint64_t at = work->begin + idx % work->pieces * PIECE_TOKENS;
    uint64_t end = work->end - at < PIECE_TOKENS ? work->end : at + PIECE_TOKENS;
    for (; at < end && !asked_to_stop(work->source, &work->stopped); at += some) {
        size_t most = end - at < step ? (size_t)(end - at) : step;
        void *rows = grown_rows(&projected->keys, head, at, most, &some);
        project(work, head, at, some, rows);
    }
}

/* No token is in the fold: those that the basis is of may be gone when the next attempt comes. */
static void forget_basis(struct projected *projected)
{
    grown_fini(&projected->keys);
    free(projected->basis);
    projected->keys = (struct grown){ 0 };
    projected->basis = NULL;
    projected->width = projected->components = 0;
    count_bytes(projected);
}

int projected_advance(struct projected *projected, const struct fold_source *source, bool unrotated,
                      uint64_t end, struct error *err)
{
    struct fold *fold = &projected->base;
    assert(projected->width > 0 && end >= fold->tokens && end <= rows_tokens(&source->rows));
    if (end == fold->tokens) return 0;
    if (projected->keys.row_bytes == 0) {
        bool whole = source->rows.views[0].dtype == DTYPE_FP32;
        projected->dtype = whole ? DTYPE_FP32 : DTYPE_FP16;
        grown_init(&projected->keys, projected->heads,
                   projected->width * dtype_bytes(projected->dtype));
    }
    int rc = grown_reserve(&projected->keys, end, err);
    count_bytes(projected);
    if (rc < 0 && fold->tokens == 0) forget_basis(projected);
    if (rc < 0) return rc;
    struct projecting work = { .projected = projected, .source = source, .begin = fold->tokens,
                               .rows = rows_of(source, unrotated), .end = end };
    work.pieces = (size_t)((end - fold->tokens + PIECE_TOKENS - 1) / PIECE_TOKENS);
    pool_for(source->pool, projected->heads * work.pieces, project_piece, &work);
    rc = stopped_with(&work.stopped, err);
    if (rc == 0) fold->tokens = end;
    if (fold->tokens == 0) forget_basis(projected);
    return rc;
}

void projected_query(const struct projected *projected, size_t head, const float *q, float *ret_q)
{
    backend_get()->score(&(struct score_args){
        .q = q, .queries = 1, .head_dim = projected->head_dim, .k = basis_of(projected, head),
        .k_stride_bytes = projected->head_dim * sizeof *q, .tokens = projected->width,
        .dtype = DTYPE_FP32, .scores = ret_q });
}

void projected_scores(const struct projected *projected, size_t head, const float *q,
                      uint64_t begin, size_t count, float *ret_scores)
{
    assert(begin + count <= projected->base.tokens);
    for (size_t done = 0, some = 0; done < count; done += some) {
        const void *keys = grown_rows(&projected->keys, head, begin + done, count - done, &some);
        backend_get()->score(&(struct score_args){
            .q = q, .queries = 1, .head_dim = projected->width, .k = keys,
            .k_stride_bytes = projected->keys.row_bytes, .tokens = some,
            .dtype = projected->dtype, .scores = ret_scores + done });
    }
}
