/* SPDX-License-Identifier: Apache-2.0 */
/* data.c — append, attend, search, fetch: tensors out of the caller's arrays and back into them.
 *
 * Each call is two functions: one that builds the request, one that places the reply (ticket.h).
 * What the second needs to know is kept in the ticket, because the caller's structs need not
 * outlive the submit; only the arrays they point to must.
 *
 * Only what would make the request unreadable is checked here (counts, missing arrays); everything
 * else is the daemon's to judge, so that there is one place that knows the rules.
 */
#include <assert.h>

#include "clients/libmemd/client.h"
#include "clients/libmemd/wire.h"
#include "proto/limits.h"
#include "proto/method.h"

/* Tensors of a layer of an append (k, v, states, q, scores) and of a query (q, states, local_o,
 * local_lse) at most. */
enum { APPEND_TENSORS = 5, QUERY_TENSORS = 4 };

static uint32_t dtype_of(enum memd_dtype chosen, const struct memd_context *context)
{
    return (uint32_t)(chosen == MEMD_DTYPE_NONE ? context->dtype : chosen);
}

static int check_count(struct memd_ticket *ticket, const char *what, size_t count, size_t most)
{
    if (count >= 1 && count <= most) return 0;
    return error_set(&ticket->err, count == 0 ? MEMD_EINVAL : MEMD_ELIMIT,
                     "%zu %s, must be 1 to %zu", count, what, most);
}

static int missing(struct memd_ticket *ticket, const char *what)
{
    return error_set(&ticket->err, MEMD_EINVAL, "%s is NULL", what);
}

/* ---- append ---- */

static int place_append(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__AppendReply *reply = (const Memd__AppendReply *)message;
    struct memd_progress *progress = ticket_result(ticket, 1, sizeof *progress);
    if (progress == NULL) return MEMD_ENOMEM;
    *progress = (struct memd_progress){ .tokens = reply->tokens,
                                        .committed_tokens = reply->committed_tokens,
                                        .synced_tokens = reply->synced_tokens };
    return 0;
}

/* k and v, or states. */
static int build_rows(struct memd_ticket *ticket, const struct memd_context *context,
                      const struct memd_append *layer, Memd__AppendLayer *wire)
{
    if (layer->states == NULL && (layer->k == NULL || layer->v == NULL))
        return missing(ticket, "k or v");
    struct ticket_array array = { .what = "k",
                                  .data = layer->k,
                                  .dtype = (uint32_t)context->dtype,
                                  .dims = 3,
                                  .shape = { layer->tokens, context->kv_heads,
                                             context->head_dim } };
    int rc = layer->k == NULL ? 0 : ticket_tensor(ticket, &array, &wire->k);
    array.what = "v";
    array.data = layer->v;
    if (rc == 0 && layer->v != NULL) rc = ticket_tensor(ticket, &array, &wire->v);
    if (rc < 0 || layer->states == NULL) return rc;
    array = (struct ticket_array){ .what = "states", .data = layer->states, .dtype = array.dtype,
                                   .dims = 2, .shape = { layer->tokens, context->state_width } };
    return ticket_tensor(ticket, &array, &wire->states);
}

static int build_layer(struct memd_ticket *ticket, const struct memd_context *context,
                       const struct memd_append *layer, Memd__AppendLayer *wire)
{
    memd__append_layer__init(wire);
    if (layer->tokens == 0) return check_count(ticket, "tokens", 0, SIZE_MAX);
    wire->layer = layer->layer;
    wire->position = layer->position;
    int rc = build_rows(ticket, context, layer, wire);
    if (rc < 0) return rc;
    if (layer->token_ids != NULL) {
        wire->n_token_ids = layer->tokens;
        wire->token_ids = (uint32_t *)layer->token_ids;
    }
    if (layer->marks != NULL)
        wire->marks = (ProtobufCBinaryData){ layer->tokens, (uint8_t *)layer->marks };
    struct ticket_array array = { .what = "q",
                                  .data = layer->q,
                                  .dtype = dtype_of(layer->q_dtype, context),
                                  .dims = 3,
                                  .shape = { layer->tokens, context->query_heads,
                                             context->head_dim } };
    if (layer->q != NULL) rc = ticket_tensor(ticket, &array, &wire->q);
    if (rc < 0 || layer->scores == NULL) return rc;
    array.what = "scores";
    array.data = layer->scores;
    array.dtype = dtype_of(layer->scores_dtype, context);
    array.dims = 2;
    return ticket_tensor(ticket, &array, &wire->scores);
}

