/* SPDX-License-Identifier: Apache-2.0 */
/* op_attend.c — the answer memd is for: partial attention for one or many contexts.
 *
 * Items fail alone: each has its own status. They are pinned and checked one after another (so that
 * the reply's payload can be laid out), then computed side by side. An item of a batch has an arena
 * of its own, since an arena belongs to one thread, and gives it back as soon as it is computed: so
 * no more than one per thread is in use (the workers, and who asks), and each may have its
 * thread's share of the request's memory however many items there are. A single item uses the
 * request's arena.
 *
 * Items that a device answers are one batch there, whatever their contexts and layers; what is left
 * is computed by the threads.
 *
 * An answer that goes into memory that the client shares is computed in ours and copied there at
 * once, by the thread that computed it; the frame then only names it.
 *
 * An item may bring the client's own answer over its window, and may ask for its reading plan. Both
 * are rare and never answered by the loop; plans stay until the reply is packed, so few items of a
 * request may ask for one.
 *
 * Whether the loop answers itself is decided by the bytes that would be read (docs/decisions/0020):
 * below INLINE_BYTES a thread hop costs more than the answer.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "daemon/answers.h"
#include "daemon/dispatch.h"
#include "daemon/query.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "index/plan.h"
#include "memory/context.h"

enum {
    INLINE_TOKENS = 512,            /* fewer than a segment: nothing of it is on the disk */
    INLINE_BYTES = 32 << 10,        /* of K and V times queries: some microseconds */
    INLINE_PAYLOAD_BYTES = 64 << 10,
    INLINE_ITEMS = 8,
};

struct item {
    struct context *context; /* NULL when it could not be pinned */
    struct query query;
    struct partial part;                  /* in the batch's answer */
    struct region_place into_o, into_lse; /* where it goes from there */
    uint64_t o_offset, lse_offset;
    struct partial local;    /* of the request's payload */
    struct plan plan;
    struct quality quality;
    struct arena own;        /* of a batch */
    struct arena *arena;     /* own, or the request's */
    bool answered;
    int status;
    struct error err;
};

struct batch {
    struct request *req;
    const Memd__AttendRequest *in;
    struct item *items;
    size_t count;
    struct region_answer answer;
};

static struct query_message message_of(const Memd__AttendItem *in)
{
    return (struct query_message){ .layer = in->layer, .q = in->q, .positions = in->positions,
                                   .limits = in->limits, .position_count = in->n_positions,
                                   .limit_count = in->n_limits,
                                   .wish = QUERY_WISH(in, MEMD__ATTEND_ITEM),
                                   .states = in->states };
}

/* The client's own partial, if there is one. */
static int decode_local(struct request *req, const Memd__AttendItem *in, struct item *item)
{
    if (in->local_o == NULL && in->local_lse == NULL) return 0;
    const struct tensor *q = &item->query.q;
    struct message_shape shape = { .what = "local_o", .dtype = DTYPE_FP32, .dims = 3,
                                   .shape = { q->shape[0], q->shape[1], q->shape[2] } };
    struct tensor o, lse;
    int rc = region_tensor(req, in->local_o, &shape, &o, &item->err);
    shape.what = "local_lse";
    shape.dims = 2;
    if (rc == 0) rc = region_tensor(req, in->local_lse, &shape, &lse, &item->err);
    if (rc < 0) return rc;
    item->local = (struct partial){ .o = (float *)(uintptr_t)o.data,
                                    .lse = (float *)(uintptr_t)lse.data,
                                    .rows = q->shape[0] * q->shape[1], .head_dim = q->shape[2] };
    item->query.local = &item->local;
    return 0;
}

static int decode_window(const Memd__AttendItem *in, struct item *item)
{
    switch (in->window) {
    case MEMD__WINDOW__WINDOW_ANY: item->query.window = QUERY_WINDOW_ANY; return 0;
    case MEMD__WINDOW__WINDOW_RESIDENT: item->query.window = QUERY_WINDOW_RESIDENT; return 0;
    case MEMD__WINDOW__WINDOW_NONE: item->query.window = QUERY_WINDOW_NONE; return 0;
    default: return error_set(&item->err, MEMD_EINVAL, "window %d is none", (int)in->window);
    }
}

