/* SPDX-License-Identifier: Apache-2.0 */
/* explain.c — why an answer came out as it did: a query that was asked before, with the plan of
 * what was read for it now.
 *
 * The queries are those of recall.c. Nobody has to send one, so an operator can look into a context
 * of a running engine. It sees everything that is stored now, at its own position; the answer
 * itself is of no interest.
 */
#include <inttypes.h>

#include "base/arena.h"
#include "base/error.h"
#include "index/plan.h"
#include "memory/catalog_state.h"

/* Room for the answer and its plan. */
static int prepare(const struct model *model, struct arena *arena, struct partial *ret_partial,
                   struct plan **ret_plan, struct error *err)
{
    struct plan *plan = arena_alloc(arena, sizeof *plan);
    *ret_partial = (struct partial){
        .o = arena_calloc(arena, (size_t)model->query_heads * model->head_dim, sizeof(float)),
        .lse = arena_calloc(arena, model->query_heads, sizeof(float)),
        .rows = model->query_heads,
        .head_dim = model->head_dim,
    };
    if (plan == NULL || ret_partial->o == NULL || ret_partial->lse == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for an answer");
    *ret_plan = plan;
    return plan_init(plan, arena, err);
}

static int explain(struct context *context, const struct query *query, struct arena *arena,
                   struct explained *explained, struct error *err)
{
    struct partial partial;
    int rc = prepare(context_model(context), arena, &partial, &explained->plan, err);
    if (rc < 0) return rc;
    struct query planned = *query;
    planned.plan = explained->plan;
    explained->lse = partial.lse;
    uint32_t layer = method_rows_layer(context->method, context->options, query->layer);
    explained->tokens = context_layer_tokens(context, layer);
    return context_answer(context, &planned, arena, &partial, &explained->quality, err);
}

int catalog_explain(struct catalog *catalog, const struct explain_args *args, struct arena *arena,
                    struct explained *ret_explained, struct error *err)
{
    struct context *context = NULL;
    int rc = catalog_pin(catalog, args->context_id, arena, &context, err);
    if (rc < 0) return rc;
    const struct model *model = context_model(context);
    if (args->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %" PRIu32 " of a model with %" PRIu32 " layers",
                         args->layer, model->layers);
    size_t values = (size_t)model->query_heads * model->head_dim;
    uint16_t *q = arena_calloc(arena, RECENT_QUERIES * values, sizeof *q);
    uint64_t *positions = arena_calloc(arena, RECENT_QUERIES, sizeof *positions);
    if (q == NULL || positions == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %d queries", RECENT_QUERIES);
    size_t count = context_copy_recent(context, args->layer, q, positions);
    struct explained explained = { .queries = count, .heads = model->query_heads };
    if (count > 0 && args->query >= count)
        return error_set(err, MEMD_ENOROW, "query %" PRIu64 " before the newest, %zu are kept",
                         args->query, count);
    if (count == 0 || context_layer_tokens(context, args->layer) == 0) {
        *ret_explained = (struct explained){ 0 };
        return 0;
    }
    size_t at = count - 1 - (size_t)args->query;
    explained.position = positions[at];
    struct query query = {
        .layer = args->layer,
        .q = { .data = q + at * values, .dtype = DTYPE_FP16, .dims = 3,
               .shape = { 1, model->query_heads, model->head_dim } },
        .positions = &positions[at],
        .stop = args->stop,
        .stop_arg = args->stop_arg,
        .target_error = args->target_error,
        .max_bytes = args->max_bytes,
    };
    rc = explain(context, &query, arena, &explained, err);
    if (rc == 0) *ret_explained = explained;
    return rc;
}
