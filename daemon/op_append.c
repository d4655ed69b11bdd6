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
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "index/columns.h"
#include "memory/context.h"

/* A part as it arrives, and what its tensors are checked against. */
struct decoding {
    struct request *req;
    const Memd__AppendLayer *in;
    const struct model *model;
    size_t state_width; /* 0: the context keeps rows */
    struct context *context;
};

static int take(const struct decoding *decoding, const Memd__Tensor *wire,
                const struct message_shape *shape, struct tensor *ret_tensor, struct error *err)
{
    return region_tensor(decoding->req, wire, shape, ret_tensor, err);
}

/* What the tokens are stored as: k and v, or a state. */
static int decode_rows(const struct decoding *decoding, struct append_layer *layer, size_t *ret_n,
                       struct error *err)
{
    const Memd__AppendLayer *in = decoding->in;
    const struct model *model = decoding->model;
    struct message_shape shape = { .what = "k", .dtype = model->dtype, .dims = 3,
                                   .shape = { MESSAGE_ANY, model->kv_heads, model->head_dim } };
    int rc = 0;
    if (decoding->state_width == 0 && in->states != NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "states, but this context keeps keys and values");
    if (decoding->state_width == 0) {
        rc = take(decoding, in->k, &shape, &layer->k, err);
        shape.what = "v";
        shape.shape[0] = layer->k.shape[0];
        if (rc == 0) rc = take(decoding, in->v, &shape, &layer->v, err);
    } else {
        if (in->k != NULL || in->v != NULL)
            return error_set(err, MEMD_ESHAPE, "k or v, but this context keeps states");
        shape = (struct message_shape){ .what = "states",
                                        .dtype = model->dtype,
                                        .dims = 2,
                                        .shape = { MESSAGE_ANY, MESSAGE_ANY } };
        rc = take(decoding, in->states, &shape, &layer->states, err);
        if (rc == 0)
            rc = context_encode_states(decoding->context, in->layer, &decoding->req->arena,
                                       &layer->states, err);
    }
    if (rc < 0) return rc;
    *ret_n = layer->k.dims != 0 ? layer->k.shape[0] : layer->states.shape[0];
    return 0;
}

/* What comes with the tokens, all of it optional here: the method knows what it needs. */
static int decode_columns(const struct decoding *decoding, size_t n, struct append_layer *layer,
                          struct error *err)
{
    const Memd__AppendLayer *in = decoding->in;
    const struct model *model = decoding->model;
    struct message_shape shape = { .what = "q", .dims = 3,
                                   .shape = { n, model->query_heads, model->head_dim } };
    int rc = in->q == NULL ? 0 : take(decoding, in->q, &shape, &layer->q, err);
    shape.what = "scores";
    shape.dims = 2;
    if (rc == 0 && in->scores != NULL) rc = take(decoding, in->scores, &shape, &layer->scores, err);
    if (rc < 0) return rc;
    if (in->n_token_ids != 0 && in->n_token_ids != n)
        return error_set(err, MEMD_ESHAPE, "layer %u: %zu token ids for %zu tokens", in->layer,
                         in->n_token_ids, n);
    if (in->n_token_ids != 0) layer->token_ids = in->token_ids;
    if (in->marks.len != 0 && in->marks.len != n)
        return error_set(err, MEMD_ESHAPE, "layer %u: %zu marks for %zu tokens", in->layer,
                         in->marks.len, n);
    for (size_t i = 0; i < in->marks.len; i++)
        if ((in->marks.data[i] & ~MARKS_ALL) != 0)
            return error_set(err, MEMD_EINVAL, "layer %u: mark %u of token %zu, bits up to %u",
                             in->layer, in->marks.data[i], i, MARKS_ALL);
    if (in->marks.len != 0) layer->marks = in->marks.data;
    return 0;
}

static int decode_layer(const struct decoding *decoding, struct append_layer *ret_layer,
                        struct error *err)
{
    const Memd__AppendLayer *in = decoding->in;
    if (in->layer >= decoding->model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer,
                         decoding->model->layers);
    struct append_layer layer = { .layer = in->layer, .position = in->position };
    size_t n = 0;
    int rc = decode_rows(decoding, &layer, &n, err);
    if (rc == 0) rc = decode_columns(decoding, n, &layer, err);
    if (rc == 0) *ret_layer = layer;
    return rc;
}

static int decode(struct request *req, const Memd__AppendRequest *in, struct context *context,
                  struct append_layer **ret_layers, struct error *err)
{
    if (in->n_layers == 0 || in->n_layers > LIMIT_APPEND_LAYERS)
        return error_set(err, MEMD_ELIMIT, "%zu layers, must be 1 … %u", in->n_layers,
                         LIMIT_APPEND_LAYERS);
    struct append_layer *layers = arena_calloc(&req->arena, in->n_layers, sizeof *layers);
    if (layers == NULL) return wire_no_memory(err);
    struct decoding decoding = { .req = req,
                                 .model = context_model(context),
                                 .state_width = context_state_width(context),
                                 .context = context };
    for (size_t i = 0; i < in->n_layers; i++) {
        decoding.in = in->layers[i];
        int rc = decode_layer(&decoding, &layers[i], err);
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
    if (layers == NULL) rc = decode(req, in, context, &layers, err);
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
