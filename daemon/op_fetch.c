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

static int check(const Memd__FetchRequest *in, const struct model *model, struct error *err)
{
    if (in->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer, model->layers);
    if (in->n_ids == 0 || in->n_ids > LIMIT_FETCH_IDS)
        return error_set(err, MEMD_ELIMIT, "%zu ids, must be 1 … %u", in->n_ids, LIMIT_FETCH_IDS);
    uint64_t bytes = in->n_ids * model_token_bytes(model, dtype_bytes(model->dtype));
    if (bytes > LIMIT_FRAME_PAYLOAD_BYTES - 2 * LIMIT_PAYLOAD_ALIGN)
        return error_set(err, MEMD_ELIMIT,
                         "rows of %" PRIu64 " bytes exceed a frame; ask for fewer", bytes);
    return 0;
}

static int run(struct request *req, struct error *err)
{
    const Memd__FetchRequest *in = (const Memd__FetchRequest *)req->in;
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc < 0) return rc;
    const struct model *model = context_model(context);
    rc = check(in, model, err);
    if (rc < 0) return rc;

    size_t shape[3] = { in->n_ids, model->kv_heads, model->head_dim };
    size_t bytes = in->n_ids * model_token_bytes(model, dtype_bytes(model->dtype)) / 2;
    uint64_t total = 0;
    uint64_t k_offset = message_place(&total, bytes), v_offset = message_place(&total, bytes);
    unsigned char *payload = arena_alloc_aligned(&req->arena, (size_t)total, LIMIT_PAYLOAD_ALIGN);
    Memd__FetchReply reply = MEMD__FETCH_REPLY__INIT;
    reply.k = message_make_tensor(&req->arena, model->dtype, 3, shape, k_offset);
    reply.v = message_make_tensor(&req->arena, model->dtype, 3, shape, v_offset);
    reply.token_ids = arena_calloc(&req->arena, in->n_ids, sizeof *reply.token_ids);
    if (payload == NULL || reply.k == NULL || reply.v == NULL || reply.token_ids == NULL)
        return wire_no_memory(err);
    memset(payload + k_offset + bytes, 0, v_offset - k_offset - bytes); /* padding leaves too */

    struct fetch_out out = { .k = payload + k_offset, .v = payload + v_offset,
                             .token_ids = reply.token_ids };
    rc = context_fetch(context, in->layer, in->ids, in->n_ids, &out, err);
    if (rc < 0) return rc;
    reply.n_token_ids = out.has_ids ? in->n_ids : 0;
    return request_reply(req, &reply.base, payload, (size_t)total, err);
}

const struct operation operation_fetch = { .run = run };
