/* SPDX-License-Identifier: Apache-2.0 */
/* asked_planes.h — questions to progressive attention over a coded past (coded.h), and how right
 * its answers are: against a softmax in double over the same rows. */
#ifndef MEMD_TESTS_UNIT_ASKED_PLANES_H
#define MEMD_TESTS_UNIT_ASKED_PLANES_H

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
#include "base/pool.h"
#include "index/centroid_table.h"
#include "index/progressive.h"
#include "tests/unit/coded.h"

/* An answer with its record, memory of its own. */
struct answer {
    struct partial partial;
    struct index_quality quality;
};

static inline struct answer answer_new(const struct past *past)
{
    size_t rows = past->queries * past->query_heads;
    return (struct answer){
        .partial = { .o = past_alloc(rows * past->head_dim, sizeof(float)),
                     .lse = past_alloc(rows, sizeof(float)), .rows = rows,
                     .head_dim = past->head_dim },
        .quality = { .predicted_error = past_alloc(rows, sizeof(float)),
                     .mass = past_alloc(rows * INDEX_LEVELS, sizeof(float)),
                     .limited = past_alloc(rows, sizeof(bool)) } };
}

static inline void answer_free(struct answer *answer)
{
    free(answer->partial.o);
    free(answer->partial.lse);
    free(answer->quality.predicted_error);
    free(answer->quality.mass);
    free(answer->quality.limited);
}

struct question {
    float target;
    uint64_t max_bytes, exact_below;
    struct pool *pool;
    struct gate *gate;
};

/* Bytes that must not be read before they were asked for: ones until then, in floats NaN. */
struct gate {
    const struct coded *coded;
    unsigned char *k, *v, *lo; /* (G, T, D), (G, T, D), (G, view_count, lo_bytes): the true ones */
    size_t row_bytes, lo_bytes;
    bool refuses_lo;
};

static inline int admit(void *arg, const struct view *view, size_t row, size_t count,
                        unsigned parts)
{
    struct gate *gate = arg;
    const struct past *past = &gate->coded->past;
    size_t bytes = count * view->k_stride_bytes;
    const unsigned char *k = (const unsigned char *)view->k + row * view->k_stride_bytes;
    ptrdiff_t at = k - past->k_rows;
    assert_true(count > 0 && row + count <= view->tokens);
    if ((parts & VIEW_K) != 0) memcpy(past->k_rows + at, gate->k + at, bytes);
    if ((parts & VIEW_V) != 0) memcpy(past->v_rows + at, gate->v + at, bytes);
    return 0;
}

static inline bool admit_lo(void *arg, const struct view *view, size_t place)
{
    struct gate *gate = arg;
    if (gate->refuses_lo) return false;
    size_t i = (size_t)(view - gate->coded->past.views), bytes = gate->coded->past.head_dim;
    memcpy(gate->coded->payloads[2 * i + 1] + place * bytes,
           gate->lo + i * gate->lo_bytes + place * bytes, bytes);
    return true;
}

static inline struct answer ask(const struct coded *coded, const struct question *question)
{
    struct answer answer = answer_new(&coded->past);
    struct arena arena;
    arena_init(&arena, (size_t)1 << 30);
    struct progressive_args args = { .base = { .attend = past_args(&coded->past),
                                               .target_error = question->target,
                                               .max_bytes = question->max_bytes },
                                     .planes = coded->table,
                                     .exact_below = question->exact_below };
    args.base.attend.pool = question->pool;
    args.base.attend.rope = coded->rope;
    args.base.attend.admit = question->gate == NULL ? NULL : admit;
    args.base.attend.admit_arg = question->gate;
    args.admit_lo = question->gate == NULL ? NULL : admit_lo;
    struct index_answer out = { .partial = answer.partial, .quality = &answer.quality };
    assert_int_equal(progressive_attend(&args, &arena, &out, NULL), 0);
    arena_fini(&arena);
    return answer;
}

/* Relative L2 error of row (i, h), and |lse - truth|. */
static inline double error_of(const struct past *past, const struct answer *answer, size_t i,
                              size_t h, double *ret_lse)
{
    size_t visible = (size_t)past->limits[i], head_dim = past->head_dim;
    size_t row = i * past->query_heads + h, g = h / (past->query_heads / past->kv_heads);
    double max = -INFINITY, sum = 0.0, *o = past_alloc(head_dim, sizeof *o);
    double *scores = past_alloc(visible, sizeof *scores);
    for (size_t t = 0; t < visible; t++) {
        scores[t] = past_score(past, i, h, t);
        max = fmax(max, scores[t]);
    }
    for (size_t t = 0; t < visible; t++) {
        double weight = exp(scores[t] - max);
        sum += weight;
        for (size_t d = 0; d < head_dim; d++)
            o[d] += weight * (double)past->v[(g * past->tokens + t) * head_dim + d];
    }
    double wrong = 0.0, right = 0.0;
    for (size_t d = 0; d < head_dim; d++) {
        double truth = visible > 0 ? o[d] / sum : 0.0;
        double e = (double)answer->partial.o[row * head_dim + d] - truth;
        wrong += e * e;
        right += truth * truth;
    }
    double lse = max + log(sum), given = (double)answer->partial.lse[row];
    *ret_lse = visible == 0 && given == -INFINITY ? 0.0 : fabs(given - lse);
    free(o);
    free(scores);
    return visible == 0 ? sqrt(wrong) : sqrt(wrong / (right + 1e-30));
}

struct tally {
    double worst, sum, worst_lse;
    size_t rows;
};

static inline struct tally judge(const struct past *past, const struct answer *answer)
{
    struct tally tally = { 0 };
    for (size_t i = 0; i < past->queries; i++)
        for (size_t h = 0; h < past->query_heads; h++) {
            double lse, e = error_of(past, answer, i, h, &lse);
            tally.worst = fmax(tally.worst, isnan(e) ? INFINITY : e);
            tally.worst_lse = fmax(tally.worst_lse, isnan(lse) ? INFINITY : lse);
            tally.sum += e;
            tally.rows++;
        }
    return tally;
}

static inline void check_mass(const struct past *past, const struct answer *answer)
{
    for (size_t row = 0; row < past->queries * past->query_heads; row++) {
        double sum = 0.0;
        for (size_t level = 0; level < INDEX_LEVELS; level++) {
            float mass = answer->quality.mass[row * INDEX_LEVELS + level];
            if (!(mass >= -1e-5F && mass <= 1.0F + 1e-5F))
                fail_msg("row %zu level %zu: mass %.8f", row, level, (double)mass);
            sum += (double)mass;
        }
        if (past->limits[row / past->query_heads] > 0 && fabs(sum - 1.0) > 1e-4)
            fail_msg("row %zu: mass %.6f", row, sum);
    }
}

/* Centroids of every `step`-th segment side by side. */
static inline struct centroid_table *put_into_table(struct coded *coded, size_t step)
{
    const struct past *past = &coded->past;
    struct centroid_table *table = centroid_table_new(past->head_dim, past->kv_heads);
    assert_non_null(table);
    for (size_t i = 0; i < past->kv_heads * past->view_count; i++) {
        size_t segment = i % past->view_count;
        if (coded->table[i] != NULL && segment % step == 0)
            centroid_table_put(table, i / past->view_count, segment, &coded->planes[i]);
    }
    return table;
}

#endif
