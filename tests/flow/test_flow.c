/* SPDX-License-Identifier: Apache-2.0 */
/* test_flow.c — requests through connection and dispatch where a real store would be too quick.
 *
 * The whole daemon but main.c runs on a thread of this program, over a socket in a directory of its
 * own and over fake_memory.c. Each test holds the store still at one point and looks at what the
 * daemon does meanwhile. Nothing sleeps: tests wait for replies, or for a counter of the fake.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/error.h"
#include "daemon/server.h"
#include "proto/frame.h"
#include "proto/message.h"
#include "proto/method.h"
#include "tests/flow/fake_memory.h"

struct flow {
    char directory[32];
    struct server *server;
    pthread_t thread;
    int fd;             /* the client that every test has */
    uint64_t next_id;
    bool ended;
};

static void *serve(void *arg)
{
    struct flow *flow = arg;
    server_run(flow->server);
    return NULL;
}

static int dial(const struct flow *flow)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s/s", flow->directory);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static int set_up(void **state)
{
    struct flow *flow = calloc(1, sizeof *flow);
    assert_non_null(flow);
    memset(&fake, 0, sizeof fake);
    snprintf(flow->directory, sizeof flow->directory, "/tmp/memd-flow-XXXXXX");
    assert_non_null(mkdtemp(flow->directory));
    struct config config;
    config_defaults(&config);
    snprintf(config.data, sizeof config.data, "%s", flow->directory);
    snprintf(config.socket, sizeof config.socket, "%s/s", flow->directory);
    config.workers = 2;
    config.log_level = LOG_ERROR;
    log_set_level(LOG_ERROR);
    flow->server = malloc(sizeof *flow->server);
    assert_non_null(flow->server);
    struct error err = { 0 };
    static const struct server_origin origin;
    if (server_open(&config, &origin, flow->server, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(pthread_create(&flow->thread, NULL, serve, flow), 0);
    flow->fd = dial(flow);
    *state = flow;
    return 0;
}

/* ---- frames ---- */

static uint64_t send_message(struct flow *flow, int fd, unsigned method,
                             const ProtobufCMessage *message, uint32_t deadline_ms)
{
    struct arena arena;
    arena_init(&arena, 1 << 20);
    unsigned char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(message_pack(message, &arena, &data, &bytes, NULL), 0);
    static const unsigned char payload[256]; /* zeros for any tensor of these tests */
    struct frame frame = { .kind = FRAME_REQUEST, .method = (uint16_t)method,
                           .request_id = ++flow->next_id, .deadline_ms = deadline_ms,
                           .message_bytes = (uint32_t)bytes, .payload_bytes = sizeof payload };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    assert_int_equal(write(fd, header, sizeof header), (ssize_t)sizeof header);
    if (bytes > 0) assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
    assert_int_equal(write(fd, payload, sizeof payload), (ssize_t)sizeof payload);
    arena_fini(&arena);
    return frame.request_id;
}

static Memd__Tensor tensor(uint64_t *shape)
{
    Memd__Tensor out = MEMD__TENSOR__INIT;
    out.dtype = MEMD__DTYPE__DTYPE_FP32;
    out.shape = shape;
    out.n_shape = 3;
    return out;
}

static uint64_t send_append(struct flow *flow, int fd, uint64_t position, uint32_t deadline_ms)
{
    uint64_t shape[3] = { 1, 1, 8 };
    Memd__Tensor rows = tensor(shape);
    Memd__AppendLayer layer = MEMD__APPEND_LAYER__INIT, *layers = &layer;
    layer.position = position;
    layer.k = layer.v = &rows;
    Memd__AppendRequest request = MEMD__APPEND_REQUEST__INIT;
    request.context_id = 1;
    request.layers = &layers;
    request.n_layers = 1;
    return send_message(flow, fd, METHOD_APPEND, &request.base, deadline_ms);
}

/* Layer 0 is small enough for the loop, layer 1 is not. */
static uint64_t send_attend(struct flow *flow, int fd, uint32_t layer, uint32_t deadline_ms)
{
    uint64_t shape[3] = { 1, 2, 8 }, position = 1;
    Memd__Tensor q = tensor(shape);
    Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT, *items = &item;
    item.context_id = 1;
    item.layer = layer;
    item.q = &q;
    item.positions = &position;
    item.n_positions = 1;
    Memd__AttendRequest request = MEMD__ATTEND_REQUEST__INIT;
    request.items = &items;
    request.n_items = 1;
    return send_message(flow, fd, METHOD_ATTEND, &request.base, deadline_ms);
}

static uint64_t send_health(struct flow *flow, int fd)
{
    Memd__HealthRequest request = MEMD__HEALTH_REQUEST__INIT;
    return send_message(flow, fd, METHOD_HEALTH, &request.base, 0);
}

/* The next reply must answer `id` with `status`. */
static void expect(int fd, uint64_t id, int status)
{
    unsigned char header[FRAME_HEADER_BYTES], body[4096];
    struct frame frame;
    assert_int_equal(recv(fd, header, sizeof header, MSG_WAITALL), (ssize_t)sizeof header);
    assert_int_equal(frame_decode(header, &frame, NULL), 0);
    size_t bytes = frame.message_bytes + (size_t)frame.payload_bytes;
    assert_true(bytes <= sizeof body);
    if (bytes > 0) assert_int_equal(recv(fd, body, bytes, MSG_WAITALL), (ssize_t)bytes);
    assert_int_equal(frame.request_id, id);
    if (frame.status != status)
        fail_msg("request %llu: %s, expected %s", (unsigned long long)id,
                 error_name(frame.status), error_name(status));
}

static void wait_attending(unsigned count)
{
    while (atomic_load(&fake.attending) < count) sched_yield();
}

static void end(struct flow *flow, unsigned timeout_ms)
{
    Memd__DrainRequest request = MEMD__DRAIN_REQUEST__INIT;
    request.deadline_ms = timeout_ms;
    int fd = dial(flow);
    expect(fd, send_message(flow, fd, METHOD_DRAIN, &request.base, 0), 0);
    close(fd);
    flow->ended = true;
}

static int tear_down(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, false);
    atomic_store(&fake.hold_attends, false);
    if (!flow->ended) end(flow, 5000);
    assert_int_equal(pthread_join(flow->thread, NULL), 0);
    close(flow->fd);
    server_close(flow->server);
    assert_int_equal(atomic_load(&fake.pins), 0);
    free(flow->server);
    char path[64];
    snprintf(path, sizeof path, "%s/s", flow->directory);
    assert_int_not_equal(access(path, F_OK), 0);
    rmdir(flow->directory);
    free(flow);
    return 0;
}

/* ---- flows ---- */

static void test_append_waits_for_the_commit_alone(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, true);
    uint64_t first = send_append(flow, flow->fd, 0, 0);
    uint64_t second = send_append(flow, flow->fd, 1, 0); /* runs although the first waits */
    while (atomic_load(&fake.tokens) < 2) sched_yield();
    expect(flow->fd, send_health(flow, flow->fd), 0); /* and overtakes both */
    expect(flow->fd, send_attend(flow, flow->fd, 1, 0), 0);
    atomic_store(&fake.hold_commits, false);
    fake_progress();
    expect(flow->fd, first, 0);
    expect(flow->fd, second, 0);
}

