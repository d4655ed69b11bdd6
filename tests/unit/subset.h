/* SPDX-License-Identifier: Apache-2.0 */
/* subset.h — what an index answered, and attention over a subset of a random past in double: the
 * truth of every index that picks rows. */
#ifndef MEMD_TESTS_UNIT_SUBSET_H
#define MEMD_TESTS_UNIT_SUBSET_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/error.h"
#include "index/layer_index.h"
#include "index/plan.h"
#include "tests/unit/past.h"

/* An answer with all its arrays. */
struct reply {
    struct index_answer answer;
    struct index_quality quality;
};

static inline void reply_init(struct reply *reply, const struct past *past)
{
    size_t rows = past->queries * past->query_heads;
    memset(reply, 0, sizeof *reply);
    reply->answer.partial = (struct partial){ .o = past_alloc(rows * past->head_dim, sizeof(float)),
                                              .lse = past_alloc(rows, sizeof(float)), .rows = rows,
                                              .head_dim = past->head_dim };
    reply->quality.predicted_error = past_alloc(rows, sizeof(float));
    reply->quality.mass = past_alloc(rows * INDEX_LEVELS, sizeof(float));
    reply->quality.limited = past_alloc(rows, sizeof(bool));
    memset(reply->quality.limited, 1, rows * sizeof(bool));
    reply->answer.quality = &reply->quality;
}

static inline void reply_fini(struct reply *reply)
{
    free(reply->answer.partial.o);
    free(reply->answer.partial.lse);
    free(reply->quality.predicted_error);
    free(reply->quality.mass);
    free(reply->quality.limited);
}

/* Ask an index; the code. `reply` is initialised. */
static inline int reply_ask(const struct layer_index_type *type, const struct layer_index *version,
                            const struct index_args *args, const double *options,
                            struct reply *reply)
{
    struct arena arena;
    arena_init(&arena, (size_t)256 << 20);
    struct error err = { 0 };
    int rc = type->attend(version, args, options, &arena, &reply->answer, &err);
    if (rc != 0 && rc != err.code) abort();
    arena_fini(&arena);
    return rc;
}

/* Attention of query i, head h over the tokens with chosen[t]: o (D) and the lse. */
static inline double subset_truth(const struct past *past, size_t i, size_t h, const bool *chosen,
                                  double *ret_o)
{
    size_t g = h / (past->query_heads / past->kv_heads);
    double max = -INFINITY, sum = 0.0;
    for (size_t d = 0; d < past->head_dim; d++) ret_o[d] = 0.0;
    for (size_t t = 0; t < past->tokens; t++)
        if (chosen[t]) max = fmax(max, past_score(past, i, h, t));
    for (size_t t = 0; t < past->tokens; t++) {
        if (!chosen[t]) continue;
        double weight = exp(past_score(past, i, h, t) - max);
        const float *v = past->v + (g * past->tokens + t) * past->head_dim;
        for (size_t d = 0; d < past->head_dim; d++) ret_o[d] += weight * (double)v[d];
        sum += weight;
    }
    for (size_t d = 0; sum > 0.0 && d < past->head_dim; d++) ret_o[d] /= sum;
    return sum > 0.0 ? max + log(sum) : -INFINITY;
}

/* Does the reply equal attention over the chosen tokens? */
static inline bool subset_equals(const struct past *past, const struct reply *reply, size_t i,
                                 size_t h, const bool *chosen)
{
    double *o = past_alloc(past->head_dim, sizeof *o), worst = 0.0;
    double lse = subset_truth(past, i, h, chosen, o);
    size_t row = i * past->query_heads + h;
    double got = (double)reply->answer.partial.lse[row];
    const float *answer = reply->answer.partial.o + row * past->head_dim;
    for (size_t d = 0; d < past->head_dim; d++)
        worst = fmax(worst, fabs(o[d] - (double)answer[d]));
    free(o);
    bool same = (lse == -INFINITY ? got == lse : fabs(lse - got) < 2e-5) && worst < 2e-5;
    if (!same)
        fprintf(stderr, "query %zu head %zu: lse %.9g, expected %.9g; o differs by %.3g\n", i, h,
                got, lse, worst);
    return same;
}

/* Which tokens head h of query i read, by the plan; none may be told twice. */
static inline void subset_of_plan(const struct plan *plan, size_t i, size_t h, size_t tokens,
                                  bool *ret_read)
{
    assert_false(plan->cut);
    memset(ret_read, 0, tokens * sizeof *ret_read);
    for (size_t r = 0; r < plan->run_count; r++) {
        const struct plan_run *run = &plan->runs[r];
        if (run->query != i || h < run->head || h >= run->head + run->heads) continue;
        assert_true(run->first + run->count <= tokens);
        for (size_t t = run->first; t < run->first + run->count; t++) {
            assert_false(ret_read[t]);
            ret_read[t] = true;
        }
    }
}

#endif