/* Where the answer goes, if it is not the frame. */
static int decode_into(struct request *req, const Memd__AttendItem *in, struct item *item)
{
    const struct tensor *q = &item->query.q;
    struct message_shape shape = { .what = "into_o",
                                   .dtype = DTYPE_FP32,
                                   .dims = 3,
                                   .shape = { q->shape[0], q->shape[1], q->shape[2] } };
    int rc = region_place(req, in->into_o, &shape, &item->into_o, &item->err);
    shape.what = "into_lse";
    shape.dims = 2;
    return rc < 0 ? rc : region_place(req, in->into_lse, &shape, &item->into_lse, &item->err);
}

static void prepare_item(struct batch *batch, size_t idx)
{
    struct item *item = &batch->items[idx];
    const Memd__AttendItem *in = batch->in->items[idx];
    struct request *req = batch->req;
    struct query_message message = message_of(in);
    item->status = catalog_pin(req->server->catalog, in->context_id, &req->arena, &item->context,
                               &item->err);
    if (item->status == 0)
        item->status = query_decode(req, &message, item->context, &item->query, &item->err);
    if (item->status == 0) item->status = decode_local(req, in, item);
    if (item->status == 0) item->status = decode_window(in, item);
    if (item->status == 0) item->status = decode_into(req, in, item);
    if (item->status == 0 && in->explain) {
        item->status = plan_init(&item->plan, &req->arena, &item->err);
        item->query.plan = &item->plan;
    }
    if (item->status < 0) return;
    item->query.no_wait = req->on_loop;
    item->query.rope_theta = in->rope_theta;
    const struct tensor *q = &item->query.q;
    item->part.rows = q->shape[0] * q->shape[1];
    item->part.head_dim = q->shape[2];
    size_t lse_bytes = item->part.rows * sizeof(float);
    size_t o_bytes = item->part.head_dim * lse_bytes;
    item->o_offset = region_lay(&batch->answer, &item->into_o, o_bytes);
    item->lse_offset = region_lay(&batch->answer, &item->into_lse, lse_bytes);
}

static void free_item(void *object)
{
    struct item *item = object;
    arena_fini(&item->own);
}

/* The batch's items get arenas; a failure here fails the request. */
static int give_arenas(struct batch *batch, struct error *err)
{
    struct request *req = batch->req;
    batch->items[0].arena = &req->arena;
    if (batch->count == 1) return 0;
    uint64_t share = req->arena.limit_bytes / (pool_threads(req->server->pool) + 1);
    for (size_t i = 0; i < batch->count; i++) {
        struct item *item = &batch->items[i];
        arena_init(&item->own, (size_t)share);
        item->arena = &item->own;
        if (arena_on_reset(&req->arena, free_item, item) < 0) return wire_no_memory(err);
    }
    return 0;
}

/* Where answers are computed: into what leaves with the frame, or beside it. */
static void place_items(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        struct item *item = &batch->items[i];
        if (item->status < 0) continue;
        item->part.o = region_memory(&batch->answer, &item->into_o, item->o_offset);
        item->part.lse = region_memory(&batch->answer, &item->into_lse, item->lse_offset);
    }
}

/* What a device answers. A single item asks it by itself. */
static int attend_together(struct batch *batch, struct error *err)
{
    if (batch->count == 1 || batch->req->on_loop ||
        batch->req->server->backend.accelerator == NULL)
        return 0;
    struct together *all = arena_calloc(&batch->req->arena, batch->count, sizeof *all);
    if (all == NULL) return wire_no_memory(err);
    for (size_t i = 0; i < batch->count; i++) {
        struct item *item = &batch->items[i];
        if (item->status < 0) continue;
        all[i] = (struct together){ .context = item->context, .query = &item->query,
                                    .arena = item->arena, .partial = item->part,
                                    .quality = &item->quality, .err = &item->err };
    }
    context_attend_together(all, batch->count);
    for (size_t i = 0; i < batch->count; i++) {
        if (!all[i].answered) continue;
        batch->items[i].answered = true;
        batch->items[i].status = all[i].status;
    }
    return 0;
}