static void test_failed_commit_is_the_answer(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, true);
    uint64_t id = send_append(flow, flow->fd, 0, 0);
    while (atomic_load(&fake.tokens) < 1) sched_yield();
    atomic_store(&fake.commit_failure, MEMD_EFULL);
    fake_progress();
    expect(flow->fd, id, MEMD_EFULL);
}

static void test_deadline_of_a_waiting_append(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_commits, true);
    expect(flow->fd, send_append(flow, flow->fd, 0, 30), MEMD_EDEADLINE);
    assert_int_equal(atomic_load(&fake.tokens), 1); /* it cannot be taken back */
}

static void test_deadline_of_a_running_attend(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    expect(flow->fd, send_attend(flow, flow->fd, 1, 30), MEMD_EDEADLINE);
}

static void test_changes_keep_their_order(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.slow_append, true);
    uint64_t ids[5];
    for (uint64_t i = 0; i < 5; i++) ids[i] = send_append(flow, flow->fd, i, 0);
    for (size_t i = 0; i < 5; i++) expect(flow->fd, ids[i], 0);
    assert_int_equal(atomic_load(&fake.tokens), 5);
}

static void test_no_room_waits_in_turn_and_holds_nobody(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.no_room, true);
    uint64_t ids[3];
    for (uint64_t i = 0; i < 3; i++) ids[i] = send_append(flow, flow->fd, i, 0);
    int others[3]; /* more clients without room than workers */
    for (size_t i = 0; i < 3; i++) {
        others[i] = dial(flow);
        send_append(flow, others[i], 3 + i, 0);
    }
    while (atomic_load(&fake.refused) < 4) sched_yield();
    int reader = dial(flow);
    expect(reader, send_attend(flow, reader, 1, 0), 0); /* on a worker */
    close(reader);
    for (size_t i = 0; i < 3; i++) close(others[i]); /* they leave while they wait */
    expect(flow->fd, send_health(flow, flow->fd), 0);
    atomic_store(&fake.no_room, false);
    fake_progress();
    for (size_t i = 0; i < 3; i++) expect(flow->fd, ids[i], 0);
}

