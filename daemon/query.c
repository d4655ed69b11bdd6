/* SPDX-License-Identifier: Apache-2.0 */
/* query.c — checks of a query, in the order in which their texts help most. */
#include "daemon/query.h"

#include <inttypes.h>

#include "base/error.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "proto/limits.h"

static int check_positions(const struct query_message *message, size_t n, struct error *err)
{
    if (message->position_count != n)
        return error_set(err, MEMD_ESHAPE, "%zu positions for %zu queries", message->position_count,
                         n);
    if (message->limit_count != 0 && message->limit_count != n)
        return error_set(err, MEMD_ESHAPE, "%zu limits for %zu queries", message->limit_count, n);
    for (size_t i = 0; i < n; i++)
        if (message->positions[i] > LIMIT_TOKENS)
            return error_set(err, MEMD_ELIMIT, "position %" PRIu64 ", limit %" PRIu64,
                             message->positions[i], (uint64_t)LIMIT_TOKENS);
    return 0;
}

int query_decode_wish(const struct query_wish *wish, double *ret_target_error,
                      uint64_t *ret_max_bytes, struct error *err)
{
    double target = wish->has_target_error ? wish->target_error : -1.0;
    /* A NaN is neither. */
    if (wish->has_target_error && !(target >= 0.0 && target <= QUERY_TARGET_ERROR_MAX))
        return error_set(err, MEMD_EINVAL, "target_error %g, must be 0 (exact) … %g", target,
                         QUERY_TARGET_ERROR_MAX);
    *ret_target_error = target;
    *ret_max_bytes = !wish->has_max_bytes ? 0 : wish->max_bytes == 0 ? UINT64_MAX : wish->max_bytes;
    return 0;
}

/* Which of them are needed is the method's to say. */
static int decode_states(struct request *req, const struct query_message *message,
                         struct context *context, struct query *query, struct error *err)
{
    if (message->states == NULL) return 0;
    size_t width = context_state_width(context);
    if (width == 0)
        return error_set(err, MEMD_EUNSUPPORTED, "states, but this context keeps keys and values");
    struct message_shape shape = { .what = "states",
                                   .dims = 2,
                                   .shape = { query->q.shape[0], MESSAGE_ANY } };
    int rc = region_tensor(req, message->states, &shape, &query->states, err);
    if (rc < 0) return rc;
    return context_encode_states(context, query->layer, &req->arena, &query->states, err);
}

int query_decode(struct request *req, const struct query_message *message, struct context *context,
                 struct query *ret_query, struct error *err)
{
    const struct model *model = context_model(context);
    if (message->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", message->layer,
                         model->layers);
    struct message_shape shape = { .what = "q", .dims = 3,
                                   .shape = { MESSAGE_ANY, model->query_heads, model->head_dim } };
    struct query query = { .layer = message->layer, .stop = request_stop, .stop_arg = req };
    int rc = region_tensor(req, message->q, &shape, &query.q, err);
    if (rc < 0) return rc;
    size_t n = query.q.shape[0];
    if (n == 0 || n > LIMIT_ATTEND_QUERIES)
        return error_set(err, MEMD_ELIMIT, "%zu queries, must be 1 … %u", n, LIMIT_ATTEND_QUERIES);
    rc = check_positions(message, n, err);
    if (rc == 0) rc = decode_states(req, message, context, &query, err);
    if (rc == 0)
        rc = query_decode_wish(&message->wish, &query.target_error, &query.max_bytes, err);
    if (rc < 0) return rc;
    query.positions = message->positions;
    query.limits = message->limit_count != 0 ? message->limits : NULL;
    *ret_query = query;
    return 0;
}