/* What was computed, to where the client reads it. */
static int hand_over(struct item *item)
{
    const struct partial *part = &item->part;
    size_t bytes = part->rows * sizeof(float);
    int rc = region_write(&item->into_o, part->o, part->head_dim * bytes, &item->err);
    return rc < 0 ? rc : region_write(&item->into_lse, part->lse, bytes, &item->err);
}

static void compute_item(void *arg, size_t idx)
{
    struct batch *batch = arg;
    struct item *item = &batch->items[idx];
    if (item->status < 0) return;
    if (!item->answered)
        item->status = context_attend(item->context, &item->query, item->arena, &item->part,
                                      &item->quality, &item->err);
    if (item->status == 0) item->status = hand_over(item);
    const struct quality *quality = &item->quality;
    bool kept = quality->predicted_error != NULL || quality->mass != NULL ||
                quality->level_mass != NULL || quality->limited != NULL;
    if (item->arena == &item->own && !kept) arena_fini(&item->own);
}

/* On the loop, an item whose context was locked: the whole request goes to a worker. */
static bool must_wait(const struct batch *batch)
{
    bool busy = false;
    for (size_t i = 0; i < batch->count; i++) busy |= batch->items[i].status == MEMD_EBUSY;
    return busy && batch->req->on_loop;
}

static Memd__AttendAnswer *encode_item(struct batch *batch, struct item *item)
{
    struct arena *arena = &batch->req->arena;
    Memd__AttendAnswer *answer = arena_alloc(arena, sizeof *answer);
    if (answer == NULL) return NULL;
    *answer = (Memd__AttendAnswer)MEMD__ATTEND_ANSWER__INIT;
    if (item->status < 0) {
        batch->req->item_failure = item->status;
        answer->status = item->status;
        answer->error = item->err.text;
        return answer;
    }
    answers_record(batch->req->server->answers, item->query.layer, &item->quality,
                   item->part.rows);
    const size_t *shape = item->query.q.shape;
    answer->o = region_name(&item->into_o,
                            message_make_tensor(arena, DTYPE_FP32, 3, shape, item->o_offset));
    answer->lse = region_name(&item->into_lse,
                              message_make_tensor(arena, DTYPE_FP32, 2, shape, item->lse_offset));
    answer->quality = wire_encode_quality(&item->quality, item->part.rows, arena);
    bool whole = answer->o != NULL && answer->lse != NULL && answer->quality != NULL;
    if (whole && item->query.plan != NULL) {
        answer->plan = wire_encode_plan(&item->plan, arena);
        whole = answer->plan != NULL;
    }
    return whole ? answer : NULL;
}

static int answer(struct batch *batch, struct error *err)
{
    struct arena *arena = &batch->req->arena;
    Memd__AttendReply reply = MEMD__ATTEND_REPLY__INIT;
    reply.answers = arena_calloc(arena, batch->count, sizeof(Memd__AttendAnswer *));
    if (reply.answers == NULL) return wire_no_memory(err);
    for (; reply.n_answers < batch->count; reply.n_answers++) {
        Memd__AttendAnswer *item = encode_item(batch, &batch->items[reply.n_answers]);
        if (item == NULL) return wire_no_memory(err);
        reply.answers[reply.n_answers] = item;
    }
    return request_reply(batch->req, &reply.base, batch->answer.payload,
                         (size_t)batch->answer.payload_bytes, err);
}

