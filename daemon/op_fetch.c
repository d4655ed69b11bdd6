/* SPDX-License-Identifier: Apache-2.0 */
/* op_fetch.c — rows by position, bit for bit as they were appended. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

/* What comes back of each row: K and V, or its state. */
struct answer {
    Memd__FetchReply reply;
    unsigned char *payload;
    uint64_t payload_bytes;
    struct fetch_out out;
};

static int check(const Memd__FetchRequest *in, const struct context *context, struct error *err)
{
    const struct model *model = context_model(context);
    if (in->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer, model->layers);
    if (in->n_ids == 0 || in->n_ids > LIMIT_FETCH_IDS)
        return error_set(err, MEMD_ELIMIT, "%zu ids, must be 1 … %u", in->n_ids, LIMIT_FETCH_IDS);
    size_t element = dtype_bytes(model->dtype), width = context_state_width(context);
    uint64_t row = width > 0 ? width * element : model_token_bytes(model, element);
    if (in->n_ids * row > LIMIT_FRAME_PAYLOAD_BYTES - 2 * LIMIT_PAYLOAD_ALIGN)
        return error_set(err, MEMD_ELIMIT,
                         "rows of %" PRIu64 " bytes exceed a frame; ask for fewer",
                         in->n_ids * row);
    return 0;
}

/* NULL when the arena is full. */
static unsigned char *new_payload(struct request *req, struct answer *answer)
{
    answer->payload = arena_alloc_aligned(&req->arena, (size_t)answer->payload_bytes,
                                          LIMIT_PAYLOAD_ALIGN);
    /* Padding leaves the process too: nobody else's bytes in it. */
    if (answer->payload != NULL) memset(answer->payload, 0, (size_t)answer->payload_bytes);
    return answer->payload;
}

static bool lay_out_states(struct request *req, size_t count, const struct context *context,
                           struct answer *answer)
{
    uint32_t dtype = context_model(context)->dtype;
    size_t shape[2] = { count, context_state_width(context) };
    uint64_t at = message_place(&answer->payload_bytes,
                                shape[0] * shape[1] * dtype_bytes(dtype));
    answer->reply.states = message_make_tensor(&req->arena, dtype, 2, shape, at);
    if (new_payload(req, answer) == NULL) return false;
    answer->out.states = answer->payload + at;
    return answer->reply.states != NULL;
}

static bool lay_out_rows(struct request *req, size_t count, const struct context *context,
                         struct answer *answer)
{
    const struct model *model = context_model(context);
    size_t shape[3] = { count, model->kv_heads, model->head_dim };
    size_t bytes = count * model_token_bytes(model, dtype_bytes(model->dtype)) / 2;
    uint64_t k_at = message_place(&answer->payload_bytes, bytes);
    uint64_t v_at = message_place(&answer->payload_bytes, bytes);
    answer->reply.k = message_make_tensor(&req->arena, model->dtype, 3, shape, k_at);
    answer->reply.v = message_make_tensor(&req->arena, model->dtype, 3, shape, v_at);
    if (new_payload(req, answer) == NULL) return false;
    answer->out.k = answer->payload + k_at;
    answer->out.v = answer->payload + v_at;
    return answer->reply.k != NULL && answer->reply.v != NULL;
}

static int run(struct request *req, struct error *err)
{
    const Memd__FetchRequest *in = (const Memd__FetchRequest *)req->in;
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc == 0) rc = check(in, context, err);
    if (rc < 0) return rc;
    struct answer answer = { .reply = MEMD__FETCH_REPLY__INIT };
    bool states = context_state_width(context) > 0;
    bool room = states ? lay_out_states(req, in->n_ids, context, &answer)
                       : lay_out_rows(req, in->n_ids, context, &answer);
    uint32_t *ids = arena_calloc(&req->arena, in->n_ids, sizeof *ids);
    if (!room || ids == NULL) return wire_no_memory(err);
    answer.out.token_ids = answer.reply.token_ids = ids;
    rc = context_fetch(context, in->layer, in->ids, in->n_ids, &answer.out, err);
    if (rc < 0) return rc;
    answer.reply.n_token_ids = answer.out.has_ids ? in->n_ids : 0;
    return request_reply(req, &answer.reply.base, answer.payload, (size_t)answer.payload_bytes,
                         err);
}

const struct operation operation_fetch = { .run = run };
