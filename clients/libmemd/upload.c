/* SPDX-License-Identifier: Apache-2.0 */
/* upload.c — what a client gives a method besides rows: attention mass that it saw, the queries of
 * a prompt that is to be compressed, trained tensors. Tensors out of the caller's arrays, replies
 * of a few numbers. */
#include "clients/libmemd/client.h"
#include "clients/libmemd/wire.h"
#include "proto/limits.h"
#include "proto/method.h"

static int place_nothing(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    ticket->result = message;
    return 0;
}

static uint32_t dtype_or(enum memd_dtype chosen, uint32_t otherwise)
{
    return chosen == MEMD_DTYPE_NONE ? otherwise : (uint32_t)chosen;
}

static int check_count(struct memd_ticket *ticket, const char *what, size_t count, size_t most)
{
    if (count >= 1 && count <= most) return 0;
    return error_set(&ticket->err, count == 0 ? MEMD_EINVAL : MEMD_ELIMIT,
                     "%zu %s, must be 1 to %zu", count, what, most);
}

/* Send it and forget the reply. */
static int finish(struct memd_ticket *ticket, int rc, struct memd_error *err)
{
    rc = ticket_call(ticket, rc, err);
    if (rc == 0) memd_ticket_free(ticket);
    return rc;
}

/* ---- mass ---- */

static int build_observe(struct memd_ticket *ticket, const struct memd_context *context,
                         const struct memd_mass *mass)
{
    if (mass->mass == NULL) return error_set(&ticket->err, MEMD_EINVAL, "mass is NULL");
    int rc = check_count(ticket, "tokens", mass->tokens, SIZE_MAX);
    if (rc < 0) return rc;
    Memd__ObserveRequest request = MEMD__OBSERVE_REQUEST__INIT;
    request.context_id = context->id;
    request.layer = mass->layer;
    request.position = mass->position;
    struct ticket_array array = { .what = "mass", .data = mass->mass,
                                  .dtype = dtype_or(mass->dtype, DTYPE_FP32), .dims = 2,
                                  .shape = { mass->tokens, context->query_heads } };
    rc = ticket_tensor(ticket, &array, &request.mass);
    return rc < 0 ? rc : ticket_pack(ticket, &request.base);
}

int memd_observe(const struct memd_context *context, const struct memd_mass *mass,
                 struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_OBSERVE, 1);
    int rc = 0;
    if (ticket != NULL) {
        ticket->repeatable = false; /* it would count twice */
        ticket->place = place_nothing;
        rc = build_observe(ticket, context, mass);
    }
    return finish(ticket, rc, err);
}

/* ---- compress ---- */

struct compress_place {
    size_t count;
    uint64_t *kept; /* the caller's, or NULL */
};

static int place_compress(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__CompressReply *reply = (const Memd__CompressReply *)message;
    const struct compress_place *place = ticket->plan;
    if (reply->n_kept != place->count)
        return error_set(&ticket->err, MEMD_EPROTO, "%zu counts for %zu layers", reply->n_kept,
                         place->count);
    for (size_t i = 0; place->kept != NULL && i < place->count; i++)
        place->kept[i] = reply->kept[i];
    ticket->result = message;
    return 0;
}

static int build_prompt(struct memd_ticket *ticket, const struct memd_context *context,
                        const struct memd_compress *layer, Memd__CompressLayer *wire)
{
    memd__compress_layer__init(wire);
    wire->layer = layer->layer;
    wire->tokens = layer->tokens;
    if (layer->q == NULL) return 0;
    int rc = check_count(ticket, "queries", layer->queries, LIMIT_ATTEND_QUERIES);
    struct ticket_array array = { .what = "q", .data = layer->q,
                                  .dtype = dtype_or(layer->q_dtype, (uint32_t)context->dtype),
                                  .dims = 3,
                                  .shape = { layer->queries, context->query_heads,
                                             context->head_dim } };
    return rc < 0 ? rc : ticket_tensor(ticket, &array, &wire->q);
}

static int build_compress(struct memd_ticket *ticket, const struct memd_context *context,
                          const struct memd_compress *layers, size_t count)
{
    int rc = check_count(ticket, "layers", count, LIMIT_APPEND_LAYERS);
    if (rc < 0) return rc;
    Memd__CompressLayer *wires = ticket_alloc(ticket, count, sizeof *wires);
    Memd__CompressLayer **list = ticket_alloc(ticket, count, sizeof *list);
    if (wires == NULL || list == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = build_prompt(ticket, context, &layers[i], &wires[i]);
        list[i] = &wires[i];
    }
    if (rc < 0) return rc;
    Memd__CompressRequest request = MEMD__COMPRESS_REQUEST__INIT;
    request.context_id = context->id;
    request.layers = list;
    request.n_layers = count;
    return ticket_pack(ticket, &request.base);
}

