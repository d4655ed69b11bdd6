/* SPDX-License-Identifier: Apache-2.0 */
/* test_calls.c — every call: what it sends, what it makes of the reply, what it makes of a bad one.
 *
 * The fake daemon answers from what it was asked, so that one script serves all tests: echoes of
 * the request stand in the reply, and the context id says which wrong answer is wanted.
 */
#include "tests/client/fake.h"

#include <assert.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "proto/limits.h"

enum { H = 4, G = 2, D = 8, QUERIES = 3, PAYLOAD_BYTES = 1 << 20 };

/* Context ids that ask for a wrong answer. */
enum wrong {
    WRONG_NOTHING = 7,
    WRONG_SHAPE,
    WRONG_DTYPE,
    WRONG_BOUNDS,
    WRONG_ORDER,
    WRONG_MISSING,
    WRONG_COUNT,
    WRONG_QUALITY,
    WRONG_ITEM,
    WRONG_ERROR,
    WRONG_UTF8
};

struct answer {
    struct arena *arena;
    unsigned char *payload;
    uint64_t payload_bytes;
};

static Memd__Tensor *add_tensor(struct answer *answer, uint32_t dtype, uint32_t dims,
                                const size_t *shape)
{
    size_t bytes = dtype_bytes(dtype);
    for (uint32_t i = 0; i < dims; i++) bytes *= shape[i];
    uint64_t offset = message_place(&answer->payload_bytes, bytes);
    assert(offset + bytes <= PAYLOAD_BYTES);
    return message_make_tensor(answer->arena, dtype, dims, shape, offset);
}

/* o = the item's position plus the element's number, lse = layer; both told apart from everything.
 * */
static Memd__AttendAnswer *answer_item(struct answer *answer, const Memd__AttendItem *item)
{
    Memd__AttendAnswer *reply = arena_alloc(answer->arena, sizeof *reply);
    memd__attend_answer__init(reply);
    size_t n = (size_t)item->q->shape[0];
    size_t shape[3] = { n, H, D };
    if (item->context_id == WRONG_ITEM) {
        reply->status = MEMD_ENOCONTEXT;
        reply->error = (char *)"no context 15";
        return reply;
    }
    reply->o = add_tensor(answer, DTYPE_FP32, 3, shape);
    reply->lse = add_tensor(answer, DTYPE_FP32, 2, shape);
    float *o = (float *)(void *)(answer->payload + reply->o->offset);
    float *lse = (float *)(void *)(answer->payload + reply->lse->offset);
    for (size_t i = 0; i < n * H * D; i++) o[i] = (float)(item->positions[0] + i);
    for (size_t i = 0; i < n * H; i++) lse[i] = (float)item->layer;
    Memd__Quality *quality = arena_alloc(answer->arena, sizeof *quality);
    memd__quality__init(quality);
    quality->method = (char *)"full";
    quality->exact = true;
    quality->tokens = item->n_limits > 0 ? item->limits[n - 1] : 0;
    quality->n_limited = n * H;
    quality->limited = arena_calloc(answer->arena, n * H, sizeof *quality->limited);
    quality->limited[n * H - 1] = 1;
    reply->quality = quality;
    switch ((enum wrong)item->context_id) {
    case WRONG_SHAPE: reply->o->shape[1] = 2; break;
    case WRONG_DTYPE: reply->lse->dtype = MEMD__DTYPE__DTYPE_FP16; break;
    case WRONG_BOUNDS: reply->lse->offset = 1 << 20; break;
    case WRONG_ORDER: reply->lse->offset = 0; break;
    case WRONG_MISSING: reply->lse = NULL; break;
    case WRONG_QUALITY: quality->n_limited = 1; break;
    default: break;
    }
    return reply;
}

static void answer_attend(int fd, const struct fake_request *request, struct answer *answer)
{
    const Memd__AttendRequest *attend = (const Memd__AttendRequest *)request->message;
    Memd__AttendReply reply = MEMD__ATTEND_REPLY__INIT;
    reply.n_answers = attend->n_items;
    reply.answers = arena_calloc(answer->arena, attend->n_items, sizeof *reply.answers);
    for (size_t i = 0; i < attend->n_items; i++)
        reply.answers[i] = answer_item(answer, attend->items[i]);
    if (attend->items[0]->context_id == WRONG_COUNT) reply.n_answers = 0;
    if (attend->items[0]->context_id == WRONG_ERROR) {
        fake_error(fd, request, MEMD_ENONFINITE, "NaN at query 1");
        return;
    }
    fake_reply(fd, request, &reply.base, answer->payload, answer->payload_bytes);
}

