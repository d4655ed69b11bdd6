/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c — the operator's proof: real queries again, by the method and exactly, over one
 * snapshot.
 *
 * The queries are the latest the layer has seen (context_observe.c); they see everything that is
 * stored now, since the question is how the context answers today. Errors are relative L2 errors of
 * o per query and head, as the quality record predicts them. One query at a time, as a model asks
 * that generates: what a batch shares would flatter the bytes, and what a block of it opens for
 * others the errors.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/catalog_state.h"

enum { SCRATCH_BYTES_MAX = 512 << 20 };

/* Both answers, (answers, D) and (answers). */
struct replay {
    size_t answers, head_dim;
    struct partial method, exact;
    double *errors, *ratios; /* (answers), scratch */
};

static int make_partial(struct arena *arena, size_t rows, size_t head_dim,
                        struct partial *ret_partial)
{
    *ret_partial = (struct partial){ .o = arena_calloc(arena, rows * head_dim, sizeof(float)),
                                     .lse = arena_calloc(arena, rows, sizeof(float)),
                                     .rows = rows,
                                     .head_dim = head_dim };
    return ret_partial->o == NULL || ret_partial->lse == NULL ? MEMD_ENOMEM : 0;
}

static int make_replay(struct arena *arena, size_t answers, size_t head_dim,
                       struct replay *ret_replay, struct error *err)
{
    struct replay replay = { .answers = answers,
                             .head_dim = head_dim,
                             .errors = arena_calloc(arena, answers, sizeof(double)),
                             .ratios = arena_calloc(arena, answers, sizeof(double)) };
    if (replay.errors == NULL || replay.ratios == NULL ||
        make_partial(arena, answers, head_dim, &replay.method) < 0 ||
        make_partial(arena, answers, head_dim, &replay.exact) < 0)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu answers", answers);
    *ret_replay = replay;
    return 0;
}

