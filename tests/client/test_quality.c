/* SPDX-License-Identifier: Apache-2.0 */
/* test_quality.c — what a caller wishes goes out as it was meant, what an answer was made from
 * comes in whole: levels, recall, rebuild, methods. A reply whose arrays do not fit is an error.
 */
#include "clients/include/memd.h"

#include <assert.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "tests/client/fake.h"

enum { H = 4, D = 8, ROWS = H }; /* one query */

/* Context ids that ask for something else than a whole answer. */
enum asked { WHOLE = 7, PLAIN, SHORT_MASS, SHORT_ROWS, LONG_BYTES };

/* The wish of the last attend, search or recall. */
struct wish {
    bool has_target, has_bytes;
    double target;
    uint64_t bytes;
};

#define KEEP_WISH(wish, message, PREFIX)                                              \
    (*(wish) = (struct wish){ (message)->target_case == PREFIX##__TARGET_TARGET_ERROR, \
                              (message)->budget_case == PREFIX##__BUDGET_MAX_BYTES,    \
                              (message)->target_error, (message)->max_bytes })

static float errors[ROWS] = { 0.01F, 0.02F, NAN, 0.0F };
static float mass[ROWS] = { 0.25F, 0.5F, 1.0F, 0.0F };
static float level_mass[ROWS * MEMD_LEVELS] = { 0.125F, 0.5F, 0.0F, 0.25F, [15] = 0.75F };
static uint64_t level_rows[MEMD_LEVELS + 1] = { 1, 2, 3, 4 };
static uint64_t level_bytes[MEMD_LEVELS + 1] = { 10, 20, 30, 40 };

static void fill_quality(enum asked asked, Memd__Quality *quality)
{
    quality->method = (char *)"progressive";
    quality->rows = 10;
    quality->bytes_read = 100;
    quality->window_tokens = 77;
    if (asked == PLAIN) return; /* as a daemon that knows of no levels */
    quality->predicted_error = errors;
    quality->mass = mass;
    quality->n_predicted_error = quality->n_mass = ROWS;
    quality->level_mass = level_mass;
    quality->n_level_mass = asked == SHORT_MASS ? ROWS : ROWS * MEMD_LEVELS;
    quality->level_rows = level_rows;
    quality->n_level_rows = asked == SHORT_ROWS ? 3 : MEMD_LEVELS;
    quality->level_bytes = level_bytes;
    quality->n_level_bytes = asked == LONG_BYTES ? 5 : MEMD_LEVELS;
}

static Memd__Tensor *tensor(struct arena *arena, uint32_t dtype, uint32_t dims, uint64_t offset)
{
    const size_t shape[3] = { 1, H, D };
    return message_make_tensor(arena, dtype, dims, shape, offset);
}

static void answer_attend(int fd, const struct fake_request *request, struct wish *wish)
{
    static const unsigned char payload[192]; /* o and lse */
    struct arena *arena = (struct arena *)(uintptr_t)&request->arena;
    const Memd__AttendItem *item = ((const Memd__AttendRequest *)request->message)->items[0];
    KEEP_WISH(wish, item, MEMD__ATTEND_ITEM);
    Memd__Quality quality = MEMD__QUALITY__INIT;
    fill_quality((enum asked)item->context_id, &quality);
    Memd__AttendAnswer answer = MEMD__ATTEND_ANSWER__INIT, *answers = &answer;
    answer.o = tensor(arena, DTYPE_FP32, 3, 0);
    answer.lse = tensor(arena, DTYPE_FP32, 2, 128);
    answer.quality = &quality;
    Memd__AttendReply reply = MEMD__ATTEND_REPLY__INIT;
    reply.answers = &answers;
    reply.n_answers = 1;
    fake_reply(fd, request, &reply.base, payload, sizeof payload);
}

