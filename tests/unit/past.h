/* SPDX-License-Identifier: Apache-2.0 */
/* past.h — a random stored past, cut into views, for the tests of attend and exact. */
#ifndef MEMD_TESTS_UNIT_PAST_H
#define MEMD_TESTS_UNIT_PAST_H

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "attention/attend.h"
#include "attention/view.h"
#include "base/error.h"
#include "base/half.h"
#include "tests/random.h"
#include "tests/ranked.h"

struct past {
    size_t query_heads, kv_heads, head_dim, tokens, queries;
    uint32_t dtype;
    float *k, *v;         /* (G, T, D) as stored, in fp32 */
    unsigned char *k_rows, *v_rows; /* the same in dtype */
    float *q;             /* (n, H, D) */
    uint64_t *positions, *limits; /* (n) */
    struct view *views;   /* (G, view_count) */
    size_t view_count;
};

static inline void *past_alloc(size_t count, size_t size)
{
    void *memory = calloc(count + 1, size);
    if (memory == NULL) abort();
    return memory;
}

static inline void past_fill(const struct past *past, float *values, uint64_t *random)
{
    size_t count = past->kv_heads * past->tokens * past->head_dim;
    for (size_t i = 0; i < count; i++) values[i] = 2.0F * random_float(random);
}

/* k and v, which were changed, become what the dtype holds of them, in the rows too. */
static inline void past_round(const struct past *past)
{
    size_t count = past->kv_heads * past->tokens * past->head_dim;
    half_store(past->k, count, past->dtype, past->k_rows);
    half_load(past->k_rows, past->dtype, count, past->k);
    half_store(past->v, count, past->dtype, past->v_rows);
    half_load(past->v_rows, past->dtype, count, past->v);
}

static inline void past_free(struct past *past)
{
    free(past->k);
    free(past->v);
    free(past->k_rows);
    free(past->v_rows);
    free(past->q);
    free(past->positions);
    free(past->limits);
    free(past->views);
}

/* Cut all tokens anew into views of 1 … longest tokens. */
static inline void past_cut(struct past *past, size_t longest, uint64_t *random)
{
    size_t row_bytes = past->head_dim * dtype_bytes(past->dtype), count = 0;
    free(past->views);
    past->views = past_alloc(past->kv_heads * past->tokens, sizeof *past->views);
    for (size_t at = 0; at < past->tokens; count++) {
        size_t left = past->tokens - at;
        size_t tokens = longest >= past->tokens ? left : (size_t)random_below(random, longest) + 1;
        if (tokens > left) tokens = left;
        past->views[count] = (struct view){ .k = past->k_rows + at * row_bytes,
                                            .v = past->v_rows + at * row_bytes,
                                            .k_stride_bytes = row_bytes,
                                            .v_stride_bytes = row_bytes, .tokens = tokens,
                                            .position = at, .dtype = past->dtype };
        at += tokens;
    }
    past->view_count = count;
    for (size_t i = count; i < past->kv_heads * count; i++) {
        size_t offset = i / count * past->tokens * row_bytes;
        past->views[i] = past->views[i % count];
        past->views[i].k = (const unsigned char *)past->views[i].k + offset;
        past->views[i].v = (const unsigned char *)past->views[i].v + offset;
    }
}

/* The fields query_heads … dtype are given; limits are random, that of query 0 is all. */
static inline void past_make(struct past *past, uint64_t *random)
{
    size_t kv_count = past->kv_heads * past->tokens * past->head_dim;
    size_t q_count = past->queries * past->query_heads * past->head_dim;
    past->k = past_alloc(kv_count, sizeof *past->k);
    past->v = past_alloc(kv_count, sizeof *past->v);
    past->k_rows = past_alloc(kv_count, sizeof(float));
    past->v_rows = past_alloc(kv_count, sizeof(float));
    past->q = past_alloc(q_count, sizeof *past->q);
    past->positions = past_alloc(past->queries, sizeof *past->positions);
    past->limits = past_alloc(past->queries, sizeof *past->limits);
    past_fill(past, past->k, random);
    past_fill(past, past->v, random);
    past_round(past);
    for (size_t i = 0; i < q_count; i++) past->q[i] = 2.0F * random_float(random);
    for (size_t i = 0; i < past->queries; i++) {
        past->positions[i] = past->tokens + i;
        past->limits[i] = i == 0 ? past->tokens : random_below(random, past->tokens + 1);
    }
    past->views = NULL;
    past_cut(past, past->tokens, random);
}

static inline struct attend_args past_args(const struct past *past)
{
    return (struct attend_args){
        .q = { .data = past->q, .dtype = DTYPE_FP32, .dims = 3,
               .shape = { past->queries, past->query_heads, past->head_dim } },
        .positions = past->positions, .limits = past->limits,
        .scale = 1.0F / sqrtf((float)past->head_dim), .views = past->views,
        .kv_heads = past->kv_heads, .view_count = past->view_count };
}

/* scale * q · k of query i, head h, token t, in double */
static inline double past_score(const struct past *past, size_t i, size_t h, size_t t)
{
    size_t g = h / (past->query_heads / past->kv_heads);
    const float *q = past->q + (i * past->query_heads + h) * past->head_dim;
    const float *k = past->k + (g * past->tokens + t) * past->head_dim;
    double sum = 0.0;
    for (size_t d = 0; d < past->head_dim; d++) sum += (double)q[d] * (double)k[d];
    return sum / sqrt((double)past->head_dim);
}

/* For `stop`: whoever asks is to give up. */
static inline int past_refuse(void *arg)
{
    (void)arg;
    return MEMD_ECANCELLED;
}

#endif