static int build_append(struct memd_ticket *ticket, const struct memd_context *context,
                        const struct memd_append *layers, size_t count, enum memd_ack ack)
{
    int rc = check_count(ticket, "layers", count, LIMIT_APPEND_LAYERS);
    if (rc < 0) return rc;
    Memd__AppendLayer *wires = ticket_alloc(ticket, count, sizeof *wires);
    Memd__AppendLayer **list = ticket_alloc(ticket, count, sizeof *list);
    if (wires == NULL || list == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        rc = build_layer(ticket, context, &layers[i], &wires[i]);
        if (rc < 0) return rc;
        list[i] = &wires[i];
    }
    Memd__AppendRequest request = MEMD__APPEND_REQUEST__INIT;
    request.context_id = context->id;
    request.n_layers = count;
    request.layers = list;
    request.ack = (Memd__Ack)ack;
    ticket->place = place_append;
    return ticket_pack(ticket, &request.base);
}

int memd_submit_append(const struct memd_context *context, const struct memd_append *layers,
                       size_t count, enum memd_ack ack, struct memd_ticket **ret_ticket,
                       struct memd_error *err)
{
    size_t tensors = count <= LIMIT_APPEND_LAYERS ? APPEND_TENSORS * count : 0;
    struct memd_ticket *ticket = ticket_new(context->client, METHOD_APPEND, tensors);
    int rc = ticket == NULL ? 0 : build_append(ticket, context, layers, count, ack);
    return ticket_start(ticket, rc, ret_ticket, err);
}

const struct memd_progress *memd_ticket_progress(const struct memd_ticket *ticket)
{
    assert(ticket->method == METHOD_APPEND && ticket->result != NULL);
    return ticket->result;
}

int memd_append(const struct memd_context *context, const struct memd_append *layers, size_t count,
                enum memd_ack ack, struct memd_progress *ret_progress, struct memd_error *err)
{
    struct memd_ticket *ticket = NULL;
    int rc = memd_submit_append(context, layers, count, ack, &ticket, err);
    if (rc < 0) return rc;
    rc = memd_wait(ticket, err);
    if (rc == 0 && ret_progress != NULL) *ret_progress = *memd_ticket_progress(ticket);
    memd_ticket_free(ticket);
    return rc;
}

/* ---- attend ---- */

/* Where the answer to one item goes. */
struct attend_place {
    size_t queries, heads, head_dim; /* n, H, D */
    float *o, *lse;                  /* the caller's, or NULL */
    bool shared_o, shared_lse;       /* it lies in a region, and the daemon was told so */
};

static int check_shared(struct memd_ticket *ticket, const Memd__Tensor *wire)
{
    if (wire != NULL && wire->region != 0) return 0;
    return error_set(&ticket->err, MEMD_EPROTO, "an answer that is not where it was asked for");
}

static int place_answer(struct memd_ticket *ticket, const Memd__AttendAnswer *wire,
                        const struct attend_place *to, struct memd_answer *ret_answer)
{
    if (wire->status != 0) {
        ret_answer->status = wire->status < 0 ? wire->status : MEMD_EPROTO;
        ret_answer->text = wire->error[0] != '\0' ? wire->error : error_text(wire->status);
        return 0;
    }
    struct message_shape shape = { .what = "o",
                                   .dtype = DTYPE_FP32,
                                   .dims = 3,
                                   .shape = { to->queries, to->heads, to->head_dim } };
    void *o = to->o, *lse = to->lse; /* shared: it is there already */
    int rc = to->shared_o ? check_shared(ticket, wire->o)
                          : ticket_receive(ticket, wire->o, &shape, to->o, &o);
    if (rc < 0) return rc;
    shape.what = "lse";
    shape.dims = 2;
    rc = to->shared_lse ? check_shared(ticket, wire->lse)
                        : ticket_receive(ticket, wire->lse, &shape, to->lse, &lse);
    if (rc < 0) return rc;
    *ret_answer = (struct memd_answer){ .text = "", .o = o, .lse = lse };
    rc = wire_read_plan(ticket, wire->plan, &ret_answer->plan);
    if (rc < 0) return rc;
    return wire_read_quality(ticket, wire->quality, to->queries * to->heads, &ret_answer->quality);
}