/* ids = positions counted down, scores = -position; row-wise as (n, H, k). */
static void answer_search(int fd, const struct fake_request *request, struct answer *answer)
{
    const Memd__SearchRequest *search = (const Memd__SearchRequest *)request->message;
    size_t shape[3] = { (size_t)search->q->shape[0], H, search->k };
    Memd__SearchReply reply = MEMD__SEARCH_REPLY__INIT;
    reply.ids = add_tensor(answer, DTYPE_U64, 3, shape);
    reply.scores = add_tensor(answer, DTYPE_FP32, 3, shape);
    uint64_t *ids = (uint64_t *)(void *)(answer->payload + reply.ids->offset);
    float *scores = (float *)(void *)(answer->payload + reply.scores->offset);
    for (size_t i = 0; i < shape[0] * H * shape[2]; i++) {
        ids[i] = search->positions[0] + i;
        scores[i] = -(float)i;
    }
    fake_reply(fd, request, &reply.base, answer->payload, answer->payload_bytes);
}

static void answer_fetch(int fd, const struct fake_request *request, struct answer *answer)
{
    const Memd__FetchRequest *fetch = (const Memd__FetchRequest *)request->message;
    size_t shape[3] = { fetch->n_ids, G, D };
    Memd__FetchReply reply = MEMD__FETCH_REPLY__INIT;
    reply.k = add_tensor(answer, DTYPE_FP32, 3, shape);
    reply.v = add_tensor(answer, DTYPE_FP32, 3, shape);
    float *k = (float *)(void *)(answer->payload + reply.k->offset);
    float *v = (float *)(void *)(answer->payload + reply.v->offset);
    for (size_t i = 0; i < fetch->n_ids * G * D; i++) {
        size_t row = i / (G * D);
        k[i] = (float)fetch->ids[row];
        v[i] = -k[i];
    }
    uint32_t token_ids[2] = { 11, 22 };
    reply.n_token_ids = fetch->n_ids == 2 ? 2 : 0;
    reply.token_ids = token_ids;
    fake_reply(fd, request, &reply.base, answer->payload, answer->payload_bytes);
}

/* Everything about the tensors is checked here; position and count come back. */
static void answer_append(int fd, const struct fake_request *request)
{
    const Memd__AppendRequest *append = (const Memd__AppendRequest *)request->message;
    Memd__AppendReply reply = MEMD__APPEND_REPLY__INIT;
    for (size_t i = 0; i < append->n_layers; i++) {
        const Memd__AppendLayer *layer = append->layers[i];
        struct message_shape shape = {
            .what = "k", .dtype = DTYPE_FP32, .dims = 3, .shape = { MESSAGE_ANY, G, D }
        };
        struct tensor k, v, q;
        struct error err;
        size_t bytes = (size_t)request->frame.payload_bytes;
        int rc = message_tensor(layer->k, request->payload, bytes, &shape, &k, &err);
        assert(rc == 0);
        rc = message_tensor(layer->v, request->payload, bytes, &shape, &v, &err);
        assert(rc == 0);
        float first_k = *(const float *)k.data, first_v = *(const float *)v.data;
        assert(first_k == (float)layer->position && first_v == -first_k);
        shape.dtype = DTYPE_FP16;
        shape.shape[1] = H;
        if (layer->q != NULL) {
            rc = message_tensor(layer->q, request->payload, bytes, &shape, &q, &err);
            assert(rc == 0 && *(const uint16_t *)q.data == 0x3C00);
        }
        assert(layer->n_token_ids == 0 || layer->token_ids[0] == 42);
        reply.tokens = layer->position + k.shape[0];
    }
    reply.committed_tokens = append->n_layers;
    reply.synced_tokens = (uint64_t)append->ack;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void data_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    static _Alignas(64) unsigned char payload[PAYLOAD_BYTES];
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        memset(payload, 0xFF, sizeof payload);
        struct answer answer = { .arena = &request.arena, .payload = payload };
        switch (request.frame.method) {
        case METHOD_APPEND: answer_append(fd, &request); break;
        case METHOD_ATTEND: answer_attend(fd, &request, &answer); break;
        case METHOD_SEARCH: answer_search(fd, &request, &answer); break;
        case METHOD_FETCH: answer_fetch(fd, &request, &answer); break;
        default: fake_error(fd, &request, MEMD_EUNSUPPORTED, "not in this test"); break;
        }
    }
    arena_fini(&request.arena);
}

