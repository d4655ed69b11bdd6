/* SPDX-License-Identifier: Apache-2.0 */
/* op_observe.c — attention mass that a client saw fall on tokens that are stored: only it knows,
 * since its own window attended to them while they were young. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "memory/context.h"

static int decode(struct request *req, const Memd__ObserveRequest *in, const struct model *model,
                  struct tensor *ret_mass, struct error *err)
{
    if (in->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer, model->layers);
    struct message_shape shape = { .what = "mass", .dims = 2,
                                   .shape = { MESSAGE_ANY, model->query_heads } };
    return region_tensor(req, in->mass, &shape, ret_mass, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__ObserveRequest *in = (const Memd__ObserveRequest *)req->in;
    struct context *context = NULL;
    struct tensor mass;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc == 0) rc = decode(req, in, context_model(context), &mass, err);
    if (rc == 0) rc = context_add_mass(context, in->layer, in->position, &mass, err);
    if (rc == MEMD_EBUSY) return OPERATION_AGAIN;
    if (rc < 0) return rc;
    Memd__ObserveReply reply = MEMD__OBSERVE_REPLY__INIT;
    reply.tokens = context_layer_tokens(context, in->layer);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_observe = { .run = run, .ordered = true };