static int place_attend(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__AttendReply *reply = (const Memd__AttendReply *)message;
    size_t count = ticket->plan_count;
    if (reply->n_answers != count) {
        return error_set(&ticket->err, MEMD_EPROTO, "%zu answers to %zu items", reply->n_answers,
                         count);
    }
    struct memd_answer *answers = ticket_result(ticket, count, sizeof *answers);
    if (answers == NULL) return MEMD_ENOMEM;
    const struct attend_place *places = ticket->plan;
    for (size_t i = 0; i < count; i++) {
        int rc = place_answer(ticket, reply->answers[i], &places[i], &answers[i]);
        if (rc < 0) return rc;
    }
    return 0;
}

/* q and states of a query, for attend and search. */
static int build_query(struct memd_ticket *ticket, const struct memd_query *query,
                       Memd__Tensor **ret_q, Memd__Tensor **ret_states)
{
    int rc = check_count(ticket, "queries", query->queries, LIMIT_ATTEND_QUERIES);
    if (rc < 0) return rc;
    if (query->q == NULL || query->positions == NULL) return missing(ticket, "q or positions");
    const struct memd_context *context = query->context;
    struct ticket_array array = { .what = "q",
                                  .data = query->q,
                                  .dtype = dtype_of(query->q_dtype, context),
                                  .dims = 3,
                                  .shape = { query->queries, context->query_heads,
                                             context->head_dim } };
    rc = ticket_tensor(ticket, &array, ret_q);
    if (rc < 0 || query->states == NULL) return rc;
    array = (struct ticket_array){ .what = "states", .data = query->states,
                                   .dtype = dtype_of(query->states_dtype, context), .dims = 2,
                                   .shape = { query->queries, context->state_width } };
    return ticket_tensor(ticket, &array, ret_states);
}

/* The caller's own answer, where there is one. */
static int build_local(struct memd_ticket *ticket, const struct memd_query *query,
                       Memd__AttendItem *wire)
{
    if (query->local_o == NULL && query->local_lse == NULL) return 0;
    if (query->local_o == NULL || query->local_lse == NULL)
        return missing(ticket, "local_o or local_lse");
    const struct memd_context *context = query->context;
    struct ticket_array array = { .what = "local_o",
                                  .data = query->local_o,
                                  .dtype = DTYPE_FP32,
                                  .dims = 3,
                                  .shape = { query->queries, context->query_heads,
                                             context->head_dim } };
    int rc = ticket_tensor(ticket, &array, &wire->local_o);
    array.what = "local_lse";
    array.data = query->local_lse;
    array.dims = 2;
    return rc < 0 ? rc : ticket_tensor(ticket, &array, &wire->local_lse);
}

/* What of o and lse lies in regions the daemon writes there. */
static int build_into(struct memd_ticket *ticket, const struct memd_query *query,
                      Memd__AttendItem *wire)
{
    const struct memd_context *context = query->context;
    struct ticket_array array = { .what = "o",
                                  .data = query->o,
                                  .dtype = DTYPE_FP32,
                                  .dims = 3,
                                  .shape = { query->queries, context->query_heads,
                                             context->head_dim } };
    int rc = query->o == NULL ? 0 : ticket_into(ticket, &array, &wire->into_o);
    array.what = "lse";
    array.data = query->lse;
    array.dims = 2;
    return rc < 0 || query->lse == NULL ? rc : ticket_into(ticket, &array, &wire->into_lse);
}

