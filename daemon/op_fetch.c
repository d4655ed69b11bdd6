/* SPDX-License-Identifier: Apache-2.0 */
/* op_fetch.c — rows by position, bit for bit as they were appended. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

enum { PARTS_MAX = 2 };

/* What comes back of all rows: K and V, or states. */
struct answer {
    Memd__FetchReply reply;
    struct region_answer memory;
    size_t count; /* of parts, each of `bytes` at `offset`, and where it goes from there */
    struct region_place into[PARTS_MAX];
    uint64_t offset[PARTS_MAX];
    size_t bytes;
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

static int lay_out(struct request *req, const Memd__FetchRequest *in, const struct context *context,
                   struct answer *answer, struct error *err)
{
    const struct model *model = context_model(context);
    size_t width = context_state_width(context);
    bool states = width > 0;
    struct message_shape shape = { .what = "into_k",
                                   .dtype = model->dtype,
                                   .dims = 3,
                                   .shape = { in->n_ids, model->kv_heads, model->head_dim } };
    if (states)
        shape = (struct message_shape){
            .what = "into_states", .dtype = model->dtype, .dims = 2, .shape = { in->n_ids, width }
        };
    const Memd__Tensor *into[PARTS_MAX] = { states ? in->into_states : in->into_k, in->into_v };
    Memd__Tensor **wires[PARTS_MAX] = { states ? &answer->reply.states : &answer->reply.k,
                                        &answer->reply.v };
    answer->bytes = dtype_bytes(model->dtype);
    for (uint32_t i = 0; i < shape.dims; i++) answer->bytes *= shape.shape[i];
    size_t count = states ? 1 : PARTS_MAX;
    answer->count = count;
    for (size_t i = 0; i < count; i++) {
        struct region_place *place = &answer->into[i];
        int rc = region_place(req, into[i], &shape, place, err);
        if (rc < 0) return rc;
        answer->offset[i] = region_lay(&answer->memory, place, answer->bytes);
        *wires[i] = region_name(place, message_make_tensor(&req->arena, model->dtype, shape.dims,
                                                           shape.shape, answer->offset[i]));
        if (*wires[i] == NULL) return wire_no_memory(err);
        shape.what = "into_v";
    }
    int rc = region_make_room(&answer->memory, &req->arena, err);
    if (rc < 0) return rc;
    void *first = region_memory(&answer->memory, &answer->into[0], answer->offset[0]);
    void *second = region_memory(&answer->memory, &answer->into[1], answer->offset[1]);
    answer->out = states ? (struct fetch_out){ .states = first }
                         : (struct fetch_out){ .k = first, .v = second };
    return 0;
}

/* What was read, to where the client wants it. */
static int hand_over(const struct answer *answer, struct error *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < answer->count; i++)
        rc = region_write(&answer->into[i],
                          region_memory(&answer->memory, &answer->into[i], answer->offset[i]),
                          answer->bytes, err);
    return rc;
}

static int run(struct request *req, struct error *err)
{
    const Memd__FetchRequest *in = (const Memd__FetchRequest *)req->in;
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc == 0) rc = check(in, context, err);
    if (rc < 0) return rc;
    struct answer answer = { .reply = MEMD__FETCH_REPLY__INIT };
    rc = lay_out(req, in, context, &answer, err);
    if (rc < 0) return rc;
    uint32_t *ids = arena_calloc(&req->arena, in->n_ids, sizeof *ids);
    if (ids == NULL) return wire_no_memory(err);
    answer.out.token_ids = answer.reply.token_ids = ids;
    rc = context_fetch(context, in->layer, in->ids, in->n_ids, &answer.out, err);
    if (rc == 0) rc = hand_over(&answer, err);
    if (rc < 0) return rc;
    answer.reply.n_token_ids = answer.out.has_ids ? in->n_ids : 0;
    return request_reply(req, &answer.reply.base, answer.memory.payload,
                         (size_t)answer.memory.payload_bytes, err);
}

const struct operation operation_fetch = { .run = run };