static void test_no_room_ends_with_the_deadline(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.no_room, true);
    expect(flow->fd, send_append(flow, flow->fd, 0, 30), MEMD_EDEADLINE);
    assert_int_equal(atomic_load(&fake.tokens), 0); /* nothing was taken */
    expect(flow->fd, send_append(flow, flow->fd, 0, 0), MEMD_EBUSY); /* and not for ever without */
    atomic_store(&fake.no_room, false);
    expect(flow->fd, send_append(flow, flow->fd, 0, 0), 0);
}

static void test_small_on_the_loop_large_on_a_worker(void **state)
{
    struct flow *flow = *state;
    expect(flow->fd, send_attend(flow, flow->fd, 0, 0), 0);
    assert_int_equal(atomic_load(&fake.attended_on_loop), 1);
    expect(flow->fd, send_attend(flow, flow->fd, 1, 0), 0);
    assert_int_equal(atomic_load(&fake.attended_on_worker), 1);
}

static void test_locked_context_moves_to_a_worker(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.locked, true);
    expect(flow->fd, send_attend(flow, flow->fd, 0, 0), 0);
    assert_int_equal(atomic_load(&fake.attended_on_loop), 0);
    assert_int_equal(atomic_load(&fake.attended_on_worker), 1);
}

static void test_busy_workers_do_not_delay_the_loop(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    uint64_t ids[10];
    for (size_t i = 0; i < 10; i++) ids[i] = send_attend(flow, flow->fd, 1, 0);
    wait_attending(2); /* both workers */
    int other = dial(flow);
    expect(other, send_health(flow, other), 0);
    expect(other, send_attend(flow, other, 0, 0), 0);
    close(other);
    atomic_store(&fake.hold_attends, false);
    bool answered[10] = { false };
    for (size_t i = 0; i < 10; i++) { /* in any order */
        unsigned char header[FRAME_HEADER_BYTES], body[4096];
        struct frame frame;
        assert_int_equal(recv(flow->fd, header, sizeof header, MSG_WAITALL),
                         (ssize_t)sizeof header);
        assert_int_equal(frame_decode(header, &frame, NULL), 0);
        size_t bytes = frame.message_bytes + (size_t)frame.payload_bytes;
        assert_int_equal(recv(flow->fd, body, bytes, MSG_WAITALL), (ssize_t)bytes);
        assert_in_range(frame.request_id, ids[0], ids[9]);
        assert_false(answered[frame.request_id - ids[0]]);
        answered[frame.request_id - ids[0]] = true;
    }
}

static void test_leaving_cancels(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    atomic_store(&fake.hold_commits, true);
    int other = dial(flow);
    send_append(flow, other, 0, 0);
    for (size_t i = 0; i < 5; i++) send_attend(flow, other, 1, 0);
    wait_attending(2);
    close(other); /* the held attends ask `stop`; nothing else ends them */
    while (atomic_load(&fake.pins) > 0) sched_yield();
    expect(flow->fd, send_health(flow, flow->fd), 0);
}

static void test_drain_finishes_then_cancels(void **state)
{
    struct flow *flow = *state;
    atomic_store(&fake.hold_attends, true);
    uint64_t running = send_attend(flow, flow->fd, 1, 0);
    wait_attending(1);
    end(flow, 500);
    expect(flow->fd, send_append(flow, flow->fd, 0, 0), MEMD_EDRAINING);
    expect(flow->fd, send_health(flow, flow->fd), 0);
    expect(flow->fd, running, MEMD_ECANCELLED); /* when its time was over */
    unsigned char byte;
    assert_int_equal(recv(flow->fd, &byte, 1, 0), 0);
}

int main(void)
{
#define FLOW(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        FLOW(test_append_waits_for_the_commit_alone),
        FLOW(test_failed_commit_is_the_answer),
        FLOW(test_deadline_of_a_waiting_append),
        FLOW(test_no_room_waits_in_turn_and_holds_nobody),
        FLOW(test_no_room_ends_with_the_deadline),
        FLOW(test_deadline_of_a_running_attend),
        FLOW(test_changes_keep_their_order),
        FLOW(test_small_on_the_loop_large_on_a_worker),
        FLOW(test_locked_context_moves_to_a_worker),
        FLOW(test_busy_workers_do_not_delay_the_loop),
        FLOW(test_leaving_cancels),
        FLOW(test_drain_finishes_then_cancels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
