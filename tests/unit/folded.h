/* SPDX-License-Identifier: Apache-2.0 */
/* folded.h — a random past with the columns and the fold of a method, and queries over it: what the
 * tests of methods that keep blocks share. Truths are in double and rotate by themselves. */
#ifndef MEMD_TESTS_UNIT_FOLDED_H
#define MEMD_TESTS_UNIT_FOLDED_H

#include <math.h>
#include <string.h>

#include "attention/rope.h"
#include "memory/methods/methods.h"
#include "tests/unit/subset.h"

#define FOLDED_THETA 1e4

struct folded {
    const struct method *method;
    struct past past;
    float *queries;         /* (T, H, D) of the tokens; fp16 holds them exactly */
    unsigned char *records; /* (T) */
    struct columns columns;
    struct rope rope;       /* FOLDED_THETA, halves */
    double options[OPTIONS_MAX];
    struct fold_source source;
    struct fold *fold;
    struct plan plan;
    struct arena arena;     /* of the plan */
    struct reply reply;
};

static inline void folded_views(struct folded *folded)
{
    struct past *past = &folded->past;
    for (size_t i = 0; i < past->kv_heads * past->view_count; i++) {
        struct view *view = &past->views[i];
        if (folded->records == NULL) continue;
        view->columns = folded->records + view->position * folded->columns.token_bytes;
        view->columns_stride_bytes = folded->columns.token_bytes;
    }
    folded->source.rows.views = past->views;
    folded->source.rows.view_count = past->view_count;
}

/* method, options and the first six fields of past are given. */
static inline void folded_make(struct folded *folded, bool rotates, uint64_t *random)
{
    struct past *past = &folded->past;
    past_make(past, random);
    past_cut(past, 90, random);
    struct rope_config config = { .theta = FOLDED_THETA };
    if (rope_init(&config, past->head_dim, &folded->rope, NULL) != 0) abort();
    uint32_t mask = folded->method->columns == NULL ? 0 : folded->method->columns(folded->options);
    columns_init(mask, past->query_heads, past->head_dim, &folded->columns);
    size_t row = past->query_heads * past->head_dim;
    folded->queries = past_alloc(past->tokens * row, sizeof *folded->queries);
    for (size_t i = 0; i < past->tokens * row; i++)
        folded->queries[i] = half_from_fp16(half_to_fp16(2.0F * random_float(random)));
    if (mask != 0) folded->records = past_alloc(past->tokens, folded->columns.token_bytes);
    for (size_t t = 0; mask != 0 && t < past->tokens; t++)
        half_store(folded->queries + t * row, row, DTYPE_FP16,
                   folded->records + t * folded->columns.token_bytes);
    folded->source = (struct fold_source){
        .rows = { .head_dim = past->head_dim, .rope = rotates ? &folded->rope : NULL },
        .kv_heads = past->kv_heads, .query_heads = past->query_heads, .head_dim = past->head_dim,
        .scale = 1.0F / sqrtf((float)past->head_dim), .columns = &folded->columns,
        .options = folded->options, .layers = 1 };
    folded_views(folded);
    arena_init(&folded->arena, (size_t)64 << 20);
    if (plan_init(&folded->plan, &folded->arena, NULL) != 0) abort();
    reply_init(&folded->reply, past);
}

/* From nothing, `step` tokens at a time. */
static inline void folded_fold(struct folded *folded, uint64_t step)
{
    const struct fold_type *type = folded->method->fold;
    type->free(folded->fold);
    if (type->open(&folded->source, &folded->fold, NULL) != 0) abort();
    uint64_t tokens = folded->past.tokens;
    for (uint64_t at = 0; at < tokens;) {
        at = tokens - at < step ? tokens : at + step;
        uint64_t end = type->reach(folded->options, at);
        if (end > at) abort();
        if (type->advance(folded->fold, &folded->source, end, NULL) != 0) abort();
        if (folded->fold->tokens != end) abort();
    }
}

static inline void folded_fini(struct folded *folded)
{
    folded->method->fold->free(folded->fold);
    reply_fini(&folded->reply);
    arena_fini(&folded->arena);
    free(folded->queries);
    free(folded->records);
    past_free(&folded->past);
}

static inline struct reading folded_reading(const struct folded *folded)
{
    struct reading reading = { .attend = past_args(&folded->past), .fold = folded->fold,
                               .options = folded->options, .columns = folded->columns,
                               .layers = 1, .tokens = folded->past.tokens };
    reading.attend.rope = folded->source.rows.rope;
    return reading;
}

/* Answers and the plan of all queries. */
static inline int folded_ask(struct folded *folded)
{
    struct reading reading = folded_reading(folded);
    struct arena arena;
    struct error err = { 0 };
    folded->plan.run_count = 0;
    reading.plan = &folded->plan;
    arena_init(&arena, (size_t)256 << 20);
    int rc = folded->method->attend(folded->method, &reading, &arena, &folded->reply.answer, &err);
    if (rc != err.code) abort();
    arena_fini(&arena);
    return rc;
}

