/* SPDX-License-Identifier: Apache-2.0 */
/* test_fair.c — a context whose attends do not come to an end delays no attend of another context:
 * not over another connection and not over its own, neither as many requests nor as one large one.
 * And however much is sent over however many connections, none of it is refused, nor what others
 * send.
 */
#include "tests/flow/flow.h"

#include "base/pool.h"
#include "daemon/connection.h"

enum { FLOOD = 50, ROUNDS = 5 }; /* fewer than a connection may have unanswered */

static uint64_t send_attend_of(struct flow *flow, int fd, uint64_t context)
{
    Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT;
    item.layer = 1; /* for a worker */
    item.context_id = context;
    return send_item(flow, fd, &item, 0);
}

/* One request of so many items. */
static uint64_t send_batch(struct flow *flow, int fd, uint64_t context, size_t count)
{
    uint64_t shape[3] = { 1, 2, 8 }, position = 1;
    Memd__Tensor q = tensor(shape);
    Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT, *items[FLOOD];
    item.layer = 1;
    item.context_id = context;
    item.q = &q;
    item.positions = &position;
    item.n_positions = 1;
    for (size_t i = 0; i < count; i++) items[i] = &item;
    Memd__AttendRequest request = MEMD__ATTEND_REQUEST__INIT;
    request.items = items;
    request.n_items = count;
    return send_message(flow, fd, METHOD_ATTEND, &request.base, 0);
}

static void ask_the_quick_one(struct flow *flow, int fd)
{
    for (size_t i = 0; i < ROUNDS; i++) expect(fd, send_attend_of(flow, fd, 2), 0);
}

static void test_many_requests(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    int slow = dial(flow), other = dial(flow);
    for (size_t i = 0; i < FLOOD; i++) send_attend_of(flow, slow, 1);
    wait_attending(2); /* both workers */
    ask_the_quick_one(flow, other);
    ask_the_quick_one(flow, slow);
    assert_int_equal(atomic_load(&fake.attending), 2 + 2 * ROUNDS); /* none of the flood besides */
    close(slow);
    close(other);
}

static void test_one_large_request(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    int slow = dial(flow), other = dial(flow);
    send_batch(flow, slow, 1, FLOOD);
    wait_attending(2);
    ask_the_quick_one(flow, other);
    ask_the_quick_one(flow, slow);
    assert_int_equal(atomic_load(&fake.attending), 2 + 2 * ROUNDS);
    close(slow);
    close(other);
}

/* Two connections ask the same slow context: they share its share. */
static void test_a_context_is_one_flow(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    int first = dial(flow), second = dial(flow);
    for (size_t i = 0; i < FLOOD; i++) send_attend_of(flow, i % 2 == 0 ? first : second, 1);
    wait_attending(2);
    ask_the_quick_one(flow, flow->fd);
    ask_the_quick_one(flow, second);
    assert_int_equal(atomic_load(&fake.attending), 2 + 2 * ROUNDS);
    close(first);
    close(second);
}

/* More connections than the pool's queue once had room for, each with as much as it may have
 * unanswered, of as many contexts as it has shares. */
static void test_a_flood_is_not_refused(void **state)
{
    enum { CONNECTIONS = 24, EACH = 64, QUEUED = 1024 };
    struct flow *flow = *state;
    int fds[CONNECTIONS];
    uint64_t first[CONNECTIONS];
    assert_int_equal(flow->server->config.requests_in_flight_max, EACH);
    atomic_store(&fake.hold_attends, true);
    for (size_t i = 0; i < CONNECTIONS; i++) {
        fds[i] = dial(flow);
        first[i] = flow->next_id + 1;
        for (size_t j = 0; j < EACH; j++)
            send_attend_of(flow, fds[i], 3 + j % CONNECTION_FLOWS);
    }
    while (pool_queued(flow->server->pool) < QUEUED) sched_yield();
    uint64_t append = send_append(flow, flow->fd, 0, 0);
    int other = dial(flow);
    expect(other, send_health(flow, other), 0);
    uint64_t quick = send_attend_of(flow, other, 2);
    expect(other, send_health(flow, other), 0); /* so both have come that far */
    atomic_store(&fake.hold_attends, false);
    expect(other, quick, 0);
    expect(flow->fd, append, 0);
    for (size_t i = 0; i < CONNECTIONS; i++) {
        CLEANUP(arena_fini) struct arena arena;
        bool answered[EACH] = { false };
        arena_init(&arena, 1 << 20);
        for (size_t j = 0; j < EACH; j++) {
            unsigned char *body = NULL;
            struct frame frame = take_any(fds[i], &arena, &body);
            assert_int_equal(frame.status, 0);
            assert_in_range(frame.request_id, first[i], first[i] + EACH - 1);
            assert_false(answered[frame.request_id - first[i]]);
            answered[frame.request_id - first[i]] = true;
        }
        close(fds[i]);
    }
    close(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_many_requests, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_one_large_request, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_context_is_one_flow, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_flood_is_not_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
