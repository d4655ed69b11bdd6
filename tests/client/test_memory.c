/* SPDX-License-Identifier: Apache-2.0 */
/* test_memory.c — the n-th allocation of a call fails, for every n until the call gets through.
 *
 * Only the calling thread is hit: the fake daemon has memory. A leak would be seen by the address
 * sanitizer, a forgotten state by the calls that follow on the same client.
 */
#include "tests/client/fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { H = 4, G = 2, D = 8, ROWS = 500, TRIALS_MAX = 200 };

/* Allocations of this thread until one fails; negative: none does. */
static _Thread_local int allocations_left = -1;

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);

static bool fails_now(void)
{
    if (allocations_left < 0) return false;
    return allocations_left-- == 0;
}

void *__wrap_malloc(size_t bytes)
{
    return fails_now() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(count, bytes);
}

static void answer_open(int fd, const struct fake_request *request)
{
    Memd__Model model = MEMD__MODEL__INIT;
    model.layers = 2;
    model.query_heads = H;
    model.kv_heads = G;
    model.head_dim = D;
    model.dtype = MEMD__DTYPE__DTYPE_FP32;
    Memd__OpenReply reply = MEMD__OPEN_REPLY__INIT;
    reply.context_id = 7;
    reply.model = &model;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_fetch(int fd, struct fake_request *request)
{
    static _Alignas(64) float payload[2 * ROWS * G * D];
    size_t shape[3] = { ROWS, G, D };
    Memd__FetchReply reply = MEMD__FETCH_REPLY__INIT;
    reply.k = message_make_tensor(&request->arena, DTYPE_FP32, 3, shape, 0);
    reply.v = message_make_tensor(&request->arena, DTYPE_FP32, 3, shape, sizeof payload / 2);
    fake_reply(fd, request, &reply.base, payload, sizeof payload);
}

static void script(struct fake *fake, int fd, int number)
{
    (void)number;
    if (!fake_hello(fake, fd)) return;
    struct fake_request request = { 0 };
    Memd__AppendReply appended = MEMD__APPEND_REPLY__INIT;
    while (fake_receive(fd, &request)) {
        switch (request.frame.method) {
        case METHOD_OPEN: answer_open(fd, &request); break;
        case METHOD_FETCH: answer_fetch(fd, &request); break;
        case METHOD_APPEND: fake_reply(fd, &request, &appended.base, NULL, 0); break;
        default: fake_error(fd, &request, MEMD_EUNSUPPORTED, "not here"); break;
        }
    }
    arena_fini(&request.arena);
}

/* Everything once, ended by the first failure. */
static int use(const char *address)
{
    static float rows[ROWS * G * D];
    static uint64_t ids[ROWS];
    struct memd_client *client = NULL;
    struct memd_context context;
    struct memd_parameter parameters[2] = { { "a", "1" }, { "b", "2" } };
    struct memd_rope rope = { .theta = 10000.0 };
    struct memd_model model = { .layers = 2,
                                .query_heads = H,
                                .kv_heads = G,
                                .head_dim = D,
                                .dtype = MEMD_FP32,
                                .rope = &rope };
    struct memd_open args = {
        .name = "x", .model = &model, .parameters = parameters, .parameter_count = 2, .create = true
    };
    int rc = memd_connect(address, NULL, &client, NULL);
    if (rc == 0) rc = memd_open(client, &args, &context, NULL);
    struct memd_append layer = { .tokens = ROWS, .k = rows, .v = rows };
    if (rc == 0) rc = memd_append(&context, &layer, 1, MEMD_ACK_MEMORY, NULL, NULL);
    struct memd_fetch fetch = { .context = &context, .ids = ids, .count = ROWS };
    const struct memd_rows *result = NULL;
    if (rc == 0) rc = memd_fetch(&fetch, &result, NULL);
    memd_free(result);
    memd_close(client);
    return rc;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, script, NULL);
    int n = 0, rc = MEMD_ENOMEM;
    for (; rc != 0 && n < TRIALS_MAX; n++) {
        allocations_left = n;
        rc = use(fake.address);
        allocations_left = -1;
        if (rc != 0 && rc != MEMD_ENOMEM) print_error("allocation %d: %d\n", n, rc);
        assert_true(rc == 0 || rc == MEMD_ENOMEM);
    }
    print_message("%d allocations from connect to close\n", n - 1);
    assert_int_equal(rc, 0);
    assert_true(n > 5);
    fake_close(&fake);
}

/* The hot path: small calls into the caller's arrays allocate nothing once the client is warm. */
static void small_calls_allocate_nothing(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    static float row[G * D];
    struct memd_append layer = { .tokens = 1, .k = row, .v = row };
    assert_int_equal(memd_append(&context, &layer, 1, MEMD_ACK_MEMORY, NULL, NULL), 0);
    allocations_left = 0;
    for (int i = 0; i < 100; i++)
        assert_int_equal(memd_append(&context, &layer, 1, MEMD_ACK_MEMORY, NULL, NULL), 0);
    assert_int_equal(allocations_left, 0);
    allocations_left = -1;
    memd_close(client);
    fake_close(&fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(small_calls_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
