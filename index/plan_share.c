/* SPDX-License-Identifier: Apache-2.0 */
/* plan_share.c — every run is scored for each of its heads, then divided by the softmax that it was
 * part of. Sums are double: this is a microscope, not a path that anything waits for. */
#include "index/plan_share.h"

#include <math.h>
#include <string.h>

#include "attention/attend.h"
#include "attention/backend.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/plan.h"
#include "index/rows.h"

enum { STEP_ROWS = 64 };

struct sharing {
    struct plan *plan;
    const struct attend_args *args;
    struct rows rows; /* rotates keys where they stand */
    float *q;         /* (D) */
    float *keys;      /* (STEP_ROWS, D) */
    double *run_lse;  /* of every head of every run, in their order */
    double *joint, *separate, *gates; /* (n, H): lse, lse, sum of weights */
    double *gated;    /* (groups) lse */
};

static double add_logs(double a, double b)
{
    double top = fmax(a, b);
    return top == -INFINITY ? top : top + log(exp(a - top) + exp(b - top));
}

static double *fresh(struct arena *arena, size_t count, double value)
{
    double *values = arena_calloc(arena, count, sizeof *values);
    for (size_t i = 0; values != NULL && i < count; i++) values[i] = value;
    return values;
}

static int prepare(struct sharing *sharing, struct arena *arena, struct error *err)
{
    const size_t *shape = sharing->args->q.shape;
    size_t answers = shape[0] * shape[1], lines = 0;
    for (size_t i = 0; i < sharing->plan->run_count; i++) lines += sharing->plan->runs[i].heads;
    sharing->q = arena_calloc(arena, shape[2], sizeof(float));
    sharing->keys = arena_calloc(arena, STEP_ROWS * shape[2], sizeof(float));
    sharing->run_lse = fresh(arena, lines, -INFINITY);
    sharing->joint = fresh(arena, answers, -INFINITY);
    sharing->separate = fresh(arena, answers, -INFINITY);
    sharing->gates = fresh(arena, answers, 0);
    sharing->gated = fresh(arena, sharing->plan->group_count, -INFINITY);
    if (sharing->q != NULL && sharing->keys != NULL && sharing->run_lse != NULL &&
        sharing->joint != NULL && sharing->separate != NULL && sharing->gates != NULL &&
        sharing->gated != NULL)
        return 0;
    return error_set(err, MEMD_ENOMEM, "no memory for the shares of %zu runs",
                     sharing->plan->run_count);
}

static void turn(const struct rope *rope, uint64_t position, float *x)
{
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    if (rope == NULL || position == PLAN_UNPLACED) return;
    rope_angles(rope, position, cos, sin);
    rope_apply(rope, cos, sin, x, 1);
}

static void load_query(const struct sharing *sharing, const struct plan_run *run, size_t head)
{
    const struct tensor *q = &sharing->args->q;
    size_t head_dim = q->shape[2], row = run->query * q->shape[1] + head;
    backend_widen((const unsigned char *)q->data + row * head_dim * dtype_bytes(q->dtype), q->dtype,
                  1, head_dim, sharing->q);
    turn(sharing->args->rope, run->query_placed, sharing->q);
}

/* Rows from `at` of the run, of one view: how many there are now in `keys`. A negative code when
 * they may not be read. */
static int load_keys(const struct sharing *sharing, const struct plan_run *run, size_t g,
                     uint64_t at)
{
    const struct attend_args *args = sharing->args;
    uint64_t first = run->first + at;
    const struct view *view = rows_view(&sharing->rows, g, first);
    uint64_t left = view->position + view->tokens - first;
    if (left > run->count - at) left = run->count - at;
    size_t count = left < STEP_ROWS ? (size_t)left : STEP_ROWS;
    int code = args->stop == NULL ? 0 : args->stop(args->stop_arg);
    if (code == 0 && args->admit != NULL)
        code = args->admit(args->admit_arg, view, (size_t)(first - view->position), count, VIEW_K);
    if (code != 0) return code;
    struct rows rows = sharing->rows;
    if (run->placed != run->first) rows.rope = NULL;
    rows_keys(&rows, g, first, count, sharing->keys);
    for (size_t i = 0; rows.rope == NULL && run->placed != PLAN_UNPLACED && i < count; i++)
        turn(args->rope, run->placed + at + i, sharing->keys + i * rows.head_dim);
    return (int)count;
}

