/* SPDX-License-Identifier: Apache-2.0 */
/* op_append.c — take tokens in, answer once they are as safe as was asked.
 *
 * The worker is free as soon as the bytes are in the tail: waiting for the writer is a request in a
 * list, not a thread. The next append of the connection starts meanwhile, so a pipelining client
 * fills whole commit groups. When too much is uncommitted already, the append waits in the same
 * list for its next try: back-pressure on one client must not cost the others their workers.
 */
#include <assert.h>
#include <inttypes.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

static int decode_layer(const struct request *req, const Memd__AppendLayer *in,
                        const struct model *model, struct append_layer *ret_layer,
                        struct error *err)
{
    if (in->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer, model->layers);
    size_t bytes = (size_t)req->frame.payload_bytes;
    struct message_shape shape = { .what = "k", .dtype = model->dtype, .dims = 3,
                                   .shape = { MESSAGE_ANY, model->kv_heads, model->head_dim } };
    struct append_layer layer = { .layer = in->layer, .position = in->position };
    int rc = message_tensor(in->k, req->payload, bytes, &shape, &layer.k, err);
    if (rc < 0) return rc;
    size_t n = layer.k.shape[0];
    if (n == 0) return error_set(err, MEMD_ESHAPE, "layer %u: no tokens", in->layer);
    shape.what = "v";
    shape.shape[0] = n;
    rc = message_tensor(in->v, req->payload, bytes, &shape, &layer.v, err);
    if (rc == 0 && in->q != NULL) {
        shape = (struct message_shape){ .what = "q", .dims = 3,
                                        .shape = { n, model->query_heads, model->head_dim } };
        rc = message_tensor(in->q, req->payload, bytes, &shape, &layer.q, err);
    }
    if (rc < 0) return rc;
    if (in->n_token_ids != 0 && in->n_token_ids != n)
        return error_set(err, MEMD_ESHAPE, "layer %u: %zu token ids for %zu tokens", in->layer,
                         in->n_token_ids, n);
    if (in->n_token_ids != 0) layer.token_ids = in->token_ids;
    *ret_layer = layer;
    return 0;
}

static int decode(struct request *req, const Memd__AppendRequest *in, const struct model *model,
                  struct append_layer **ret_layers, struct error *err)
{
    if (in->n_layers == 0 || in->n_layers > LIMIT_APPEND_LAYERS)
        return error_set(err, MEMD_ELIMIT, "%zu layers, must be 1 … %u", in->n_layers,
                         LIMIT_APPEND_LAYERS);
    struct append_layer *layers = arena_calloc(&req->arena, in->n_layers, sizeof *layers);
    if (layers == NULL) return wire_no_memory(err);
    for (size_t i = 0; i < in->n_layers; i++) {
        int rc = decode_layer(req, in->layers[i], model, &layers[i], err);
        if (rc < 0) return rc;
    }
    *ret_layers = layers;
    return 0;
}

static int answer(struct request *req, const struct progress *progress, struct error *err)
{
    Memd__AppendReply reply = MEMD__APPEND_REPLY__INIT;
    reply.tokens = req->wait.tokens;
    reply.committed_tokens = progress->committed_tokens;
    reply.synced_tokens = progress->synced_tokens;
    return request_reply(req, &reply.base, NULL, 0, err);
}

static int level_of(Memd__Ack ack)
{
    switch (ack) {
    case MEMD__ACK__ACK_MEMORY: return DURABLE_MEMORY;
    case MEMD__ACK__ACK_COMMITTED: return DURABLE_COMMITTED;
    case MEMD__ACK__ACK_SYNCED: return DURABLE_SYNCED;
    default: return -1; /* proto3 lets any number through */
    }
}

static int run(struct request *req, struct error *err)
{
    const Memd__AppendRequest *in = (const Memd__AppendRequest *)req->in;
    int level = level_of(in->ack);
    if (level < 0) return error_set(err, MEMD_EINVAL, "unknown ack %d", (int)in->ack);
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc < 0) return rc;
    struct append_layer *layers = req->wait.decoded;
    if (layers == NULL) rc = decode(req, in, context_model(context), &layers, err);
    if (rc < 0) return rc;
    req->wait.decoded = layers;

    struct progress progress;
    rc = context_append(context, layers, in->n_layers, &progress, err);
    if (rc == MEMD_EBUSY) return OPERATION_AGAIN;
    if (rc < 0) return rc;
    req->wait = (struct request_wait){ .context = context, .sequence = progress.sequence,
                                       .tokens = progress.tokens, .level = level };
    return level == DURABLE_MEMORY ? answer(req, &progress, err) : OPERATION_WAIT;
}

static int poll(struct request *req, struct error *err)
{
    const struct request_wait *wait = &req->wait;
    assert(wait->context != NULL);
    struct progress progress;
    int rc = context_reached(wait->context, wait->sequence, (enum durability)wait->level, &progress,
                             err);
    if (rc < 0) return rc;
    return rc == 0 ? OPERATION_WAIT : answer(req, &progress, err);
}

const struct operation operation_append = { .run = run, .poll = poll, .ordered = true };