static void answer_recall(int fd, const struct fake_request *request, struct wish *wish)
{
    const Memd__RecallRequest *in = (const Memd__RecallRequest *)request->message;
    KEEP_WISH(wish, in, MEMD__RECALL_REQUEST);
    Memd__ErrorSummary error = MEMD__ERROR_SUMMARY__INIT;
    error.mean = 0.011;
    error.p99 = 0.03;
    double shares[MEMD_LEVELS] = { 0.5, 0.25, 0.125, 0.0625 };
    Memd__RecallReply reply = MEMD__RECALL_REPLY__INIT;
    reply.method = (char *)"progressive";
    reply.target_error = (double)NAN;
    reply.queries = in->layer; /* layer 0 was never asked */
    reply.answers = in->layer * H;
    reply.error = in->layer > 0 ? &error : NULL;
    reply.level_mass = shares;
    reply.n_level_mass = in->context_id == SHORT_MASS ? 3 : in->layer > 0 ? MEMD_LEVELS : 0;
    reply.within_twice = 0.97;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_rebuild(int fd, const struct fake_request *request)
{
    const Memd__RebuildRequest *in = (const Memd__RebuildRequest *)request->message;
    Memd__RebuildReply reply = MEMD__REBUILD_REPLY__INIT;
    reply.context_id = 7;
    reply.deleted_segments = in->ask ? 0 : 3;
    reply.segments = 9;
    reply.built_segments = in->ask ? 9 : 0;
    reply.failure = (char *)(in->ask ? "" : "out of memory");
    uint8_t cursor[] = { 1, 2 };
    if (in->context_id == 0 && in->cursor.len == 0)
        reply.cursor = (ProtobufCBinaryData){ .len = sizeof cursor, .data = cursor };
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_methods(int fd, const struct fake_request *request)
{
    Memd__MethodOption option = MEMD__METHOD_OPTION__INIT, named = MEMD__METHOD_OPTION__INIT;
    Memd__MethodOption *options[] = { &option, &named };
    char *choices[] = { (char *)"near", (char *)"far" };
    named.name = (char *)"place";
    named.fallback = 1;
    named.choices = choices;
    named.n_choices = 2;
    option.name = (char *)"k";
    option.fallback = 100;
    option.most = 65536;
    option.whole = true;
    Memd__MethodInfo method = MEMD__METHOD_INFO__INIT, *methods = &method;
    method.name = (char *)"oracle-topk";
    method.help = (char *)"the best";
    method.is_default = true;
    method.options = options;
    method.n_options = 2;
    Memd__MethodsReply reply = MEMD__METHODS_REPLY__INIT;
    reply.methods = &methods;
    reply.n_methods = 1;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        switch (request.frame.method) {
        case METHOD_ATTEND: answer_attend(fd, &request, fake->arg); break;
        case METHOD_RECALL: answer_recall(fd, &request, fake->arg); break;
        case METHOD_REBUILD: answer_rebuild(fd, &request); break;
        case METHOD_METHODS: answer_methods(fd, &request); break;
        default: fake_error(fd, &request, MEMD_EUNSUPPORTED, "not in this test"); break;
        }
    }
    arena_fini(&request.arena);
}

struct fixture {
    struct fake fake;
    struct wish wish;
    struct memd_client *client;
    struct memd_context context;
    struct memd_query query;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    static const float q[H * D];
    static const uint64_t position = 1;
    fixture = (struct fixture){ 0 };
    fake_open(&fixture.fake, script, &fixture.wish);
    fixture.client = fake_client(&fixture.fake);
    fixture.context = fake_context(fixture.client);
    fixture.query = (struct memd_query){ .context = &fixture.context, .queries = 1, .q = q,
                                         .positions = &position };
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

static struct wish wish_of(struct fixture *fixture, double target, uint64_t bytes)
{
    const struct memd_answer *answer = NULL;
    fixture->query.target_error = target;
    fixture->query.max_bytes = bytes;
    assert_int_equal(memd_attend(&fixture->query, &answer, NULL), 0);
    memd_free(answer);
    return fixture->wish;
}

static void zero_leaves_it_to_the_context(void **state)
{
    struct fixture *fixture = *state;
    struct wish wish = wish_of(fixture, 0.0, 0);
    assert_false(wish.has_target);
    assert_false(wish.has_bytes);
    wish = wish_of(fixture, MEMD_EXACT, MEMD_NO_BOUND);
    assert_true(wish.has_target && wish.target == 0.0);
    assert_true(wish.has_bytes && wish.bytes == 0);
    wish = wish_of(fixture, 0.0625, 4096);
    assert_true(wish.has_target && wish.target == 0.0625);
    assert_true(wish.has_bytes && wish.bytes == 4096);
    wish = wish_of(fixture, -2.0, 1); /* nonsense is the daemon's to refuse, not ours to hide */
    assert_true(wish.has_target && wish.target == -2.0);

    const struct memd_recall *recall = NULL;
    const struct memd_recall_args args = { .layer = 1, .target_error = MEMD_EXACT, .max_bytes = 9 };
    assert_int_equal(memd_recall(&fixture->context, &args, &recall, NULL), 0);
    memd_free(recall);
    assert_true(fixture->wish.has_target && fixture->wish.target == 0.0);
    assert_true(fixture->wish.has_bytes && fixture->wish.bytes == 9);
}

static void levels_come_in(void **state)
{
    struct fixture *fixture = *state;
    const struct memd_answer *answer = NULL;
    assert_int_equal(memd_attend(&fixture->query, &answer, NULL), 0);
    const struct memd_quality *quality = &answer->quality;
    assert_true(quality->predicted_error[1] == 0.02F && isnan(quality->predicted_error[2]));
    assert_true(quality->mass[0] == 0.25F);
    assert_true(quality->level_mass[MEMD_LEVEL_EXACT] == 0.25F);
    assert_true(quality->level_mass[MEMD_LEVEL_HI] == 0.5F && quality->level_mass[15] == 0.75F);
    assert_int_equal(quality->level_rows[MEMD_LEVEL_CLUSTERS], 1);
    assert_int_equal(quality->level_bytes[MEMD_LEVEL_EXACT], 40);
    assert_int_equal(quality->window_tokens, 77);
    memd_free(answer);

    fixture->context.id = PLAIN;
    assert_int_equal(memd_attend(&fixture->query, &answer, NULL), 0);
    quality = &answer->quality;
    assert_null(quality->level_mass);
    assert_int_equal(quality->level_rows[MEMD_LEVEL_EXACT], 10);
    assert_int_equal(quality->level_bytes[MEMD_LEVEL_EXACT], 100);
    assert_int_equal(quality->level_bytes[MEMD_LEVEL_HI], 0);
    memd_free(answer);
}

static void levels_that_do_not_fit(void **state)
{
    struct fixture *fixture = *state;
    const enum asked wrongs[] = { SHORT_MASS, SHORT_ROWS, LONG_BYTES };
    const struct memd_answer *answer = NULL;
    for (size_t i = 0; i < sizeof wrongs / sizeof wrongs[0]; i++) {
        fixture->context.id = wrongs[i];
        assert_int_equal(memd_attend(&fixture->query, &answer, NULL), MEMD_EPROTO);
    }
    fixture->context.id = SHORT_MASS;
    const struct memd_recall *recall = NULL;
    const struct memd_recall_args args = { .layer = 1 };
    assert_int_equal(memd_recall(&fixture->context, &args, &recall, NULL), MEMD_EPROTO);
    assert_null(recall);
}

static void recall_and_rebuild(void **state)
{
    struct fixture *fixture = *state;
    const struct memd_recall *recall = NULL;
    struct memd_recall_args args = { .layer = 0 };
    assert_int_equal(memd_recall(&fixture->context, &args, &recall, NULL), 0);
    assert_int_equal(recall->queries, 0);
    memd_free(recall);
    args.layer = 3;
    assert_int_equal(memd_recall(&fixture->context, &args, &recall, NULL), 0);
    assert_int_equal(recall->answers, 3 * H);
    assert_true(recall->error.mean == 0.011 && recall->error.p99 == 0.03);
    assert_true(recall->level_mass[MEMD_LEVEL_EXACT] == 0.0625 && recall->within_twice == 0.97);
    assert_true(isnan(recall->target_error));
    memd_free(recall);

    const struct memd_rebuild *step = NULL, *last = NULL;
    struct memd_cursor cursor = { NULL, 0 };
    assert_int_equal(memd_rebuild(fixture->client, 0, cursor, &step, NULL), 0);
    assert_int_equal(step->deleted_segments, 3);
    assert_string_equal(step->failure, "out of memory");
    assert_int_equal(step->next.bytes, 2);
    assert_int_equal(memd_rebuild(fixture->client, 0, step->next, &last, NULL), 0);
    assert_int_equal(last->next.bytes, 0);
    memd_free(last);
    memd_free(step);
    assert_int_equal(memd_built(fixture->client, 7, &step, NULL), 0);
    assert_int_equal(step->deleted_segments, 0);
    assert_int_equal(step->built_segments, 9);
    memd_free(step);
}

static void methods_with_their_options(void **state)
{
    struct fixture *fixture = *state;
    const struct memd_methods *methods = NULL;
    assert_int_equal(memd_methods(fixture->client, &methods, NULL), 0);
    assert_int_equal(methods->count, 1);
    assert_string_equal(methods->methods[0].name, "oracle-topk");
    assert_true(methods->methods[0].is_default);
    assert_int_equal(methods->methods[0].option_count, 2);
    const struct memd_option *option = &methods->methods[0].options[0];
    assert_string_equal(option->name, "k");
    assert_true(option->whole && option->fallback == 100.0 && option->most == 65536.0);
    assert_int_equal(option->choice_count, 0);
    option++;
    assert_true(option->choice_count == 2 && option->fallback == 1.0);
    assert_string_equal(option->choices[1], "far");
    memd_free(methods);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(zero_leaves_it_to_the_context), TEST(levels_come_in),
        TEST(levels_that_do_not_fit),        TEST(recall_and_rebuild),
        TEST(methods_with_their_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
