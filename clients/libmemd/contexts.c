/* SPDX-License-Identifier: Apache-2.0 */
/* contexts.c — open, truncate, fork, drop, pin, stat, list: small messages, no payload.
 *
 * Calls that return a number or two read them from the reply that `place` has kept and free the
 * ticket at once; calls that return a structure hand the ticket over inside the result.
 */
#include <assert.h>

#include "clients/libmemd/client.h"
#include "clients/libmemd/wire.h"
#include "proto/limits.h"
#include "proto/method.h"

/* The reply as it is: for calls that take single fields of it. */
static int place_reply(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    ticket->result = message;
    return 0;
}

/* Send `request` and return its ticket; NULL, *ret_rc and err on failure. `rc` is what building it
 * gave. */
static struct memd_ticket *ask(struct memd_ticket *ticket, int rc, const ProtobufCMessage *request,
                               int *ret_rc, struct memd_error *err)
{
    if (ticket != NULL && rc == 0) {
        ticket->place = place_reply;
        rc = ticket_pack(ticket, request);
    }
    *ret_rc = ticket_call(ticket, rc, err);
    return *ret_rc < 0 ? NULL : ticket;
}

/* ---- open ---- */

static int check_new(struct memd_ticket *ticket, const char *name, size_t parameter_count)
{
    if (name == NULL || !message_name_ok(name))
        return error_set(&ticket->err, MEMD_EINVAL,
                         "a context name is 1 to %u bytes of UTF-8 without "
                         "control characters",
                         LIMIT_NAME_BYTES);
    if (parameter_count > LIMIT_PARAMETERS)
        return error_set(&ticket->err, MEMD_ELIMIT, "%zu parameters, at most %u", parameter_count,
                         LIMIT_PARAMETERS);
    return 0;
}

static int build_open(struct memd_ticket *ticket, const struct memd_open *args,
                      Memd__OpenRequest *request)
{
    int rc = check_new(ticket, args->name, args->parameter_count);
    if (rc < 0) return rc;
    request->name = (char *)args->name;
    if (args->method != NULL) request->method = (char *)args->method;
    request->create = args->create || args->must_create;
    request->must_create = args->must_create;
    request->n_parameters = args->parameter_count;
    request->parameters = wire_parameters(ticket, args->parameters, args->parameter_count);
    if (request->parameters == NULL) return MEMD_ENOMEM;
    if (args->model == NULL) return 0;
    request->model = wire_model(ticket, args->model);
    return request->model == NULL ? MEMD_ENOMEM : 0;
}

static int read_open(const struct memd_ticket *ticket, struct memd_context *ret_context,
                     struct memd_error *err)
{
    const Memd__OpenReply *reply = ticket->result;
    const Memd__Model *model = reply->model;
    if (model == NULL || model->kv_heads == 0 || model->query_heads == 0 || model->head_dim == 0) {
        struct error detail;
        return ticket_report(error_set(&detail, MEMD_EPROTO, "the reply to open has no model"),
                             &detail, err);
    }
    *ret_context = (struct memd_context){
        .client = ticket->client,
        .id = reply->context_id,
        .layers = model->layers,
        .query_heads = model->query_heads,
        .kv_heads = model->kv_heads,
        .head_dim = model->head_dim,
        .dtype = (enum memd_dtype)model->dtype,
        .tokens = reply->tokens,
        .synced_tokens = reply->synced_tokens,
        .created = reply->created,
        .state_width = (uint32_t)reply->state_width,
    };
    return 0;
}

int memd_open(struct memd_client *client, const struct memd_open *args,
              struct memd_context *ret_context, struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(client, METHOD_OPEN, 0);
    Memd__OpenRequest request = MEMD__OPEN_REQUEST__INIT;
    int rc = ticket == NULL ? 0 : build_open(ticket, args, &request);
    if (ticket != NULL) ticket->repeatable = !args->must_create;
    ticket = ask(ticket, rc, &request.base, &rc, err);
    if (ticket == NULL) return rc;
    rc = read_open(ticket, ret_context, err);
    memd_ticket_free(ticket);
    return rc;
}

/* ---- one context ---- */

int memd_truncate(const struct memd_context *context, uint64_t position, uint64_t *ret_tokens,
                  struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_TRUNCATE, 0);
    if (ticket != NULL) ticket->repeatable = false; /* somebody may have appended in between */
    Memd__TruncateRequest request = MEMD__TRUNCATE_REQUEST__INIT;
    request.context_id = context->id;
    request.position = position;
    int rc = 0;
    ticket = ask(ticket, 0, &request.base, &rc, err);
    if (ticket == NULL) return rc;
    if (ret_tokens != NULL) *ret_tokens = ((const Memd__TruncateReply *)ticket->result)->tokens;
    memd_ticket_free(ticket);
    return 0;
}

static int build_fork(struct memd_ticket *ticket, const struct memd_fork *args,
                      Memd__ForkRequest *request)
{
    int rc = check_new(ticket, args->name, args->parameter_count);
    if (rc < 0) return rc;
    request->name = (char *)args->name;
    if (args->method != NULL) request->method = (char *)args->method;
    request->n_parameters = args->parameter_count;
    request->parameters = wire_parameters(ticket, args->parameters, args->parameter_count);
    return request->parameters == NULL ? MEMD_ENOMEM : 0;
}

