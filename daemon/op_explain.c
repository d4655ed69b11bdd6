/* SPDX-License-Identifier: Apache-2.0 */
/* op_explain.c — a query of the past again, and what was read for it: for people who look into a
 * context that somebody else uses. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/query.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int answer(struct request *req, const struct explained *explained, struct error *err)
{
    Memd__ExplainReply reply = MEMD__EXPLAIN_REPLY__INIT;
    reply.queries = explained->queries;
    if (explained->queries > 0) {
        reply.position = explained->position;
        reply.tokens = explained->tokens;
        reply.lse = explained->lse;
        reply.n_lse = explained->heads;
        reply.plan = wire_encode_plan(explained->plan, &req->arena);
        reply.quality = wire_encode_quality(&explained->quality, explained->heads, &req->arena);
        if (reply.plan == NULL || reply.quality == NULL) return wire_no_memory(err);
    }
    return request_reply(req, &reply.base, NULL, 0, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__ExplainRequest *in = (const Memd__ExplainRequest *)req->in;
    struct query_wish wish = QUERY_WISH(in, MEMD__EXPLAIN_REQUEST);
    struct explain_args args = { .context_id = in->context_id, .layer = in->layer,
                                 .query = in->query, .stop = request_stop, .stop_arg = req };
    int rc = query_decode_wish(&wish, &args.target_error, &args.max_bytes, err);
    struct explained explained = { 0 };
    if (rc == 0)
        rc = catalog_explain(req->server->catalog, &args, &req->arena, &explained, err);
    return rc < 0 ? rc : answer(req, &explained, err);
}

const struct operation operation_explain = { .run = run };
