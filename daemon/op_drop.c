/* SPDX-License-Identifier: Apache-2.0 */
/* op_drop.c — forget a context. Waits on its worker until nobody reads it any more. */
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const Memd__DropRequest *in = (const Memd__DropRequest *)req->in;
    Memd__DropReply reply = MEMD__DROP_REPLY__INIT;
    int rc = catalog_drop(req->server->catalog, in->context_id, &reply.bytes, err);
    return rc < 0 ? rc : request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_drop = { .run = run, .ordered = true };