int memd_fork(const struct memd_context *context, const struct memd_fork *args,
              struct memd_context *ret_fork, struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_FORK, 0);
    if (ticket != NULL) ticket->repeatable = false;
    Memd__ForkRequest request = MEMD__FORK_REQUEST__INIT;
    request.context_id = context->id;
    int rc = ticket == NULL ? 0 : build_fork(ticket, args, &request);
    ticket = ask(ticket, rc, &request.base, &rc, err);
    if (ticket == NULL) return rc;
    const Memd__ForkReply *reply = ticket->result;
    if (ret_fork != NULL) {
        *ret_fork = *context;
        ret_fork->id = reply->context_id;
        ret_fork->tokens = reply->tokens;
        ret_fork->synced_tokens = 0; /* not told; memd_stat knows */
        ret_fork->created = true;
    }
    memd_ticket_free(ticket);
    return 0;
}

int memd_drop(const struct memd_context *context, uint64_t *ret_bytes, struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_DROP, 0);
    if (ticket != NULL) ticket->repeatable = false;
    Memd__DropRequest request = MEMD__DROP_REQUEST__INIT;
    request.context_id = context->id;
    int rc = 0;
    ticket = ask(ticket, 0, &request.base, &rc, err);
    if (ticket == NULL) return rc;
    if (ret_bytes != NULL) *ret_bytes = ((const Memd__DropReply *)ticket->result)->bytes;
    memd_ticket_free(ticket);
    return 0;
}

int memd_pin(const struct memd_context *context, uint64_t seconds, uint64_t *ret_until_unix_ms,
             struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_PIN, 0);
    Memd__PinRequest request = MEMD__PIN_REQUEST__INIT;
    request.context_id = context->id;
    request.seconds = seconds;
    int rc = 0;
    ticket = ask(ticket, 0, &request.base, &rc, err);
    if (ticket == NULL) return rc;
    if (ret_until_unix_ms != NULL)
        *ret_until_unix_ms = ((const Memd__PinReply *)ticket->result)->until_unix_ms;
    memd_ticket_free(ticket);
    return 0;
}

/* ---- stat and list ---- */

static int place_stat(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__StatReply *reply = (const Memd__StatReply *)message;
    if (reply->context == NULL)
        return error_set(&ticket->err, MEMD_EPROTO, "the reply to stat has no context");
    struct memd_info *info = ticket_result(ticket, 1, sizeof *info);
    return info == NULL ? MEMD_ENOMEM : wire_read_info(ticket, reply->context, info);
}

static int stat_request(struct memd_client *client, const Memd__StatRequest *request,
                        const struct memd_info **ret_info, struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(client, METHOD_STAT, 0);
    int rc = 0;
    if (ticket != NULL) {
        ticket->place = place_stat;
        rc = ticket_pack(ticket, &request->base);
    }
    rc = ticket_call(ticket, rc, err);
    if (rc == 0) *ret_info = ticket->result;
    return rc;
}

int memd_stat(const struct memd_context *context, const struct memd_info **ret_info,
              struct memd_error *err)
{
    Memd__StatRequest request = MEMD__STAT_REQUEST__INIT;
    request.context_id = context->id;
    return stat_request(context->client, &request, ret_info, err);
}

int memd_stat_name(struct memd_client *client, const char *name, const struct memd_info **ret_info,
                   struct memd_error *err)
{
    Memd__StatRequest request = MEMD__STAT_REQUEST__INIT;
    request.name = (char *)name;
    return stat_request(client, &request, ret_info, err);
}

static int place_list(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__ListReply *reply = (const Memd__ListReply *)message;
    struct memd_list *list = ticket_result(ticket, 1, sizeof *list);
    struct memd_info *infos = ticket_alloc(ticket, reply->n_contexts, sizeof *infos);
    if (list == NULL || infos == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < reply->n_contexts; i++) {
        int rc = wire_read_info(ticket, reply->contexts[i], &infos[i]);
        if (rc < 0) return rc;
    }
    *list =
        (struct memd_list){ .contexts = infos, .count = reply->n_contexts, .more = reply->more };
    return 0;
}

int memd_list(struct memd_client *client, const struct memd_list_args *args,
              const struct memd_list **ret_list, struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(client, METHOD_LIST, 0);
    Memd__ListRequest request = MEMD__LIST_REQUEST__INIT;
    if (args->prefix != NULL) request.prefix = (char *)args->prefix;
    if (args->after != NULL) request.after = (char *)args->after;
    request.limit = args->limit == 0 ? LIMIT_LIST : args->limit;
    int rc = 0;
    if (ticket != NULL) {
        ticket->place = place_list;
        rc = ticket_pack(ticket, &request.base);
    }
    rc = ticket_call(ticket, rc, err);
    if (rc == 0) *ret_list = ticket->result;
    return rc;
}
