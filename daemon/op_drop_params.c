/* SPDX-License-Identifier: Apache-2.0 */
/* op_drop_params.c — a set of tensors goes when no context uses it any more. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const Memd__DropParamsRequest *in = (const Memd__DropParamsRequest *)req->in;
    if (!message_name_ok(in->set)) return error_set(err, MEMD_EINVAL, "not a name of a set");
    Memd__DropParamsReply reply = MEMD__DROP_PARAMS_REPLY__INIT;
    int rc = catalog_drop_shared_params(req->server->catalog, in->set, &reply.bytes, err);
    return rc < 0 ? rc : request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_drop_params = { .run = run, .ordered = true };