static double true_error(const struct replay *replay, size_t row)
{
    const float *a = replay->method.o + row * replay->head_dim,
                *b = replay->exact.o + row * replay->head_dim;
    double difference = 0, norm = 0;
    for (size_t d = 0; d < replay->head_dim; d++) {
        double x = (double)a[d] - (double)b[d];
        difference += x * x;
        norm += (double)b[d] * (double)b[d];
    }
    if (norm == 0) return difference == 0 ? 0 : INFINITY;
    return sqrt(difference / norm);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Of sorted values: the least that `share` of them do not exceed. */
static double quantile(const double *sorted, size_t count, double share)
{
    size_t at = (size_t)ceil(share * (double)count);
    return sorted[at == 0 ? 0 : at - 1];
}

static void sum_predictions(struct replay *replay, const float *predicted,
                            struct recall_layer *layer)
{
    size_t ratios = 0;
    double sum = 0;
    for (size_t i = 0; i < replay->answers; i++) {
        double p = (double)predicted[i];
        if (isnan(p)) continue;
        layer->predicted++;
        sum += p;
        if (p > 0 && replay->errors[i] > 0) replay->ratios[ratios++] = p / replay->errors[i];
    }
    if (layer->predicted > 0) layer->predicted_mean = sum / (double)layer->predicted;
    if (ratios == 0) return;
    qsort(replay->ratios, ratios, sizeof *replay->ratios, compare);
    layer->ratio_median = quantile(replay->ratios, ratios, 0.5);
}

static void sum_errors(struct replay *replay, double target, struct recall_layer *layer)
{
    double sum = 0;
    size_t within = 0;
    for (size_t i = 0; i < replay->answers; i++) {
        double lse = fabs((double)replay->method.lse[i] - (double)replay->exact.lse[i]);
        if (lse > layer->lse_error_max) layer->lse_error_max = lse; /* NaN: both are -inf */
        sum += replay->errors[i];
        within += replay->errors[i] <= 2 * target;
    }
    layer->within_twice = (double)within / (double)replay->answers;
    layer->error_mean = sum / (double)replay->answers;
    qsort(replay->errors, replay->answers, sizeof *replay->errors, compare);
    layer->error_p50 = quantile(replay->errors, replay->answers, 0.5);
    layer->error_p90 = quantile(replay->errors, replay->answers, 0.9);
    layer->error_p99 = quantile(replay->errors, replay->answers, 0.99);
    layer->error_max = replay->errors[replay->answers - 1];
}

static void fill_layer(const struct context *context, struct asking *asking, struct replay *replay,
                       double target, struct recall_layer *layer)
{
    const struct index_quality *quality = &asking->quality;
    layer->answers = replay->answers;
    layer->tokens = asking->snapshot.seen;
    layer->bytes_exact = layer->queries * asking->snapshot.seen *
                         block_token_bytes(&context->shape);
    for (int level = 0; level < INDEX_LEVELS; level++) {
        double mass = 0;
        for (size_t i = 0; i < replay->answers; i++)
            mass += (double)quality->mass[i * INDEX_LEVELS + (size_t)level];
        layer->mass[level] = mass / (double)replay->answers;
        layer->level_bytes[level] = quality->bytes[level];
        layer->bytes_read += quality->bytes[level];
    }
    for (size_t i = 0; i < replay->answers; i++) replay->errors[i] = true_error(replay, i);
    sum_predictions(replay, quality->predicted_error, layer);
    sum_errors(replay, target, layer);
}

/* What the answers are to be measured by. */
static double target_of(const struct context *context, const struct recall_args *args)
{
    if (args->target_error >= 0) return args->target_error;
    return method_option(context->method, context->options, "target_error", 0);
}

/* Rows of query `i` of n. */
static struct partial part_of(const struct partial *all, size_t i, size_t heads)
{
    return (struct partial){ .o = all->o + i * heads * all->head_dim, .lse = all->lse + i * heads,
                             .rows = heads, .head_dim = all->head_dim };
}

/* Both answers to query `i`; with the snapshot taken. */
static int answer(struct context *context, struct asking *asking, const struct replay *replay,
                  size_t i, struct error *err)
{
    CLEANUP(arena_fini) struct arena arena; /* scratch of one query, not of all of them */
    arena_init(&arena, SCRATCH_BYTES_MAX);
    struct reading one = asking->reading;
    const size_t heads = one.attend.q.shape[1], head_dim = one.attend.q.shape[2];
    one.attend.q.data = (const unsigned char *)one.attend.q.data +
                        i * heads * head_dim * dtype_bytes(one.attend.q.dtype);
    one.attend.q.shape[0] = 1;
    one.attend.positions += i;
    one.attend.limits += i;
    struct index_quality *all = &asking->quality, unused = { 0 }, part = *all;
    memset(part.rows, 0, sizeof part.rows);
    memset(part.bytes, 0, sizeof part.bytes);
    part.predicted_error += i * heads;
    part.mass += i * heads * INDEX_LEVELS;
    part.limited += i * heads;
    struct index_answer wanted = { .partial = part_of(&replay->method, i, heads),
                                   .quality = &part };
    struct index_answer truth = { .partial = part_of(&replay->exact, i, heads),
                                  .quality = &unused };
    int rc = context->method->attend(context->method, &one, &arena, &wanted, err);
    for (int level = 0; level < INDEX_LEVELS; level++) {
        all->rows[level] += part.rows[level];
        all->bytes[level] += part.bytes[level];
    }
    if (rc == 0) rc = method_attend_exactly(&one, &arena, &truth, err);
    return context_answered(asking, rc, err);
}

static int replay_layer(struct context *context, const struct query *query,
                        const struct recall_args *args, struct arena *arena,
                        struct recall_layer *layer, struct error *err)
{
    struct replay replay = { 0 };
    struct asking asking = { 0 };
    const size_t *shape = query->q.shape;
    int rc = make_replay(arena, shape[0] * shape[1], shape[2], &replay, err);
    if (rc == 0) rc = context_ask(context, query, arena, &asking, err);
    if (rc < 0) return rc;
    for (size_t i = 0; rc == 0 && i < shape[0]; i++)
        rc = answer(context, &asking, &replay, i, err);
    if (rc == 0) fill_layer(context, &asking, &replay, target_of(context, args), layer);
    context_asked(context, &asking);
    return rc;
}

int catalog_recall(struct catalog *catalog, const struct recall_args *args, struct arena *arena,
                   struct recall_layer *ret_layer, struct error *err)
{
    struct context *context = NULL;
    int rc = catalog_pin(catalog, args->context_id, arena, &context, err);
    if (rc < 0) return rc;
    const struct model *model = context_model(context);
    if (context_state_width(context) > 0)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "the context keeps states, there is no exact answer to compare with");
    if (args->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         args->layer, model->layers);
    size_t values = context_query_values(context);
    uint16_t *q = arena_calloc(arena, RECENT_QUERIES * values, sizeof *q);
    uint64_t *positions = arena_calloc(arena, RECENT_QUERIES, sizeof *positions);
    if (q == NULL || positions == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %d queries", RECENT_QUERIES);
    struct recall_layer layer = { .queries = context_copy_recent(context, args->layer, q,
                                                                 positions) };
    struct query query = {
        .layer = args->layer,
        .q = { .data = q, .dtype = DTYPE_FP16, .dims = 3,
               .shape = { (size_t)layer.queries, model->query_heads, model->head_dim } },
        .positions = positions,
        .stop = args->stop,
        .stop_arg = args->stop_arg,
        .target_error = args->target_error,
        .max_bytes = args->max_bytes,
    };
    if (layer.queries > 0 && context_layer_tokens(context, args->layer) > 0)
        rc = replay_layer(context, &query, args, arena, &layer, err);
    if (rc == 0) *ret_layer = layer;
    return rc;
}
