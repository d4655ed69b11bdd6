/* SPDX-License-Identifier: Apache-2.0 */
/* op_fork.c — a second future for the same past, or another way of reading it; nothing is copied
 * until one of them goes on. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int run(struct request *req, struct error *err)
{
    const Memd__ForkRequest *in = (const Memd__ForkRequest *)req->in;
    if (!message_name_ok(in->name))
        return error_set(err, MEMD_EINVAL,
                         "name must be 1 … %u bytes of UTF-8 without control characters",
                         LIMIT_NAME_BYTES);
    struct parameter *parameters = NULL;
    int rc = wire_check_method(in->method, err);
    if (rc == 0)
        rc = wire_decode_parameters(in->parameters, in->n_parameters, &req->arena, &parameters,
                                    err);
    if (rc < 0) return rc;
    struct fork_args args = { in->name, in->method, parameters, in->n_parameters };
    struct catalog *catalog = req->server->catalog;
    struct context *context = NULL;
    Memd__ForkReply reply = MEMD__FORK_REPLY__INIT;
    rc = catalog_pin(catalog, in->context_id, &req->arena, &context, err);
    if (rc == 0)
        rc = catalog_fork(catalog, context, &args, &reply.context_id, &reply.tokens, err);
    return rc < 0 ? rc : request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_fork = { .run = run, .ordered = true };
