/* SPDX-License-Identifier: Apache-2.0 */
/* op_stat.c — one context, by number or by name; and, for those who ask, what its method has made
 * of it. That loads the context, which a look at its numbers does not. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "index/fold.h"
#include "memory/context.h"

static int find(struct request *req, const Memd__StatRequest *in, uint64_t *ret_id,
                struct error *err)
{
    bool named = in->name[0] != '\0';
    if (named == (in->context_id != 0))
        return error_set(err, MEMD_EINVAL, "stat needs either a context id or a name");
    if (!named) {
        *ret_id = in->context_id;
        return 0;
    }
    if (!message_name_ok(in->name))
        return error_set(err, MEMD_EINVAL, "not a context name");
    return catalog_find(req->server->catalog, in->name, ret_id, err);
}

/* What the state of one layer is like; *ret_state NULL where there is none. */
static int describe(struct request *req, struct context *context, uint32_t layer,
                    Memd__LayerState **ret_state, struct error *err)
{
    struct fold_fact facts[CONTEXT_FACTS_MAX];
    *ret_state = NULL;
    int count = context_describe(context, layer, facts, err);
    if (count <= 0) return count;
    Memd__LayerState *state = arena_alloc(&req->arena, sizeof *state);
    Memd__StateFact *wires = arena_calloc(&req->arena, (size_t)count, sizeof *wires);
    Memd__StateFact **list = arena_calloc(&req->arena, (size_t)count, sizeof(Memd__StateFact *));
    if (state == NULL || wires == NULL || list == NULL) return wire_no_memory(err);
    *state = (Memd__LayerState)MEMD__LAYER_STATE__INIT;
    for (int i = 0; i < count; i++) {
        wires[i] = (Memd__StateFact)MEMD__STATE_FACT__INIT;
        wires[i].name = (char *)facts[i].name;
        wires[i].value = facts[i].value;
        list[i] = &wires[i];
    }
    state->layer = layer;
    state->facts = list;
    state->n_facts = (size_t)count;
    *ret_state = state;
    return 0;
}

/* Layers that hold nothing are left out: they have no state to be described. */
static int describe_layers(struct request *req, uint64_t id, Memd__StatReply *reply,
                           struct error *err)
{
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, id, &req->arena, &context, err);
    if (rc < 0) return rc;
    uint32_t layers = context_model(context)->layers;
    reply->states = arena_calloc(&req->arena, layers, sizeof(Memd__LayerState *));
    if (reply->states == NULL) return wire_no_memory(err);
    for (uint32_t layer = 0; layer < layers; layer++) {
        if (context_layer_tokens(context, layer) == 0) continue;
        Memd__LayerState *state = NULL;
        rc = request_stop(req);
        if (rc < 0) return error_set(err, rc, "stat: %s", error_text(rc));
        rc = describe(req, context, layer, &state, err);
        if (rc < 0) return rc;
        if (state != NULL) reply->states[reply->n_states++] = state;
    }
    return 0;
}

static int run(struct request *req, struct error *err)
{
    const Memd__StatRequest *in = (const Memd__StatRequest *)req->in;
    Memd__StatReply reply = MEMD__STAT_REPLY__INIT;
    uint64_t id = 0;
    int rc = find(req, in, &id, err);
    if (rc == 0 && in->state) rc = describe_layers(req, id, &reply, err);
    struct context_info info;
    if (rc == 0) rc = catalog_stat(req->server->catalog, id, &req->arena, &info, err);
    if (rc < 0) return rc;
    reply.context = wire_encode_info(&info, &req->arena);
    if (reply.context == NULL) return wire_no_memory(err);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_stat = { .run = run };