static int build_item(struct memd_ticket *ticket, const struct memd_query *query,
                      Memd__AttendItem *wire, struct attend_place *place)
{
    const struct memd_context *context = query->context;
    memd__attend_item__init(wire);
    wire->context_id = context->id;
    wire->layer = query->layer;
    wire->n_positions = query->queries;
    wire->positions = (uint64_t *)query->positions;
    wire->n_limits = query->limits != NULL ? query->queries : 0;
    wire->limits = (uint64_t *)query->limits;
    if (wire_target_error(query->target_error, &wire->target_error))
        wire->target_case = MEMD__ATTEND_ITEM__TARGET_TARGET_ERROR;
    if (wire_max_bytes(query->max_bytes, &wire->max_bytes))
        wire->budget_case = MEMD__ATTEND_ITEM__BUDGET_MAX_BYTES;
    *place = (struct attend_place){ .queries = query->queries,
                                    .heads = context->query_heads,
                                    .head_dim = context->head_dim,
                                    .o = query->o,
                                    .lse = query->lse };
    wire->explain = query->explain;
    wire->rope_theta = query->rope_theta;
    wire->window = (Memd__Window)query->window;
    int rc = build_query(ticket, query, &wire->q, &wire->states);
    if (rc == 0) rc = build_local(ticket, query, wire);
    if (rc == 0) rc = build_into(ticket, query, wire);
    place->shared_o = wire->into_o != NULL;
    place->shared_lse = wire->into_lse != NULL;
    return rc;
}

static int build_attend(struct memd_ticket *ticket, const struct memd_query *queries, size_t count)
{
    int rc = check_count(ticket, "items", count, LIMIT_ATTEND_ITEMS);
    if (rc < 0) return rc;
    Memd__AttendItem *wires = ticket_alloc(ticket, count, sizeof *wires);
    Memd__AttendItem **list = ticket_alloc(ticket, count, sizeof *list);
    struct attend_place *places = ticket_alloc(ticket, count, sizeof *places);
    if (wires == NULL || list == NULL || places == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        if (queries[i].context->client != ticket->client)
            return error_set(&ticket->err, MEMD_EINVAL, "item %zu is of another client", i);
        rc = build_item(ticket, &queries[i], &wires[i], &places[i]);
        if (rc < 0) return rc;
        list[i] = &wires[i];
    }
    Memd__AttendRequest request = MEMD__ATTEND_REQUEST__INIT;
    request.n_items = count;
    request.items = list;
    ticket->place = place_attend;
    ticket->plan = places;
    ticket->plan_count = count;
    return ticket_pack(ticket, &request.base);
}

int memd_submit_attend(const struct memd_query *queries, size_t count,
                       struct memd_ticket **ret_ticket, struct memd_error *err)
{
    if (count == 0) {
        struct error detail;
        return ticket_report(error_set(&detail, MEMD_EINVAL, "no queries"), &detail, err);
    }
    size_t tensors = count <= LIMIT_ATTEND_ITEMS ? QUERY_TENSORS * count : 0;
    struct memd_ticket *ticket = ticket_new(queries[0].context->client, METHOD_ATTEND, tensors);
    int rc = ticket == NULL ? 0 : build_attend(ticket, queries, count);
    return ticket_start(ticket, rc, ret_ticket, err);
}

const struct memd_answer *memd_ticket_answers(const struct memd_ticket *ticket, size_t *ret_count)
{
    assert(ticket->method == METHOD_ATTEND && ticket->result != NULL);
    if (ret_count != NULL) *ret_count = ticket->result_count;
    return ticket->result;
}

/* The error of the only item is the error of the call. */
static int item_failed(const struct memd_answer *answer, struct memd_error *err)
{
    struct error detail;
    return ticket_report(error_set(&detail, answer->status, "%s", answer->text), &detail, err);
}

int memd_attend(const struct memd_query *query, const struct memd_answer **ret_answer,
                struct memd_error *err)
{
    assert(ret_answer != NULL || (query->o != NULL && query->lse != NULL));
    struct memd_ticket *ticket = NULL;
    int rc = memd_submit_attend(query, 1, &ticket, err);
    if (rc < 0) return rc;
    rc = memd_wait(ticket, err);
    const struct memd_answer *answer = rc < 0 ? NULL : ticket->result;
    if (rc == 0 && answer->status < 0) rc = item_failed(answer, err);
    if (rc == 0 && ret_answer != NULL)
        *ret_answer = answer;
    else
        memd_ticket_free(ticket);
    return rc;
}

/* ---- search ---- */

struct search_place {
    size_t queries, heads, k;
};

