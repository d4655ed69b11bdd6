/* SPDX-License-Identifier: Apache-2.0 */
/* op_open.c — find or make a context; the model must be the one it was made with. */
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

static int check(const struct request *req, const Memd__OpenRequest *in, struct error *err)
{
    if (!message_name_ok(in->name))
        return error_set(err, MEMD_EINVAL,
                         "name must be 1 … %u bytes of UTF-8 without control characters",
                         LIMIT_NAME_BYTES);
    bool create = in->create || in->must_create;
    if (create && in->model == NULL)
        return error_set(err, MEMD_EINVAL, "creating '%s' needs a model", in->name);
    if (create && req->role < ROLE_WRITE)
        return error_set(err, MEMD_EPERM, "creating a context needs role write");
    return wire_check_method(in->method, err);
}

static int answer(struct request *req, struct context *context, bool created, struct error *err)
{
    struct context_info info;
    int rc = catalog_stat(req->server->catalog, context_id(context), &req->arena, &info, err);
    if (rc < 0) return rc;
    const Memd__ContextInfo *message = wire_encode_info(&info, &req->arena);
    if (message == NULL) return wire_no_memory(err);
    Memd__OpenReply reply = MEMD__OPEN_REPLY__INIT;
    reply.context_id = info.id;
    reply.created = created;
    reply.model = message->model;
    reply.method = message->method;
    reply.parameters = message->parameters;
    reply.n_parameters = message->n_parameters;
    reply.tokens = info.tokens;
    reply.synced_tokens = info.synced_tokens;
    reply.state_width = message->state_width;
    return request_reply(req, &reply.base, NULL, 0, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__OpenRequest *in = (const Memd__OpenRequest *)req->in;
    int rc = check(req, in, err);
    struct model model;
    if (rc == 0 && in->model != NULL) rc = wire_decode_model(in->model, &model, err);
    struct parameter *parameters = NULL;
    if (rc == 0)
        rc = wire_decode_parameters(in->parameters, in->n_parameters, &req->arena, &parameters,
                                    err);
    if (rc < 0) return rc;

    struct open_args args = {
        .name = in->name,
        .model = in->model != NULL ? &model : NULL,
        .method = in->method,
        .parameters = parameters,
        .parameter_count = in->n_parameters,
        .create = in->create || in->must_create,
        .must_create = in->must_create,
    };
    struct context *context = NULL;
    bool created = false;
    rc = catalog_open_context(req->server->catalog, &args, &req->arena, &context, &created, err);
    return rc < 0 ? rc : answer(req, context, created, err);
}

const struct operation operation_open = { .run = run, .ordered = true };
