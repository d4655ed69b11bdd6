/* SPDX-License-Identifier: Apache-2.0 */
/* methods.c — memory methods: which there are, what they want, why they answered as they did. */
#include "clients/libmemd/client.h"
#include "clients/libmemd/wire.h"
#include "proto/method.h"

/* ---- methods ---- */

static int read_method(struct memd_ticket *ticket, const Memd__MethodInfo *wire,
                       struct memd_method *ret_method)
{
    struct memd_option *options = ticket_alloc(ticket, wire->n_options, sizeof *options);
    struct memd_method_tensor *tensors = ticket_alloc(ticket, wire->n_tensors, sizeof *tensors);
    if (options == NULL || tensors == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < wire->n_options; i++) {
        const Memd__MethodOption *option = wire->options[i];
        options[i] = (struct memd_option){ .name = option->name, .help = option->help,
                                           .fallback = option->fallback,
                                           .least = option->least, .most = option->most,
                                           .whole = option->whole,
                                           .choices = (const char *const *)option->choices,
                                           .choice_count = option->n_choices };
    }
    for (size_t i = 0; i < wire->n_tensors; i++)
        tensors[i] = (struct memd_method_tensor){ .name = wire->tensors[i]->name,
                                                  .shape = wire->tensors[i]->shape,
                                                  .help = wire->tensors[i]->help };
    *ret_method = (struct memd_method){ .name = wire->name, .help = wire->help,
                                        .options = options, .option_count = wire->n_options,
                                        .is_default = wire->is_default, .tensors = tensors,
                                        .tensor_count = wire->n_tensors,
                                        .takes_mass = wire->takes_mass,
                                        .compresses = wire->compresses,
                                        .wants_queries = wire->wants_queries,
                                        .samples_queries = wire->samples_queries,
                                        .wants_marks = wire->wants_marks, .folds = wire->folds,
                                        .state_width = (uint32_t)wire->state_width };
    return 0;
}

static int place_methods(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__MethodsReply *reply = (const Memd__MethodsReply *)message;
    struct memd_methods *result = ticket_result(ticket, 1, sizeof *result);
    struct memd_method *methods = ticket_alloc(ticket, reply->n_methods, sizeof *methods);
    if (result == NULL || methods == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < reply->n_methods; i++) {
        int rc = read_method(ticket, reply->methods[i], &methods[i]);
        if (rc < 0) return rc;
    }
    *result = (struct memd_methods){ .methods = methods, .count = reply->n_methods };
    return 0;
}

int memd_methods(struct memd_client *client, const struct memd_methods **ret_methods,
                 struct memd_error *err)
{
    Memd__MethodsRequest request = MEMD__METHODS_REQUEST__INIT;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_METHODS, true, &request.base,
                                                   place_methods },
                        &result, err);
    if (rc == 0) *ret_methods = result;
    return rc;
}

/* ---- explain ---- */

static int place_explain(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__ExplainReply *reply = (const Memd__ExplainReply *)message;
    struct memd_explained *explained = ticket_result(ticket, 1, sizeof *explained);
    if (explained == NULL) return MEMD_ENOMEM;
    explained->queries = reply->queries;
    explained->position = reply->position;
    explained->tokens = reply->tokens;
    explained->lse = reply->lse;
    explained->heads = reply->n_lse;
    int rc = wire_read_plan(ticket, reply->plan, &explained->plan);
    if (rc < 0) return rc;
    if (explained->plan == NULL && reply->queries > 0)
        return error_set(&ticket->err, MEMD_EPROTO, "the reply to explain has no plan");
    return wire_read_quality(ticket, reply->quality, reply->n_lse, &explained->quality);
}

int memd_explain(const struct memd_context *context, const struct memd_explain_args *args,
                 const struct memd_explained **ret_explained, struct memd_error *err)
{
    Memd__ExplainRequest request = MEMD__EXPLAIN_REQUEST__INIT;
    request.context_id = context->id;
    request.layer = args->layer;
    request.query = args->query;
    if (wire_target_error(args->target_error, &request.target_error))
        request.target_case = MEMD__EXPLAIN_REQUEST__TARGET_TARGET_ERROR;
    if (wire_max_bytes(args->max_bytes, &request.max_bytes))
        request.budget_case = MEMD__EXPLAIN_REQUEST__BUDGET_MAX_BYTES;
    const void *result = NULL;
    int rc = ticket_ask(context->client,
                        &(struct ticket_question){ METHOD_EXPLAIN, true, &request.base,
                                                   place_explain },
                        &result, err);
    if (rc == 0) *ret_explained = result;
    return rc;
}

/* ---- states ---- */

static int read_state(struct memd_ticket *ticket, const Memd__LayerState *wire,
                      struct memd_layer_state *ret_state)
{
    struct memd_fact *facts = ticket_alloc(ticket, wire->n_facts, sizeof *facts);
    if (facts == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < wire->n_facts; i++)
        facts[i] = (struct memd_fact){ wire->facts[i]->name, wire->facts[i]->value };
    *ret_state = (struct memd_layer_state){ wire->layer, facts, wire->n_facts };
    return 0;
}

static int place_states(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__StatReply *reply = (const Memd__StatReply *)message;
    struct memd_states *result = ticket_result(ticket, 1, sizeof *result);
    struct memd_layer_state *states = ticket_alloc(ticket, reply->n_states, sizeof *states);
    if (result == NULL || states == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < reply->n_states; i++) {
        int rc = read_state(ticket, reply->states[i], &states[i]);
        if (rc < 0) return rc;
    }
    *result = (struct memd_states){ .layers = states, .count = reply->n_states };
    return 0;
}

int memd_states(const struct memd_context *context, const struct memd_states **ret_states,
                struct memd_error *err)
{
    Memd__StatRequest request = MEMD__STAT_REQUEST__INIT;
    request.context_id = context->id;
    request.state = true;
    const void *result = NULL;
    int rc = ticket_ask(context->client,
                        &(struct ticket_question){ METHOD_STAT, true, &request.base,
                                                   place_states },
                        &result, err);
    if (rc == 0) *ret_states = result;
    return rc;
}
