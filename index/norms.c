/* SPDX-License-Identifier: Apache-2.0 */
/* norms.c — one pass over the keys that came, cut into pieces of a head that the pool shares. */
#include "index/norms.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/pool.h"

enum { PIECE_TOKENS = 4096, TILE_FLOATS = 8192, SUMS = 8 };

double norms_length(const float *x, size_t n)
{
    assert(n % SUMS == 0);
    double sums[SUMS] = { 0 }; /* which do not wait for each other */
    for (size_t i = 0; i < n; i += SUMS)
        for (size_t j = 0; j < SUMS; j++) sums[j] += (double)x[i + j] * (double)x[i + j];
    return sqrt((sums[0] + sums[1] + sums[2] + sums[3]) + (sums[4] + sums[5] + sums[6] + sums[7]));
}

void norms_measure(const struct rows *rows, size_t head, uint64_t begin, size_t count,
                   float *ret_lengths)
{
    _Alignas(64) float keys[TILE_FLOATS];
    struct rows stored = *rows;
    stored.rope = NULL;
    size_t dim = rows->head_dim, step = TILE_FLOATS / dim;
    for (size_t done = 0, some = 0; done < count; done += some) {
        some = count - done < step ? count - done : step;
        rows_keys(&stored, head, begin + done, some, keys);
        for (size_t i = 0; i < some; i++)
            ret_lengths[done + i] = (float)norms_length(keys + i * dim, dim);
    }
}

const struct norms *norms_of(const struct fold *fold)
{
    assert(fold->type->advance == norms_fold.advance);
    return (const struct norms *)(const void *)fold;
}

const float *norms_run(const struct norms *norms, size_t head, uint64_t position, size_t most,
                       size_t *ret_count)
{
    assert(position < norms->base.tokens);
    if (most > norms->base.tokens - position) most = (size_t)(norms->base.tokens - position);
    return grown_rows(&norms->grown, head, position, most, ret_count);
}

void norms_cosines(const struct norms *norms, size_t head, uint64_t position, size_t count,
                   double length, float *scores)
{
    assert(position + count <= norms->base.tokens);
    float inverse = length > 0.0 ? (float)(1.0 / length) : 0.0F;
    for (size_t done = 0, some = 0; done < count; done += some) {
        const float *lengths = norms_run(norms, head, position + done, count - done, &some);
        for (size_t i = 0; i < some; i++)
            scores[done + i] = lengths[i] > 0.0F ? scores[done + i] * inverse / lengths[i] : 0.0F;
    }
}

/* ---- the fold ---- */

static uint64_t reach(const double *options, uint64_t tokens)
{
    (void)options;
    return tokens;
}

static int open_norms(const struct fold_source *source, struct fold **ret_fold, struct error *err)
{
    struct norms *norms = calloc(1, sizeof *norms);
    if (norms == NULL) return error_set(err, MEMD_ENOMEM, "no memory for lengths of keys");
    norms->base = (struct fold){ .type = &norms_fold, .bytes = sizeof *norms };
    grown_init(&norms->grown, source->kv_heads, sizeof(float));
    *ret_fold = &norms->base;
    return 0;
}

static void free_norms(struct fold *fold)
{
    if (fold == NULL) return;
    struct norms *norms = (struct norms *)(void *)fold;
    grown_fini(&norms->grown);
    free(norms);
}

struct measuring {
    const struct norms *norms;
    const struct fold_source *source;
    uint64_t begin, end;
    size_t pieces; /* of a head */
    atomic_int stopped;
};

/* idx = head * pieces + piece */
static void measure_piece(void *arg, size_t idx)
{
    struct measuring *work = arg;
    const struct fold_source *source = work->source;
    if (atomic_load(&work->stopped) != 0) return;
    int code = source->stop == NULL ? 0 : source->stop(source->stop_arg);
    if (code != 0) {
        atomic_store(&work->stopped, code);
        return;
    }
    size_t head = idx / work->pieces, some = 0;
    uint64_t at = work->begin + idx % work->pieces * PIECE_TOKENS;
    uint64_t end = work->end - at < PIECE_TOKENS ? work->end : at + PIECE_TOKENS;
    for (; at < end; at += some) {
        float *lengths = grown_rows(&work->norms->grown, head, at, (size_t)(end - at), &some);
        norms_measure(&source->rows, head, at, some, lengths);
    }
}

static int advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err)
{
    struct norms *norms = (struct norms *)(void *)fold;
    assert(end >= fold->tokens && end <= rows_tokens(&source->rows));
    int rc = grown_reserve(&norms->grown, end, err);
    fold->bytes = sizeof *norms + grown_bytes(&norms->grown);
    if (rc < 0) return rc;
    struct measuring work = { .norms = norms, .source = source, .begin = fold->tokens, .end = end };
    work.pieces = (size_t)((end - fold->tokens + PIECE_TOKENS - 1) / PIECE_TOKENS);
    pool_for(source->pool, source->kv_heads * work.pieces, measure_piece, &work);
    int stopped = atomic_load(&work.stopped);
    if (stopped != 0)
        return error_set(err, stopped, "%s while keys were measured", error_text(stopped));
    fold->tokens = end;
    return 0;
}

const struct fold_type norms_fold = { .name = "norms", .reach = reach, .open = open_norms,
                                      .free = free_norms, .advance = advance };