static int place_search(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__SearchReply *reply = (const Memd__SearchReply *)message;
    const struct search_place *place = ticket->plan;
    struct memd_hits *hits = ticket_result(ticket, 1, sizeof *hits);
    if (hits == NULL) return MEMD_ENOMEM;
    struct message_shape shape = { .what = "ids",
                                   .dtype = DTYPE_U64,
                                   .dims = 3,
                                   .shape = { place->queries, place->heads, place->k } };
    void *ids = NULL, *scores = NULL;
    int rc = ticket_receive(ticket, reply->ids, &shape, NULL, &ids);
    if (rc < 0) return rc;
    shape.what = "scores";
    shape.dtype = DTYPE_FP32;
    rc = ticket_receive(ticket, reply->scores, &shape, NULL, &scores);
    if (rc < 0) return rc;
    *hits = (struct memd_hits){ .k = place->k, .ids = ids, .scores = scores };
    return wire_read_quality(ticket, reply->quality, place->queries * place->heads, &hits->quality);
}

static int build_search(struct memd_ticket *ticket, const struct memd_query *query, uint32_t k)
{
    int rc = check_count(ticket, "tokens to search", k, LIMIT_TOP_K);
    if (rc < 0) return rc;
    Memd__SearchRequest request = MEMD__SEARCH_REQUEST__INIT;
    request.context_id = query->context->id;
    request.layer = query->layer;
    request.n_positions = query->queries;
    request.positions = (uint64_t *)query->positions;
    request.n_limits = query->limits != NULL ? query->queries : 0;
    request.limits = (uint64_t *)query->limits;
    request.k = k;
    if (wire_target_error(query->target_error, &request.target_error))
        request.target_case = MEMD__SEARCH_REQUEST__TARGET_TARGET_ERROR;
    if (wire_max_bytes(query->max_bytes, &request.max_bytes))
        request.budget_case = MEMD__SEARCH_REQUEST__BUDGET_MAX_BYTES;
    rc = build_query(ticket, query, &request.q, &request.states);
    if (rc < 0) return rc;
    struct search_place *place = ticket_alloc(ticket, 1, sizeof *place);
    if (place == NULL) return MEMD_ENOMEM;
    *place = (struct search_place){ query->queries, query->context->query_heads, k };
    ticket->place = place_search;
    ticket->plan = place;
    return ticket_pack(ticket, &request.base);
}

int memd_submit_search(const struct memd_query *query, uint32_t k, struct memd_ticket **ret_ticket,
                       struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(query->context->client, METHOD_SEARCH, 2);
    int rc = ticket == NULL ? 0 : build_search(ticket, query, k);
    return ticket_start(ticket, rc, ret_ticket, err);
}

const struct memd_hits *memd_ticket_hits(const struct memd_ticket *ticket)
{
    assert(ticket->method == METHOD_SEARCH && ticket->result != NULL);
    return ticket->result;
}

int memd_search(const struct memd_query *query, uint32_t k, const struct memd_hits **ret_hits,
                struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(query->context->client, METHOD_SEARCH, 2);
    int rc = ticket == NULL ? 0 : build_search(ticket, query, k);
    rc = ticket_call(ticket, rc, err);
    if (rc == 0) *ret_hits = ticket->result;
    return rc;
}

/* ---- fetch ---- */

struct fetch_place {
    size_t count, kv_heads, head_dim, state_width;
    uint32_t dtype;
    void *k, *v, *states; /* the caller's, or NULL */
    bool shared, shared_v; /* k or states, v: it lies in a region, and the daemon was told so */
};

static int place_fetch(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__FetchReply *reply = (const Memd__FetchReply *)message;
    const struct fetch_place *place = ticket->plan;
    struct memd_rows *rows = ticket_result(ticket, 1, sizeof *rows);
    if (rows == NULL) return MEMD_ENOMEM;
    struct message_shape shape = { .what = "k",
                                   .dtype = place->dtype,
                                   .dims = 3,
                                   .shape = { place->count, place->kv_heads, place->head_dim } };
    void *k = place->k, *v = place->v, *states = place->states; /* shared: it is there already */
    int rc = 0;
    if (place->state_width > 0) {
        shape = (struct message_shape){ .what = "states", .dtype = place->dtype, .dims = 2,
                                        .shape = { place->count, place->state_width } };
        rc = place->shared ? check_shared(ticket, reply->states)
                           : ticket_receive(ticket, reply->states, &shape, states, &states);
        k = v = NULL;
    } else {
        rc = place->shared ? check_shared(ticket, reply->k)
                           : ticket_receive(ticket, reply->k, &shape, k, &k);
        shape.what = "v";
        if (rc == 0)
            rc = place->shared_v ? check_shared(ticket, reply->v)
                                 : ticket_receive(ticket, reply->v, &shape, v, &v);
        states = NULL;
    }
    if (rc < 0) return rc;
    if (reply->n_token_ids != 0 && reply->n_token_ids != place->count) {
        return error_set(&ticket->err, MEMD_EPROTO, "%zu token ids for %zu rows",
                         reply->n_token_ids, place->count);
    }
    *rows = (struct memd_rows){ .k = k,
                                .v = v,
                                .states = states,
                                .token_ids = reply->n_token_ids > 0 ? reply->token_ids : NULL };
    return 0;
}

