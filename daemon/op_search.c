/* SPDX-License-Identifier: Apache-2.0 */
/* op_search.c — the k best tokens of each query head, for clients that do the arithmetic
 * themselves. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/query.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

struct answer {
    unsigned char *payload;
    uint64_t payload_bytes, ids_offset, scores_offset;
    size_t shape[3]; /* (n, H, k) */
};

static int lay_out(struct request *req, const struct query *query, uint32_t k,
                   struct answer *ret_answer, struct error *err)
{
    struct answer answer = { .shape = { query->q.shape[0], query->q.shape[1], k } };
    /* At most 4096 * 1024 * 65536 entries: no overflow in 64 bits. */
    uint64_t entries = (uint64_t)answer.shape[0] * answer.shape[1] * k;
    if (entries * (sizeof(uint64_t) + sizeof(float)) > LIMIT_FRAME_PAYLOAD_BYTES)
        return error_set(err, MEMD_ELIMIT, "%" PRIu64 " hits exceed a frame; ask for fewer queries",
                         entries);
    answer.ids_offset = message_place(&answer.payload_bytes, (size_t)entries * sizeof(uint64_t));
    answer.scores_offset = message_place(&answer.payload_bytes, (size_t)entries * sizeof(float));
    answer.payload =
        arena_alloc_aligned(&req->arena, (size_t)answer.payload_bytes, LIMIT_PAYLOAD_ALIGN);
    if (answer.payload == NULL) return wire_no_memory(err);
    uint64_t ids_end = answer.ids_offset + entries * sizeof(uint64_t);
    memset(answer.payload + ids_end, 0, answer.scores_offset - ids_end); /* padding leaves too */
    *ret_answer = answer;
    return 0;
}

static int reply_hits(struct request *req, const struct answer *answer,
                      const struct quality *quality, struct error *err)
{
    struct arena *arena = &req->arena;
    Memd__SearchReply reply = MEMD__SEARCH_REPLY__INIT;
    reply.ids = message_make_tensor(arena, DTYPE_U64, 3, answer->shape, answer->ids_offset);
    reply.scores = message_make_tensor(arena, DTYPE_FP32, 3, answer->shape, answer->scores_offset);
    reply.quality = wire_encode_quality(quality, answer->shape[0] * answer->shape[1], arena);
    if (reply.ids == NULL || reply.scores == NULL || reply.quality == NULL)
        return wire_no_memory(err);
    return request_reply(req, &reply.base, answer->payload, (size_t)answer->payload_bytes, err);
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

    struct answer answer;
    rc = lay_out(req, &query, in->k, &answer, err);
    if (rc < 0) return rc;
    struct index_hits hits = { .ids = (uint64_t *)(void *)(answer.payload + answer.ids_offset),
                               .scores = (float *)(void *)(answer.payload + answer.scores_offset),
                               .k = in->k };
    struct quality quality = { 0 };
    rc = context_search(context, &query, &req->arena, &hits, &quality, err);
    return rc < 0 ? rc : reply_hits(req, &answer, &quality, err);
}

const struct operation operation_search = { .run = run };