struct fixture {
    struct fake fake;
    struct memd_client *client;
    struct memd_context context;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    fixture = (struct fixture){ 0 };
    fake_open(&fixture.fake, data_script, NULL);
    fixture.client = fake_client(&fixture.fake);
    fixture.context = fake_context(fixture.client);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    memd_close(fixture->client);
    fake_close(&fixture->fake);
    return 0;
}

static void append_sends_all_layers(void **state)
{
    struct fixture *fixture = *state;
    float k[2][5 * G * D], v[2][5 * G * D];
    uint16_t q[5 * H * D];
    uint32_t ids[5] = { 42, 43, 44, 45, 46 };
    for (size_t i = 0; i < 5 * H * D; i++) q[i] = 0x3C00;
    for (size_t layer = 0; layer < 2; layer++) {
        for (size_t i = 0; i < 5 * G * D; i++) {
            k[layer][i] = (float)(100 * layer);
            v[layer][i] = -k[layer][i];
        }
    }
    struct memd_append layers[2] = {
        { .layer = 0,
          .position = 0,
          .tokens = 5,
          .k = k[0],
          .v = v[0],
          .q = q,
          .q_dtype = MEMD_FP16 },
        { .layer = 1, .position = 100, .tokens = 3, .k = k[1], .v = v[1], .token_ids = ids },
    };
    struct memd_progress progress;
    struct memd_error err = { 0 };
    int rc = memd_append(&fixture->context, layers, 2, MEMD_ACK_SYNCED, &progress, &err);
    if (rc < 0) print_error("%s\n", err.text);
    assert_int_equal(rc, 0);
    assert_int_equal(progress.tokens, 103);
    assert_int_equal(progress.committed_tokens, 2);
    assert_int_equal(progress.synced_tokens, MEMD_ACK_SYNCED);
}

static void append_refuses_what_makes_no_sense(void **state)
{
    struct fixture *fixture = *state;
    float k[G * D] = { 0 };
    struct memd_append layer = { .tokens = 1, .k = k, .v = NULL };
    struct memd_context *context = &fixture->context;
    assert_int_equal(memd_append(context, &layer, 1, 0, NULL, NULL), MEMD_EINVAL);
    layer.v = k;
    layer.tokens = 0;
    assert_int_equal(memd_append(context, &layer, 1, 0, NULL, NULL), MEMD_EINVAL);
    assert_int_equal(memd_append(context, &layer, 0, 0, NULL, NULL), MEMD_EINVAL);
    assert_int_equal(memd_append(context, &layer, LIMIT_APPEND_LAYERS + 1, 0, NULL, NULL),
                     MEMD_ELIMIT);
    layer.tokens = SIZE_MAX / 8;
    assert_int_equal(memd_append(context, &layer, 1, 0, NULL, NULL), MEMD_ELIMIT);
    layer.tokens = LIMIT_FRAME_PAYLOAD_BYTES / (G * D * 4) + 1;
    assert_int_equal(memd_append(context, &layer, 1, 0, NULL, NULL), MEMD_ELIMIT);
    struct memd_counters counters;
    memd_get_counters(fixture->client, &counters);
    assert_int_equal(counters.requests, 0); /* nothing of it was sent */
}