static int check_counts(const Memd__AttendRequest *in, struct error *err)
{
    if (in->n_items == 0 || in->n_items > LIMIT_ATTEND_ITEMS)
        return error_set(err, MEMD_ELIMIT, "%zu items, must be 1 … %u", in->n_items,
                         LIMIT_ATTEND_ITEMS);
    size_t explained = 0;
    for (size_t i = 0; i < in->n_items; i++) explained += in->items[i]->explain ? 1 : 0;
    if (explained <= LIMIT_EXPLAIN_ITEMS) return 0;
    return error_set(err, MEMD_ELIMIT, "%zu items ask for their reading plan, at most %u may",
                     explained, LIMIT_EXPLAIN_ITEMS);
}

static int run(struct request *req, struct error *err)
{
    const Memd__AttendRequest *in = (const Memd__AttendRequest *)req->in;
    struct batch batch = { .req = req, .in = in, .count = in->n_items };
    int rc = check_counts(in, err);
    if (rc < 0) return rc;
    batch.items = arena_calloc(&req->arena, batch.count, sizeof *batch.items);
    if (batch.items == NULL) return wire_no_memory(err);
    rc = give_arenas(&batch, err);
    if (rc < 0) return rc;
    for (size_t i = 0; i < batch.count; i++) prepare_item(&batch, i);
    rc = region_make_room(&batch.answer, &req->arena, err);
    if (rc < 0) return rc;
    place_items(&batch);
    rc = attend_together(&batch, err);
    if (rc < 0) return rc;
    /* The loop waits for nobody: tiny items are computed right here, one after another. */
    pool_for(req->on_loop ? NULL : req->server->pool, batch.count, compute_item, &batch);
    if (must_wait(&batch)) {
        arena_release(&req->arena);
        return OPERATION_ELSEWHERE;
    }
    rc = request_stop(req);
    if (rc < 0) return error_set(err, rc, "attend: %s", error_text(rc));
    return answer(&batch, err);
}

/* Bytes that answering here would read; UINT64_MAX when it cannot be told without the disk. */
static uint64_t cost(struct request *req, const Memd__AttendItem *in)
{
    struct context *context = NULL;
    if (in->explain || in->local_o != NULL || in->states != NULL) return UINT64_MAX;
    if (in->window == MEMD__WINDOW__WINDOW_RESIDENT && req->server->backend.accelerator != NULL)
        return UINT64_MAX; /* it is waited for */
    /* Touching memory of others may fault, and writing there may wait for a device. */
    if (in->into_o != NULL || in->into_lse != NULL) return UINT64_MAX;
    if (in->q != NULL && in->q->region != 0) return UINT64_MAX;
    if (!catalog_pin_resident(req->server->catalog, in->context_id, &req->arena, &context))
        return UINT64_MAX;
    if (in->layer >= context_model(context)->layers) return 0; /* an error, and that is cheap */
    if (context_layer_tokens(context, in->layer) > INLINE_TOKENS) return UINT64_MAX;
    uint64_t bytes = context_attend_bytes(context, in->layer);
    return bytes > INLINE_BYTES ? UINT64_MAX : bytes * in->n_positions;
}

static bool is_tiny(struct request *req)
{
    struct error err = { 0 };
    if (req->frame.message_bytes > LIMIT_SMALL_MESSAGE_BYTES ||
        req->frame.payload_bytes > INLINE_PAYLOAD_BYTES)
        return false;
    if (request_unpack(req, &err) < 0) return true; /* run says what is wrong */
    const Memd__AttendRequest *in = (const Memd__AttendRequest *)req->in;
    bool tiny = in->n_items <= INLINE_ITEMS;
    uint64_t bytes = 0;
    for (size_t i = 0; tiny && i < in->n_items; i++) {
        uint64_t item = cost(req, in->items[i]);
        tiny = item <= INLINE_BYTES - bytes;
        if (tiny) bytes += item;
    }
    /* Pins must not wait in the pool's queue: a Drop that waits for them may hold the last worker.
     */
    if (!tiny) arena_release(&req->arena);
    if (tiny) req->server->stats.inline_total++;
    return tiny;
}

const struct operation operation_attend = { .run = run, .is_tiny = is_tiny };