/* The lse of a run for one head. */
static int score(const struct sharing *sharing, const struct plan_run *run, size_t head,
                 double *ret_lse)
{
    const struct attend_args *args = sharing->args;
    size_t head_dim = args->q.shape[2], group = args->q.shape[1] / args->kv_heads;
    load_query(sharing, run, head);
    double max = -INFINITY, sum = 0;
    for (uint64_t at = 0; at < run->count;) {
        int count = load_keys(sharing, run, head / group, at);
        if (count < 0) return count;
        for (size_t i = 0; i < (size_t)count; i++) {
            double dot = 0;
            for (size_t d = 0; d < head_dim; d++)
                dot += (double)sharing->q[d] * (double)sharing->keys[i * head_dim + d];
            dot *= (double)args->scale;
            if (dot > max) {
                sum *= exp(max - dot);
                max = dot;
            }
            sum += exp(dot - max);
        }
        at += (uint64_t)count;
    }
    *ret_lse = max == -INFINITY ? max : max + log(sum);
    return 0;
}

/* Where the sum over the softmax of a run's head is kept. */
static double *total_of(const struct sharing *sharing, const struct plan_run *run, size_t head)
{
    size_t row = run->query * sharing->args->q.shape[1] + head;
    switch (sharing->plan->groups[run->group].merge) {
    case PLAN_GATED: return &sharing->gated[run->group];
    case PLAN_SEPARATE: return &sharing->separate[row];
    default: return &sharing->joint[row];
    }
}

static int sum_runs(const struct sharing *sharing, struct error *err)
{
    double *lse = sharing->run_lse;
    for (size_t i = 0; i < sharing->plan->run_count; i++) {
        const struct plan_run *run = &sharing->plan->runs[i];
        for (size_t h = run->head; h < run->head + run->heads; h++, lse++) {
            if (run->kind != PLAN_TOKENS) continue;
            int rc = score(sharing, run, h, lse);
            if (rc < 0) return error_set(err, rc, "%s while a plan was weighed", error_text(rc));
            double *total = total_of(sharing, run, h);
            *total = add_logs(*total, *lse);
        }
    }
    return 0;
}

static void sum_gates(const struct sharing *sharing)
{
    for (size_t i = 0; i < sharing->plan->group_count; i++) {
        const struct plan_group *group = &sharing->plan->groups[i];
        size_t row = group->query * sharing->args->q.shape[1] + group->head;
        if (group->merge == PLAN_GATED) sharing->gates[row] += (double)group->weight;
    }
}

/* The weight of the softmax of a run's head in the answer; *total may be that of the answer. */
static double weight_of(const struct sharing *sharing, const struct plan_run *run, size_t head,
                        const float *lse, double *total)
{
    const struct plan_group *group = &sharing->plan->groups[run->group];
    size_t row = run->query * sharing->args->q.shape[1] + head;
    if (group->merge == PLAN_GATED) return (double)group->weight;
    if (group->merge == PLAN_SEPARATE) return 1;
    if (sharing->gates[row] == 0) *total = (double)lse[row];
    return fmax(0, 1 - sharing->gates[row]);
}

static void divide(const struct sharing *sharing, const float *lse)
{
    const double *line = sharing->run_lse;
    for (size_t i = 0; i < sharing->plan->run_count; i++) {
        struct plan_run *run = &sharing->plan->runs[i];
        double sum = 0;
        for (size_t h = run->head; h < run->head + run->heads; h++, line++) {
            double total = *total_of(sharing, run, h);
            double weight = weight_of(sharing, run, h, lse, &total);
            if (*line > -INFINITY) sum += weight * exp(*line - total);
        }
        run->share = run->kind == PLAN_TOKENS ? (float)(sum / run->heads) : NAN;
    }
}

int plan_share(struct plan *plan, const struct attend_args *args, const float *lse,
               struct arena *arena, struct error *err)
{
    struct sharing sharing = { .plan = plan, .args = args,
                               .rows = { .views = args->views, .view_count = args->view_count,
                                         .head_dim = args->q.shape[2], .rope = args->rope } };
    int rc = prepare(&sharing, arena, err);
    if (rc == 0) rc = sum_runs(&sharing, err);
    if (rc < 0) return rc;
    sum_gates(&sharing);
    divide(&sharing, lse);
    return 0;
}
