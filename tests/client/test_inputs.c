/* SPDX-License-Identifier: Apache-2.0 */
/* test_inputs.c — what comes with tokens and queries besides, on the wire as it was given; and the
 * reading plan on the way back, also one that does not fit together.
 *
 * The fake daemon asserts what it gets; the layer of an attend says which plan is wanted.
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

enum { H = 4, G = 2, D = 8, W = 32, TOKENS = 3, PAYLOAD_BYTES = 4096 };

enum plan_wanted { PLAN_SOUND, PLAN_SHORT_RUNS, PLAN_SHORT_GROUPS, PLAN_NO_GROUP, PLAN_EMPTY };

static struct tensor tensor_of(const struct fake_request *request, const Memd__Tensor *wire,
                               const struct message_shape *shape)
{
    struct tensor tensor;
    struct error err;
    int rc = message_tensor(wire, request->payload, (size_t)request->frame.payload_bytes, shape,
                            &tensor, &err);
    assert(rc == 0);
    return tensor;
}

/* Layer 0 has rows, layer 1 a state. */
static void answer_append(int fd, const struct fake_request *request)
{
    const Memd__AppendRequest *append = (const Memd__AppendRequest *)request->message;
    assert(append->n_layers == 2);
    const Memd__AppendLayer *rows = append->layers[0], *states = append->layers[1];
    assert(rows->k != NULL && rows->states == NULL && rows->marks.len == TOKENS);
    assert(memcmp(rows->marks.data, "\1\2\3", TOKENS) == 0);
    struct message_shape shape = { .what = "scores", .dtype = DTYPE_FP32, .dims = 2,
                                   .shape = { TOKENS, H } };
    struct tensor scores = tensor_of(request, rows->scores, &shape);
    assert(((const float *)scores.data)[TOKENS * H - 1] == 0.5f);
    assert(states->k == NULL && states->v == NULL && states->marks.len == 0);
    shape = (struct message_shape){ .what = "states", .dtype = DTYPE_FP16, .dims = 2,
                                    .shape = { TOKENS, W } };
    struct tensor state = tensor_of(request, states->states, &shape);
    assert(((const uint16_t *)state.data)[1] == 0x3C00);
    Memd__AppendReply reply = MEMD__APPEND_REPLY__INIT;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static Memd__Tensor *place(struct arena *arena, uint32_t dtype, uint32_t dims, const size_t *shape,
                           uint64_t *bytes)
{
    size_t size = dtype_bytes(dtype);
    for (uint32_t i = 0; i < dims; i++) size *= shape[i];
    return message_make_tensor(arena, dtype, dims, shape, message_place(bytes, size));
}

static void answer_attend(int fd, struct fake_request *request, const unsigned char *payload)
{
    const Memd__AttendItem *item =
        ((const Memd__AttendRequest *)request->message)->items[0];
    struct message_shape shape = { .what = "local_o", .dtype = DTYPE_FP32, .dims = 3,
                                   .shape = { 1, H, D } };
    struct tensor o = tensor_of(request, item->local_o, &shape);
    shape.dims = 2;
    struct tensor lse = tensor_of(request, item->local_lse, &shape);
    assert(((const float *)o.data)[0] == 1.0f && ((const float *)lse.data)[H - 1] == -INFINITY);
    shape = (struct message_shape){ .what = "states", .dtype = DTYPE_BF16, .dims = 2,
                                    .shape = { 1, W } };
    tensor_of(request, item->states, &shape);
    assert(item->explain && item->window == MEMD__WINDOW__WINDOW_RESIDENT);

    uint32_t query[2] = { 0, 0 }, head[2] = { 0, 2 }, heads[2] = { 2, 1 }, group[2] = { 0, 1 };
    Memd__PlanKind kind[2] = { MEMD__PLAN_KIND__PLAN_TOKENS, MEMD__PLAN_KIND__PLAN_SLOTS };
    uint64_t first[2] = { 5, 7 }, count[2] = { 4, 1 }, placed[2] = { 1, UINT64_MAX };
    uint64_t query_placed[2] = { 9, 8 };
    Memd__PlanRuns runs = MEMD__PLAN_RUNS__INIT;
    runs.n_query = runs.n_head = runs.n_heads = runs.n_group = runs.n_kind = 2;
    runs.n_first = runs.n_count = runs.n_placed = runs.n_query_placed = 2;
    runs.query = query, runs.head = head, runs.heads = heads, runs.group = group;
    runs.kind = kind, runs.first = first, runs.count = count;
    runs.placed = placed, runs.query_placed = query_placed;
    Memd__PlanMerge merge[2] = { MEMD__PLAN_MERGE__PLAN_JOINT, MEMD__PLAN_MERGE__PLAN_GATED };
    float weight[2] = { 1.0f, 0.25f };
    Memd__PlanGroups groups = MEMD__PLAN_GROUPS__INIT;
    groups.n_query = groups.n_head = groups.n_merge = groups.n_weight = 2;
    groups.query = query, groups.head = head, groups.merge = merge, groups.weight = weight;
    Memd__Plan plan = MEMD__PLAN__INIT;
    plan.runs = &runs, plan.groups = &groups, plan.cut = true;
    switch ((enum plan_wanted)item->layer) {
    case PLAN_SOUND: break;
    case PLAN_SHORT_RUNS: runs.n_placed = 1; break;
    case PLAN_SHORT_GROUPS: groups.n_weight = 1; break;
    case PLAN_NO_GROUP: group[1] = 2; break;
    case PLAN_EMPTY: plan.runs = NULL, plan.groups = NULL; break;
    }
    Memd__AttendAnswer answer = MEMD__ATTEND_ANSWER__INIT;
    uint64_t bytes = 0;
    size_t shape_o[3] = { 1, H, D };
    answer.o = place(&request->arena, DTYPE_FP32, 3, shape_o, &bytes);
    answer.lse = place(&request->arena, DTYPE_FP32, 2, shape_o, &bytes);
    answer.plan = &plan;
    Memd__AttendReply reply = MEMD__ATTEND_REPLY__INIT;
    Memd__AttendAnswer *answers[1] = { &answer };
    reply.answers = answers;
    reply.n_answers = 1;
    fake_reply(fd, request, &reply.base, payload, bytes);
}

/* As attend does, without what stands beside the plan. */
static void answer_explain(int fd, struct fake_request *request)
{
    const Memd__ExplainRequest *explain = (const Memd__ExplainRequest *)request->message;
    assert(explain->query == 3 && explain->layer == 1);
    assert(explain->target_case == MEMD__EXPLAIN_REQUEST__TARGET_TARGET_ERROR);
    uint32_t one[1] = { 0 }, heads[1] = { H };
    Memd__PlanKind kind[1] = { MEMD__PLAN_KIND__PLAN_TOKENS };
    uint64_t zero[1] = { 0 }, count[1] = { 9 };
    float share[1] = { 0.75f }, weight[1] = { 1.0f }, lse[H] = { 1, 2, 3, 4 };
    Memd__PlanRuns runs = MEMD__PLAN_RUNS__INIT;
    runs.n_query = runs.n_head = runs.n_heads = runs.n_group = runs.n_kind = runs.n_share = 1;
    runs.n_first = runs.n_count = runs.n_placed = runs.n_query_placed = 1;
    runs.query = runs.head = runs.group = one, runs.heads = heads, runs.kind = kind;
    runs.first = runs.placed = runs.query_placed = zero, runs.count = count, runs.share = share;
    Memd__PlanMerge merge[1] = { MEMD__PLAN_MERGE__PLAN_JOINT };
    Memd__PlanGroups groups = MEMD__PLAN_GROUPS__INIT;
    groups.n_query = groups.n_head = groups.n_merge = groups.n_weight = 1;
    groups.query = groups.head = one, groups.merge = merge, groups.weight = weight;
    Memd__Plan plan = MEMD__PLAN__INIT;
    plan.runs = &runs, plan.groups = &groups;
    Memd__ExplainReply reply = MEMD__EXPLAIN_REPLY__INIT;
    reply.queries = 5, reply.position = 70, reply.tokens = 69;
    reply.lse = lse, reply.n_lse = H;
    reply.plan = explain->context_id == 1 ? NULL : &plan;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_stat(int fd, const struct fake_request *request)
{
    const Memd__StatRequest *stat = (const Memd__StatRequest *)request->message;
    assert(stat->context_id == 7 && stat->state);
    Memd__StateFact tokens = MEMD__STATE_FACT__INIT, slots = MEMD__STATE_FACT__INIT;
    tokens.name = (char *)"tokens", tokens.value = 12.0;
    slots.name = (char *)"slots_used", slots.value = 2.5;
    Memd__StateFact *facts[2] = { &tokens, &slots };
    Memd__LayerState one = MEMD__LAYER_STATE__INIT, two = MEMD__LAYER_STATE__INIT;
    one.layer = 1, one.facts = facts, one.n_facts = 2;
    two.layer = 4;
    Memd__LayerState *states[2] = { &one, &two };
    Memd__StatReply reply = MEMD__STAT_REPLY__INIT;
    reply.states = states, reply.n_states = 2;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_observe(int fd, const struct fake_request *request)
{
    const Memd__ObserveRequest *observe = (const Memd__ObserveRequest *)request->message;
    assert(observe->context_id == 7 && observe->layer == 1 && observe->position == 30);
    struct message_shape shape = { .what = "mass", .dtype = DTYPE_FP32, .dims = 2,
                                   .shape = { TOKENS, H } };
    assert(((const float *)tensor_of(request, observe->mass, &shape).data)[0] == 0.5f);
    Memd__ObserveReply reply = MEMD__OBSERVE_REPLY__INIT;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

/* As many tokens as were asked for are kept of each layer but the last of context 1, of which
 * nothing is said. */
static void answer_compress(int fd, const struct fake_request *request)
{
    const Memd__CompressRequest *compress = (const Memd__CompressRequest *)request->message;
    assert(compress->n_layers == 2);
    struct message_shape shape = { .what = "q", .dtype = DTYPE_FP16, .dims = 3,
                                   .shape = { 2, H, D } };
    tensor_of(request, compress->layers[0]->q, &shape);
    assert(compress->layers[1]->q == NULL && compress->layers[1]->layer == 4);
    uint64_t kept[2] = { compress->layers[0]->tokens, compress->layers[1]->tokens };
    Memd__CompressReply reply = MEMD__COMPRESS_REPLY__INIT;
    reply.kept = kept;
    reply.n_kept = compress->context_id == 1 ? 1 : 2;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

/* Of context 7, or of the set "gates". */
static void answer_params(int fd, const struct fake_request *request)
{
    const Memd__PutParamsRequest *put = (const Memd__PutParamsRequest *)request->message;
    if (put->context_id == 0) {
        assert(strcmp(put->set, "gates") == 0 && strcmp(put->method, "landmark") == 0);
        assert(put->model->head_dim == D && put->n_parameters == 1);
    }
    assert(put->n_params == 2 && strcmp(put->params[1]->name, "gate") == 0);
    assert(put->params[0]->scope_case == MEMD__PARAM__SCOPE__NOT_SET);
    assert(put->params[1]->scope_case == MEMD__PARAM__SCOPE_LAYER && put->params[1]->layer == 0);
    struct message_shape shape = { .what = "gate", .dtype = DTYPE_FP32, .dims = 2,
                                   .shape = { G, D } };
    tensor_of(request, put->params[0]->value, &shape);
    shape.dtype = DTYPE_FP16;
    tensor_of(request, put->params[1]->value, &shape);
    Memd__PutParamsReply reply = MEMD__PUT_PARAMS_REPLY__INIT;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_drop_params(int fd, const struct fake_request *request)
{
    const Memd__DropParamsRequest *drop = (const Memd__DropParamsRequest *)request->message;
    assert(strcmp(drop->set, "gates") == 0);
    Memd__DropParamsReply reply = MEMD__DROP_PARAMS_REPLY__INIT;
    reply.bytes = 640;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_fetch(int fd, struct fake_request *request, const unsigned char *payload)
{
    uint64_t bytes = 0;
    size_t shape[2] = { 2, W };
    Memd__FetchReply reply = MEMD__FETCH_REPLY__INIT;
    reply.states = place(&request->arena, DTYPE_FP16, 2, shape, &bytes);
    fake_reply(fd, request, &reply.base, payload, bytes);
}

static void script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    static _Alignas(64) unsigned char payload[PAYLOAD_BYTES];
    payload[2] = 42;
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        switch (request.frame.method) {
        case METHOD_APPEND: answer_append(fd, &request); break;
        case METHOD_ATTEND: answer_attend(fd, &request, payload); break;
        case METHOD_EXPLAIN: answer_explain(fd, &request); break;
        case METHOD_STAT: answer_stat(fd, &request); break;
        case METHOD_OBSERVE: answer_observe(fd, &request); break;
        case METHOD_COMPRESS: answer_compress(fd, &request); break;
        case METHOD_PUT_PARAMS: answer_params(fd, &request); break;
        case METHOD_DROP_PARAMS: answer_drop_params(fd, &request); break;
        case METHOD_FETCH: answer_fetch(fd, &request, payload); break;
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
    fake_open(&fixture.fake, script, NULL);
    fixture.client = fake_client(&fixture.fake);
    fixture.context = fake_context(fixture.client);
    fixture.context.dtype = MEMD_FP16;
    fixture.context.state_width = W;
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

static void rows_and_states(void **state)
{
    struct fixture *fixture = *state;
    uint16_t k[TOKENS * G * D] = { 0 }, states[TOKENS * W] = { 0, 0x3C00 };
    float scores[TOKENS * H] = { [TOKENS * H - 1] = 0.5f };
    uint8_t marks[TOKENS] = { MEMD_MARK_LANDMARK, MEMD_MARK_SPECIAL, 3 };
    struct memd_append layers[2] = {
        { .layer = 0, .tokens = TOKENS, .k = k, .v = k, .marks = marks, .scores = scores,
          .scores_dtype = MEMD_FP32 },
        { .layer = 1, .tokens = TOKENS, .states = states },
    };
    struct memd_error err = { 0 };
    int rc = memd_append(&fixture->context, layers, 2, MEMD_ACK_MEMORY, NULL, &err);
    if (rc < 0) print_error("%s\n", err.text);
    assert_int_equal(rc, 0);

    uint64_t ids[2] = { 0, 1 };
    uint16_t mine[2 * W];
    struct memd_fetch fetch = { .context = &fixture->context, .ids = ids, .count = 2 };
    const struct memd_rows *rows = NULL;
    assert_int_equal(memd_fetch(&fetch, &rows, &err), 0);
    assert_null(rows->k);
    assert_null(rows->v);
    assert_int_equal(((const uint16_t *)rows->states)[1], 42);
    memd_free(rows);
    fetch.states = mine;
    assert_int_equal(memd_fetch(&fetch, NULL, &err), 0);
    assert_int_equal(mine[1], 42);
}

static void plans(void **state)
{
    struct fixture *fixture = *state;
    float q[H * D] = { 0 }, o[H * D] = { 1.0f }, lse[H] = { [H - 1] = -INFINITY };
    uint16_t states[W] = { 0 };
    uint64_t position = 10;
    struct memd_query query = { .context = &fixture->context, .queries = 1, .q = q,
                                .q_dtype = MEMD_FP32, .positions = &position, .states = states,
                                .states_dtype = MEMD_BF16, .explain = true, .local_o = o,
                                .local_lse = lse, .window = MEMD_WINDOW_RESIDENT };
    struct memd_error err = { 0 };
    const struct memd_answer *answer = NULL;
    assert_int_equal(memd_attend(&query, &answer, &err), 0);
    const struct memd_plan *plan = answer->plan;
    assert_int_equal(plan->run_count, 2);
    assert_int_equal(plan->group_count, 2);
    assert_true(plan->cut);
    const struct memd_plan_run *run = &plan->runs[1];
    assert_int_equal(run->head, 2);
    assert_int_equal(run->heads, 1);
    assert_int_equal(run->kind, MEMD_PLAN_SLOTS);
    assert_int_equal(run->first, 7);
    assert_true(run->placed == MEMD_UNPLACED && run->query_placed == 8);
    assert_int_equal(plan->runs[0].count, 4);
    assert_int_equal(plan->groups[1].merge, MEMD_PLAN_GATED);
    assert_true(plan->groups[run->group].weight == 0.25f);
    assert_true(isnan(run->share)); /* a daemon that does not tell */
    memd_free(answer);

    for (query.layer = PLAN_SHORT_RUNS; query.layer <= PLAN_NO_GROUP; query.layer++)
        assert_int_equal(memd_attend(&query, &answer, &err), MEMD_EPROTO);
    query.layer = PLAN_EMPTY;
    assert_int_equal(memd_attend(&query, &answer, &err), 0);
    assert_int_equal(answer->plan->run_count, 0);
    memd_free(answer);
    query.local_lse = NULL;
    assert_int_equal(memd_attend(&query, &answer, &err), MEMD_EINVAL);
}

static void explained(void **state)
{
    struct fixture *fixture = *state;
    struct memd_explain_args args = { .layer = 1, .query = 3, .target_error = MEMD_EXACT };
    const struct memd_explained *explained = NULL;
    struct memd_error err = { 0 };
    fixture->context.id = 7;
    assert_int_equal(memd_explain(&fixture->context, &args, &explained, &err), 0);
    assert_int_equal(explained->queries, 5);
    assert_int_equal(explained->position, 70);
    assert_int_equal(explained->tokens, 69);
    assert_int_equal(explained->heads, H);
    assert_true(explained->lse[2] == 3.0f);
    assert_true(explained->plan->runs[0].share == 0.75f);
    assert_int_equal(explained->plan->runs[0].count, 9);
    memd_free(explained);
    fixture->context.id = 1; /* no plan */
    assert_int_equal(memd_explain(&fixture->context, &args, &explained, &err), MEMD_EPROTO);
}

static void states_by_layer(void **state)
{
    struct fixture *fixture = *state;
    const struct memd_states *states = NULL;
    struct memd_error err = { 0 };
    fixture->context.id = 7;
    assert_int_equal(memd_states(&fixture->context, &states, &err), 0);
    assert_int_equal(states->count, 2);
    assert_int_equal(states->layers[0].layer, 1);
    assert_int_equal(states->layers[0].fact_count, 2);
    assert_string_equal(states->layers[0].facts[1].name, "slots_used");
    assert_true(states->layers[0].facts[1].value == 2.5);
    assert_int_equal(states->layers[1].layer, 4);
    assert_int_equal(states->layers[1].fact_count, 0);
    memd_free(states);
}

static void mass_and_prompts(void **state)
{
    struct fixture *fixture = *state;
    struct memd_error err = { 0 };
    float mass[TOKENS * H] = { 0.5f };
    fixture->context.id = 7;
    struct memd_mass seen = { .layer = 1, .position = 30, .tokens = TOKENS, .mass = mass };
    assert_int_equal(memd_observe(&fixture->context, &seen, &err), 0);
    seen.tokens = 0;
    assert_int_equal(memd_observe(&fixture->context, &seen, &err), MEMD_EINVAL);
    seen.mass = NULL;
    assert_int_equal(memd_observe(&fixture->context, &seen, &err), MEMD_EINVAL);

    uint16_t q[2 * H * D] = { 0 };
    struct memd_compress layers[2] = { { .tokens = 300, .q = q, .queries = 2 },
                                       { .layer = 4, .tokens = 200 } };
    uint64_t kept[2] = { 0 };
    assert_int_equal(memd_compress(&fixture->context, layers, 2, kept, &err), 0);
    assert_int_equal(kept[0], 300);
    assert_int_equal(kept[1], 200);
    assert_int_equal(memd_compress(&fixture->context, layers, 2, NULL, &err), 0);
    fixture->context.id = 1;
    assert_int_equal(memd_compress(&fixture->context, layers, 2, kept, &err), MEMD_EPROTO);
    assert_int_equal(memd_compress(&fixture->context, layers, 0, kept, &err), MEMD_EINVAL);
    layers[0].queries = 0;
    assert_int_equal(memd_compress(&fixture->context, layers, 2, kept, &err), MEMD_EINVAL);
}

static void tensors(void **state)
{
    struct fixture *fixture = *state;
    struct memd_error err = { 0 };
    float value[G * D] = { 0 };
    uint16_t half[G * D] = { 0 };
    struct memd_param params[2] = {
        { .name = "gate", .layer = MEMD_ALL_LAYERS, .value = value, .dims = 2, .shape = { G, D } },
        { .name = "gate", .layer = 0, .value = half, .dtype = MEMD_FP16, .dims = 2,
          .shape = { G, D } },
    };
    fixture->context.id = 7;
    assert_int_equal(memd_put_params(&fixture->context, params, 2, &err), 0);
    const struct memd_model model = { .layers = 2, .query_heads = H, .kv_heads = G,
                                      .head_dim = D, .dtype = MEMD_FP16 };
    const struct memd_parameter k = { "k", "2" };
    struct memd_param_set set = { .name = "gates", .model = &model, .method = "landmark",
                                  .parameters = &k, .parameter_count = 1 };
    assert_int_equal(memd_put_shared_params(fixture->client, &set, params, 2, &err), 0);
    uint64_t bytes = 0;
    assert_int_equal(memd_drop_shared_params(fixture->client, "gates", &bytes, &err), 0);
    assert_int_equal(bytes, 640);
    assert_int_equal(memd_put_params(&fixture->context, params, 0, &err), MEMD_EINVAL);
    set.model = NULL;
    assert_int_equal(memd_put_shared_params(fixture->client, &set, params, 2, &err), MEMD_EINVAL);
    params[1].dims = 5;
    assert_int_equal(memd_put_params(&fixture->context, params, 2, &err), MEMD_ESHAPE);
    params[1].value = NULL;
    assert_int_equal(memd_put_params(&fixture->context, params, 2, &err), MEMD_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_and_states, set_up, tear_down),
        cmocka_unit_test_setup_teardown(plans, set_up, tear_down),
        cmocka_unit_test_setup_teardown(explained, set_up, tear_down),
        cmocka_unit_test_setup_teardown(states_by_layer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(mass_and_prompts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tensors, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