static void attend_into_the_callers_arrays(void **state)
{
    struct fixture *fixture = *state;
    float q[QUERIES * H * D] = { 0 }, o[QUERIES * H * D + 1], lse[QUERIES * H + 1];
    o[QUERIES * H * D] = lse[QUERIES * H] = 99.0f; /* must stay */
    uint64_t positions[QUERIES] = { 1000, 1001, 1002 }, limits[QUERIES] = { 10, 20, 30 };
    struct memd_query query = { .context = &fixture->context,
                                .layer = 1,
                                .queries = QUERIES,
                                .q = q,
                                .positions = positions,
                                .limits = limits,
                                .o = o,
                                .lse = lse };
    struct memd_error err = { 0 };
    assert_int_equal(memd_attend(&query, NULL, &err), 0);
    for (size_t i = 0; i < QUERIES * H * D; i++) assert_true(o[i] == (float)(1000 + i));
    for (size_t i = 0; i < QUERIES * H; i++) assert_true(lse[i] == 1.0f);
    assert_true(o[QUERIES * H * D] == 99.0f && lse[QUERIES * H] == 99.0f);

    const struct memd_answer *answer = NULL;
    query.o = NULL;
    assert_int_equal(memd_attend(&query, &answer, &err), 0);
    assert_ptr_equal(answer->lse, lse);
    assert_true(answer->o[5] == 1005.0f);
    assert_int_equal((uintptr_t)answer->o % 64, 0);
    assert_true(answer->quality.exact);
    assert_string_equal(answer->quality.method, "full");
    assert_int_equal(answer->quality.tokens, 30);
    assert_null(answer->quality.mass);
    assert_null(answer->quality.predicted_error);
    assert_false(answer->quality.limited[0]);
    assert_true(answer->quality.limited[QUERIES * H - 1]);
    memd_free(answer);
}

static void attend_a_batch_with_one_bad_item(void **state)
{
    struct fixture *fixture = *state;
    float q[2 * H * D] = { 0 }, o[H * D], lse[H];
    uint64_t positions[2] = { 5, 6 };
    struct memd_context bad = fixture->context;
    bad.id = WRONG_ITEM;
    struct memd_query queries[3] = {
        { .context = &fixture->context, .layer = 0, .queries = 2, .q = q, .positions = positions },
        { .context = &bad, .layer = 1, .queries = 1, .q = q, .positions = positions, .o = o },
        { .context = &fixture->context,
          .layer = 1,
          .queries = 1,
          .q = q,
          .positions = positions + 1,
          .o = o,
          .lse = lse },
    };
    struct memd_ticket *ticket = NULL;
    struct memd_error err = { 0 };
    assert_int_equal(memd_submit_attend(queries, 3, &ticket, &err), 0);
    assert_int_equal(memd_wait(ticket, &err), 0);
    assert_int_equal(memd_wait(ticket, &err), 0);
    assert_int_equal(memd_poll(ticket), 1);
    size_t count = 0;
    const struct memd_answer *answers = memd_ticket_answers(ticket, &count);
    assert_int_equal(count, 3);
    assert_int_equal(answers[0].status, 0);
    assert_true(answers[0].o[2 * H * D - 1] == 5.0f + 2 * H * D - 1);
    assert_int_equal(answers[1].status, MEMD_ENOCONTEXT);
    assert_string_equal(answers[1].text, "no context 15");
    assert_null(answers[1].o);
    assert_int_equal(answers[2].status, 0);
    assert_ptr_equal(answers[2].o, o);
    assert_true(o[0] == 6.0f && lse[0] == 1.0f);
    memd_ticket_free(ticket);
    assert_int_equal(memd_attend(&queries[1], &answers, &err), MEMD_ENOCONTEXT);
    assert_string_equal(err.text, "no context 15");
}

static void wrong_answers_are_errors(void **state)
{
    struct fixture *fixture = *state;
    float q[H * D] = { 0 }, o[H * D], lse[H];
    uint64_t position = 1;
    struct memd_context context = fixture->context;
    struct memd_query query = {
        .context = &context, .queries = 1, .q = q, .positions = &position, .o = o, .lse = lse
    };
    struct memd_error err = { 0 };
    static const enum wrong wrongs[] = { WRONG_SHAPE, WRONG_DTYPE,   WRONG_BOUNDS, WRONG_ORDER,
                                         WRONG_COUNT, WRONG_QUALITY, WRONG_MISSING };
    for (size_t i = 0; i < sizeof wrongs / sizeof wrongs[0]; i++) {
        context.id = wrongs[i];
        int rc = memd_attend(&query, NULL, &err);
        if (rc != MEMD_EPROTO) print_error("wrong %d: %d\n", (int)wrongs[i], rc);
        assert_int_equal(rc, MEMD_EPROTO);
    }
    context.id = WRONG_ERROR;
    assert_int_equal(memd_attend(&query, NULL, &err), MEMD_ENONFINITE);
    assert_string_equal(err.text, "NaN at query 1");
    context.id = WRONG_NOTHING;
    assert_int_equal(memd_attend(&query, NULL, &err), 0); /* the connection is as good as before */
    struct memd_counters counters;
    memd_get_counters(fixture->client, &counters);
    assert_int_equal(counters.reconnects, 0);
}

