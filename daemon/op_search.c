/* SPDX-License-Identifier: Apache-2.0 */
/* op_search.c — the k best tokens of each query head, for clients that do the arithmetic
 * themselves. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/query.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

struct answer {
    struct region_answer memory;
    uint64_t ids_offset, scores_offset;
    struct region_place into_ids, into_scores; /* where they go, if it is not the frame */
    size_t shape[3];                           /* (n, H, k) */
};

static int lay_out(struct request *req, const Memd__SearchRequest *in, struct answer *answer,
                   struct error *err)
{
    struct message_shape shape = { .what = "into_ids",
                                   .dtype = DTYPE_U64,
                                   .dims = 3,
                                   .shape = { answer->shape[0], answer->shape[1],
                                              answer->shape[2] } };
    int rc = region_place(req, in->into_ids, &shape, &answer->into_ids, err);
    shape.what = "into_scores";
    shape.dtype = DTYPE_FP32;
    if (rc == 0) rc = region_place(req, in->into_scores, &shape, &answer->into_scores, err);
    if (rc < 0) return rc;
    /* At most 4096 * 1024 * 65536 entries: no overflow in 64 bits. */
    uint64_t entries = (uint64_t)answer->shape[0] * answer->shape[1] * answer->shape[2];
    if (entries * (sizeof(uint64_t) + sizeof(float)) > LIMIT_FRAME_PAYLOAD_BYTES)
        return error_set(err, MEMD_ELIMIT, "%" PRIu64 " hits exceed a frame; ask for fewer queries",
                         entries);
    struct region_answer *memory = &answer->memory;
    answer->ids_offset = region_lay(memory, &answer->into_ids, (size_t)entries * sizeof(uint64_t));
    answer->scores_offset = region_lay(memory, &answer->into_scores,
                                       (size_t)entries * sizeof(float));
    return region_make_room(memory, &req->arena, err);
}

/* What was found, to where the client reads it. */
static int hand_over(const struct answer *answer, const struct index_hits *hits, struct error *err)
{
    size_t entries = answer->shape[0] * answer->shape[1] * answer->shape[2];
    int rc = region_write(&answer->into_ids, hits->ids, entries * sizeof *hits->ids, err);
    if (rc < 0) return rc;
    return region_write(&answer->into_scores, hits->scores, entries * sizeof *hits->scores, err);
}

static int reply_hits(struct request *req, const struct answer *answer,
                      const struct quality *quality, struct error *err)
{
    struct arena *arena = &req->arena;
    Memd__SearchReply reply = MEMD__SEARCH_REPLY__INIT;
    reply.ids = region_name(
        &answer->into_ids,
        message_make_tensor(arena, DTYPE_U64, 3, answer->shape, answer->ids_offset));
    reply.scores = region_name(
        &answer->into_scores,
        message_make_tensor(arena, DTYPE_FP32, 3, answer->shape, answer->scores_offset));
    reply.quality = wire_encode_quality(quality, answer->shape[0] * answer->shape[1], arena);
    if (reply.ids == NULL || reply.scores == NULL || reply.quality == NULL)
        return wire_no_memory(err);
    return request_reply(req, &reply.base, answer->memory.payload,
                         (size_t)answer->memory.payload_bytes, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__SearchRequest *in = (const Memd__SearchRequest *)req->in;
    if (in->k == 0 || in->k > LIMIT_TOP_K)
        return error_set(err, MEMD_ELIMIT, "k = %u, must be 1 … %u", in->k, LIMIT_TOP_K);
    struct context *context = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc < 0) return rc;
    struct query_message message = { .layer = in->layer, .q = in->q, .positions = in->positions,
                                     .limits = in->limits, .position_count = in->n_positions,
                                     .limit_count = in->n_limits,
                                     .wish = QUERY_WISH(in, MEMD__SEARCH_REQUEST),
                                     .states = in->states };
    struct query query;
    rc = query_decode(req, &message, context, &query, err);
    if (rc < 0) return rc;

    struct answer answer = { .shape = { query.q.shape[0], query.q.shape[1], in->k } };
    rc = lay_out(req, in, &answer, err);
    if (rc < 0) return rc;
    const struct region_answer *memory = &answer.memory;
    struct index_hits hits = {
        .ids = region_memory(memory, &answer.into_ids, answer.ids_offset),
        .scores = region_memory(memory, &answer.into_scores, answer.scores_offset),
        .k = in->k,
    };
    struct quality quality = { 0 };
    rc = context_search(context, &query, &req->arena, &hits, &quality, err);
    if (rc == 0) rc = hand_over(&answer, &hits, err);
    return rc < 0 ? rc : reply_hits(req, &answer, &quality, err);
}

const struct operation operation_search = { .run = run };