int memd_compress(const struct memd_context *context, const struct memd_compress *layers,
                  size_t count, uint64_t *ret_kept, struct memd_error *err)
{
    size_t tensors = count <= LIMIT_APPEND_LAYERS ? count : 0;
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_COMPRESS, tensors);
    struct compress_place place = { count, ret_kept };
    int rc = 0;
    if (ticket != NULL) {
        ticket->repeatable = false; /* a layer that is compressed is MEMD_EEXIST */
        ticket->place = place_compress;
        ticket->plan = &place;
        rc = build_compress(ticket, context, layers, count);
    }
    return finish(ticket, rc, err);
}

/* ---- tensors ---- */

static int build_param(struct memd_ticket *ticket, const struct memd_param *param,
                       Memd__Param *wire)
{
    memd__param__init(wire);
    if (param->name == NULL || param->value == NULL)
        return error_set(&ticket->err, MEMD_EINVAL, "name or value is NULL");
    if (param->dims == 0 || param->dims > TENSOR_DIMS_MAX)
        return error_set(&ticket->err, MEMD_ESHAPE, "%s has %u dimensions, must have 1 to %d",
                         param->name, param->dims, TENSOR_DIMS_MAX);
    wire->name = (char *)param->name;
    if (param->layer != MEMD_ALL_LAYERS) {
        wire->scope_case = MEMD__PARAM__SCOPE_LAYER;
        wire->layer = param->layer;
    }
    struct ticket_array array = { .what = param->name, .data = param->value,
                                  .dtype = dtype_or(param->dtype, DTYPE_FP32),
                                  .dims = param->dims };
    for (uint32_t i = 0; i < param->dims; i++) array.shape[i] = param->shape[i];
    return ticket_tensor(ticket, &array, &wire->value);
}

struct upload {
    const struct memd_param *params;
    size_t count;
    uint64_t context_id;              /* or 0: */
    const struct memd_param_set *set;
};

static int build_set(struct memd_ticket *ticket, const struct memd_param_set *set,
                     Memd__PutParamsRequest *request)
{
    if (set->name == NULL || set->model == NULL || set->method == NULL)
        return error_set(&ticket->err, MEMD_EINVAL, "a set needs a name, a model and a method");
    request->set = (char *)set->name;
    request->method = (char *)set->method;
    request->model = wire_model(ticket, set->model);
    request->n_parameters = set->parameter_count;
    request->parameters = wire_parameters(ticket, set->parameters, set->parameter_count);
    return request->model == NULL || request->parameters == NULL ? MEMD_ENOMEM : 0;
}

static int build_upload(struct memd_ticket *ticket, const struct upload *upload)
{
    int rc = check_count(ticket, "tensors", upload->count, LIMIT_PARAMS);
    if (rc < 0) return rc;
    Memd__PutParamsRequest request = MEMD__PUT_PARAMS_REQUEST__INIT;
    request.context_id = upload->context_id;
    if (upload->set != NULL) rc = build_set(ticket, upload->set, &request);
    Memd__Param *wires = ticket_alloc(ticket, upload->count, sizeof *wires);
    request.params = ticket_alloc(ticket, upload->count, sizeof *request.params);
    if (wires == NULL || request.params == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; rc == 0 && i < upload->count; i++) {
        rc = build_param(ticket, &upload->params[i], &wires[i]);
        request.params[i] = &wires[i];
    }
    request.n_params = upload->count;
    return rc < 0 ? rc : ticket_pack(ticket, &request.base);
}

static int put(struct memd_client *client, const struct upload *upload, struct memd_error *err)
{
    size_t tensors = upload->count <= LIMIT_PARAMS ? upload->count : 0;
    struct memd_ticket *ticket = ticket_new(client, METHOD_PUT_PARAMS, tensors);
    int rc = 0;
    if (ticket != NULL) {
        ticket->repeatable = true; /* again is in place of itself */
        ticket->place = place_nothing;
        rc = build_upload(ticket, upload);
    }
    return finish(ticket, rc, err);
}

int memd_put_params(const struct memd_context *context, const struct memd_param *params,
                    size_t count, struct memd_error *err)
{
    struct upload upload = { .params = params, .count = count, .context_id = context->id };
    return put(context->client, &upload, err);
}

int memd_put_shared_params(struct memd_client *client, const struct memd_param_set *set,
                           const struct memd_param *params, size_t count, struct memd_error *err)
{
    struct upload upload = { .params = params, .count = count, .set = set };
    return put(client, &upload, err);
}

static int place_drop(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    uint64_t *bytes = ticket_result(ticket, 1, sizeof *bytes);
    if (bytes == NULL) return MEMD_ENOMEM;
    *bytes = ((const Memd__DropParamsReply *)message)->bytes;
    return 0;
}

int memd_drop_shared_params(struct memd_client *client, const char *set, uint64_t *ret_bytes,
                            struct memd_error *err)
{
    Memd__DropParamsRequest request = MEMD__DROP_PARAMS_REQUEST__INIT;
    request.set = (char *)set;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_DROP_PARAMS, false, &request.base,
                                                   place_drop },
                        &result, err);
    if (rc < 0) return rc;
    if (ret_bytes != NULL) *ret_bytes = *(const uint64_t *)result;
    memd_free(result);
    return 0;
}