static void queries_that_make_no_sense(void **state)
{
    struct fixture *fixture = *state;
    float q[H * D] = { 0 }, o[H * D], lse[H];
    uint64_t position = 1;
    struct memd_query query = { .context = &fixture->context,
                                .queries = 0,
                                .q = q,
                                .positions = &position,
                                .o = o,
                                .lse = lse };
    assert_int_equal(memd_attend(&query, NULL, NULL), MEMD_EINVAL);
    query.queries = LIMIT_ATTEND_QUERIES + 1;
    assert_int_equal(memd_attend(&query, NULL, NULL), MEMD_ELIMIT);
    query.queries = 1;
    query.positions = NULL;
    assert_int_equal(memd_attend(&query, NULL, NULL), MEMD_EINVAL);
    struct memd_ticket *ticket = NULL;
    assert_int_equal(memd_submit_attend(&query, 0, &ticket, NULL), MEMD_EINVAL);
    assert_int_equal(memd_submit_attend(&query, LIMIT_ATTEND_ITEMS + 1, &ticket, NULL),
                     MEMD_ELIMIT);
    const struct memd_hits *hits = NULL;
    query.positions = &position;
    assert_int_equal(memd_search(&query, 0, &hits, NULL), MEMD_EINVAL);
    assert_int_equal(memd_search(&query, LIMIT_TOP_K + 1, &hits, NULL), MEMD_ELIMIT);
    struct memd_context other = fixture->context;
    struct fake fake = { 0 };
    fake_open(&fake, data_script, NULL);
    struct memd_client *second = fake_client(&fake);
    other.client = second;
    struct memd_query mixed[2] = { query, query };
    mixed[1].context = &other;
    assert_int_equal(memd_submit_attend(mixed, 2, &ticket, NULL), MEMD_EINVAL);
    memd_close(second);
    fake_close(&fake);
    assert_null(ticket);
    assert_null(hits);
}

static void search_and_fetch(void **state)
{
    struct fixture *fixture = *state;
    float q[2 * H * D] = { 0 };
    uint64_t positions[2] = { 70, 71 };
    struct memd_query query = {
        .context = &fixture->context, .queries = 2, .q = q, .positions = positions
    };
    const struct memd_hits *hits = NULL;
    struct memd_error err = { 0 };
    assert_int_equal(memd_search(&query, 3, &hits, &err), 0);
    assert_int_equal(hits->k, 3);
    assert_int_equal(hits->ids[2 * H * 3 - 1], 70 + 2 * H * 3 - 1);
    assert_true(hits->scores[4] == -4.0f);
    memd_free(hits);

    uint64_t ids[2] = { 9, 4 };
    float k[2 * G * D], v[2 * G * D];
    const struct memd_rows *rows = NULL;
    struct memd_fetch fetch = { .context = &fixture->context, .ids = ids, .count = 2, .k = k };
    assert_int_equal(memd_fetch(&fetch, &rows, &err), 0);
    assert_ptr_equal(rows->k, k);
    assert_true(k[0] == 9.0f && k[G * D] == 4.0f);
    assert_true(((const float *)rows->v)[2 * G * D - 1] == -4.0f);
    assert_int_equal(rows->token_ids[1], 22);
    memd_free(rows);
    fetch.count = 1;
    fetch.v = v;
    assert_int_equal(memd_fetch(&fetch, NULL, &err), 0);
    assert_true(v[G * D - 1] == -9.0f);
    fetch.count = 0;
    assert_int_equal(memd_fetch(&fetch, NULL, &err), MEMD_EINVAL);
    fetch.count = LIMIT_FETCH_IDS + 1;
    assert_int_equal(memd_fetch(&fetch, NULL, &err), MEMD_ELIMIT);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(append_sends_all_layers),        TEST(append_refuses_what_makes_no_sense),
        TEST(attend_into_the_callers_arrays), TEST(attend_a_batch_with_one_bad_item),
        TEST(wrong_answers_are_errors),       TEST(search_and_fetch),
        TEST(queries_that_make_no_sense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