/* What of the caller's arrays lies in regions the daemon fills there. */
static int build_fetch_into(struct memd_ticket *ticket, const struct memd_fetch *fetch,
                            Memd__FetchRequest *request, struct fetch_place *place)
{
    const struct memd_context *context = fetch->context;
    struct ticket_array array = { .what = "k",
                                  .data = fetch->k,
                                  .dtype = place->dtype,
                                  .dims = 3,
                                  .shape = { fetch->count, context->kv_heads, context->head_dim } };
    int rc = 0;
    if (context->state_width > 0) {
        array = (struct ticket_array){ .what = "states",
                                       .data = fetch->states,
                                       .dtype = place->dtype,
                                       .dims = 2,
                                       .shape = { fetch->count, context->state_width } };
        if (fetch->states != NULL) rc = ticket_into(ticket, &array, &request->into_states);
        place->shared = request->into_states != NULL;
        return rc;
    }
    if (fetch->k != NULL) rc = ticket_into(ticket, &array, &request->into_k);
    array.what = "v";
    array.data = fetch->v;
    if (rc == 0 && fetch->v != NULL) rc = ticket_into(ticket, &array, &request->into_v);
    place->shared = request->into_k != NULL;
    place->shared_v = request->into_v != NULL;
    return rc;
}

static int build_fetch(struct memd_ticket *ticket, const struct memd_fetch *fetch)
{
    int rc = check_count(ticket, "rows", fetch->count, LIMIT_FETCH_IDS);
    if (rc < 0) return rc;
    if (fetch->ids == NULL) return missing(ticket, "ids");
    const struct memd_context *context = fetch->context;
    Memd__FetchRequest request = MEMD__FETCH_REQUEST__INIT;
    request.context_id = context->id;
    request.layer = fetch->layer;
    request.n_ids = fetch->count;
    request.ids = (uint64_t *)fetch->ids;
    struct fetch_place *place = ticket_alloc(ticket, 1, sizeof *place);
    if (place == NULL) return MEMD_ENOMEM;
    *place = (struct fetch_place){ .count = fetch->count,
                                   .kv_heads = context->kv_heads,
                                   .head_dim = context->head_dim,
                                   .dtype = (uint32_t)context->dtype,
                                   .state_width = context->state_width,
                                   .k = fetch->k,
                                   .v = fetch->v,
                                   .states = fetch->states };
    rc = build_fetch_into(ticket, fetch, &request, place);
    if (rc < 0) return rc;
    ticket->place = place_fetch;
    ticket->plan = place;
    return ticket_pack(ticket, &request.base);
}

int memd_submit_fetch(const struct memd_fetch *fetch, struct memd_ticket **ret_ticket,
                      struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(fetch->context->client, METHOD_FETCH, 0);
    int rc = ticket == NULL ? 0 : build_fetch(ticket, fetch);
    return ticket_start(ticket, rc, ret_ticket, err);
}

const struct memd_rows *memd_ticket_rows(const struct memd_ticket *ticket)
{
    assert(ticket->method == METHOD_FETCH && ticket->result != NULL);
    return ticket->result;
}

int memd_fetch(const struct memd_fetch *fetch, const struct memd_rows **ret_rows,
               struct memd_error *err)
{
    assert(ret_rows != NULL || (fetch->k != NULL && fetch->v != NULL) || fetch->states != NULL);
    struct memd_ticket *ticket = NULL;
    int rc = memd_submit_fetch(fetch, &ticket, err);
    if (rc < 0) return rc;
    rc = memd_wait(ticket, err);
    if (rc == 0 && ret_rows != NULL)
        *ret_rows = ticket->result;
    else
        memd_ticket_free(ticket);
    return rc;
}
