/* SPDX-License-Identifier: Apache-2.0 */
/* op_put_params.c — tensors that a method reads: of one context, or of a set that contexts share.
 *
 * They are put one after another, each committed before the next; shapes are checked by memory/,
 * which knows what the method declares, so all that is checked here is that it is a tensor of
 * numbers with as many axes as there can be. Uploading again replaces, so a client that lost the
 * reply sends all of them again.
 */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "index/params.h"
#include "memory/context.h"

/* Where they go. */
struct target {
    struct context *context;   /* or NULL: */
    struct shared_param shared; /* of a set */
    struct model model;
};

static int check(const Memd__PutParamsRequest *in, struct error *err)
{
    if (in->n_params == 0 || in->n_params > LIMIT_PARAMS)
        return error_set(err, MEMD_ELIMIT, "%zu tensors, must be 1 … %u", in->n_params,
                         LIMIT_PARAMS);
    bool named = in->set[0] != '\0';
    if (named == (in->context_id != 0))
        return error_set(err, MEMD_EINVAL, "put_params needs either a context id or a set");
    if (named && !message_name_ok(in->set))
        return error_set(err, MEMD_EINVAL, "not a name of a set");
    if (named && in->model == NULL)
        return error_set(err, MEMD_EINVAL, "a set needs the model of the contexts that use it");
    for (size_t i = 0; i < in->n_params; i++) {
        const Memd__Param *param = in->params[i];
        if (param->scope_case == MEMD__PARAM__SCOPE_LAYER && param->layer >= LIMIT_LAYERS)
            return error_set(err, MEMD_EINVAL, "tensor %s of layer %u", param->name, param->layer);
    }
    return 0;
}

static int find_target(struct request *req, const Memd__PutParamsRequest *in,
                       struct target *target, struct error *err)
{
    if (in->context_id != 0)
        return catalog_pin(req->server->catalog, in->context_id, &req->arena, &target->context,
                           err);
    struct parameter *parameters = NULL;
    int rc = wire_decode_model(in->model, &target->model, err);
    if (rc == 0) rc = model_check(&target->model, err);
    if (rc == 0)
        rc = wire_decode_parameters(in->parameters, in->n_parameters, &req->arena, &parameters,
                                    err);
    if (rc < 0) return rc;
    target->shared = (struct shared_param){ .set = in->set, .model = &target->model,
                                            .method = in->method, .parameters = parameters,
                                            .parameter_count = in->n_parameters };
    return 0;
}

static int decode(struct request *req, const Memd__Param *in, struct tensor *ret_value,
                  struct error *err)
{
    const Memd__Tensor *wire = in->value;
    struct message_shape shape = { .what = in->name, .dims = 1 };
    for (size_t i = 0; i < TENSOR_DIMS_MAX; i++) shape.shape[i] = MESSAGE_ANY;
    if (wire != NULL && wire->n_shape >= 1 && wire->n_shape <= TENSOR_DIMS_MAX)
        shape.dims = (uint32_t)wire->n_shape;
    return region_tensor(req, wire, &shape, ret_value, err);
}

static int put(struct request *req, const struct target *target, const Memd__Param *in,
               struct error *err)
{
    bool one = in->scope_case == MEMD__PARAM__SCOPE_LAYER;
    uint32_t layer = one ? in->layer : PARAM_ALL_LAYERS;
    struct tensor value;
    int rc = decode(req, in, &value, err);
    if (rc < 0) return rc;
    if (target->context != NULL)
        return context_put_param(target->context, in->name, layer, &value, err);
    struct shared_param shared = target->shared;
    shared.name = in->name;
    shared.layer = layer;
    shared.value = &value;
    return catalog_put_shared_param(req->server->catalog, &shared, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__PutParamsRequest *in = (const Memd__PutParamsRequest *)req->in;
    struct target target = { .context = NULL };
    int rc = check(in, err);
    if (rc == 0) rc = find_target(req, in, &target, err);
    for (size_t i = 0; rc == 0 && i < in->n_params; i++)
        rc = put(req, &target, in->params[i], err);
    if (rc < 0) return rc;
    Memd__PutParamsReply reply = MEMD__PUT_PARAMS_REPLY__INIT;
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_put_params = { .run = run, .ordered = true };
