/* SPDX-License-Identifier: Apache-2.0 */
/* op_truncate.c — roll a context back, for speculative decoding and for editing. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "memory/context.h"

static int run(struct request *req, struct error *err)
{
    const Memd__TruncateRequest *in = (const Memd__TruncateRequest *)req->in;
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc == 0) rc = context_truncate(context, in->position, err);
    if (rc < 0) return rc;
    Memd__TruncateReply reply = MEMD__TRUNCATE_REPLY__INIT;
    reply.tokens = context_tokens(context);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_truncate = { .run = run, .ordered = true };