/* row (D), turned to `position` as memd would if it rotates; UINT64_MAX: not at all. */
static inline void folded_turn(const struct folded *folded, double position, const float *row,
                               double *ret_row)
{
    size_t dim = folded->past.head_dim, half = dim / 2;
    for (size_t d = 0; d < dim; d++) ret_row[d] = (double)row[d];
    if (folded->source.rows.rope == NULL) return;
    for (size_t i = 0; i < half; i++) {
        double angle = position * pow(FOLDED_THETA, -2.0 * (double)i / (double)dim);
        double a = (double)row[i], b = (double)row[i + half];
        ret_row[i] = a * cos(angle) - b * sin(angle);
        ret_row[i + half] = b * cos(angle) + a * sin(angle);
    }
}

static inline const float *folded_key(const struct folded *folded, size_t h, size_t t)
{
    const struct past *past = &folded->past;
    size_t g = h / (past->query_heads / past->kv_heads);
    return past->k + (g * past->tokens + t) * past->head_dim;
}

/* A token that is read, and where its key and the query are. */
struct folded_token {
    uint64_t token;
    double key, query;
};

/* Attention of query i, head h over these tokens: o (D) and the lse. */
static inline double folded_attend(const struct folded *folded, size_t i, size_t h,
                                   const struct folded_token *tokens, size_t count, double *ret_o)
{
    const struct past *past = &folded->past;
    size_t dim = past->head_dim, g = h / (past->query_heads / past->kv_heads);
    const float *row = past->q + (i * past->query_heads + h) * dim;
    double *scores = past_alloc(count, sizeof *scores), *q = past_alloc(dim, sizeof *q);
    double *k = past_alloc(dim, sizeof *k), max = -INFINITY, sum = 0.0;
    for (size_t j = 0; j < count; j++) {
        folded_turn(folded, tokens[j].query, row, q);
        folded_turn(folded, tokens[j].key, folded_key(folded, h, tokens[j].token), k);
        double score = 0.0;
        for (size_t d = 0; d < dim; d++) score += q[d] * k[d];
        scores[j] = score / sqrt((double)dim);
        max = fmax(max, scores[j]);
    }
    for (size_t d = 0; d < dim; d++) ret_o[d] = 0.0;
    for (size_t j = 0; j < count; j++) {
        double weight = exp(scores[j] - max);
        const float *v = past->v + (g * past->tokens + tokens[j].token) * dim;
        for (size_t d = 0; d < dim; d++) ret_o[d] += weight * (double)v[d];
        sum += weight;
    }
    for (size_t d = 0; count > 0 && d < dim; d++) ret_o[d] /= sum;
    free(scores);
    free(q);
    free(k);
    return count > 0 ? max + log(sum) : -INFINITY;
}

/* Does the answer equal attention over these tokens, and name them in the plan? Under a rotation
 * places are compared, too. */
static inline bool folded_equals(const struct folded *folded, size_t i, size_t h,
                                 const struct folded_token *tokens, size_t count)
{
    const struct past *past = &folded->past;
    double *o = past_alloc(past->head_dim, sizeof *o), worst = 0.0;
    double lse = folded_attend(folded, i, h, tokens, count, o);
    size_t row = i * past->query_heads + h, found = 0, read = 0;
    double got = (double)folded->reply.answer.partial.lse[row];
    const float *answer = folded->reply.answer.partial.o + row * past->head_dim;
    for (size_t d = 0; d < past->head_dim; d++)
        worst = fmax(worst, fabs(o[d] - (double)answer[d]));
    free(o);
    for (size_t r = 0; r < folded->plan.run_count; r++) {
        const struct plan_run *run = &folded->plan.runs[r];
        if (run->query != i || h < run->head || h >= run->head + run->heads) continue;
        read += run->count;
        for (size_t j = 0; j < count; j++) {
            if (tokens[j].token - run->first >= run->count) continue;
            double offset = (double)(tokens[j].token - run->first);
            double key = (double)run->placed + (run->count == 1 ? 0.0 : offset);
            found += folded->source.rows.rope == NULL ||
                     (key == tokens[j].key && (double)run->query_placed == tokens[j].query);
        }
    }
    bool same = (lse == -INFINITY ? got == lse : fabs(lse - got) < 2e-5) && worst < 2e-5 &&
                found == count && read == count;
    if (!same)
        fprintf(stderr, "query %zu head %zu: lse %.9g, expected %.9g; o differs by %.3g; %zu read, "
                "%zu of %zu where they belong\n", i, h, got, lse, worst, read, found, count);
    return same;
}

#endif
