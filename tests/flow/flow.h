/* SPDX-License-Identifier: Apache-2.0 */
/* flow.h — the whole daemon but main.c on a thread of the test, over a socket in a directory of its
 * own and over fake_memory.c, and a client that sends frames and takes replies. Nothing sleeps:
 * tests wait for replies, or for a counter of the fake.
 */
#ifndef MEMD_TESTS_FLOW_H
#define MEMD_TESTS_FLOW_H

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
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
#include "base/cleanup.h"
#include "base/error.h"
#include "daemon/server.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/method.h"
#include "tests/flow/fake_memory.h"
#include "tests/whole.h"

struct flow {
    char directory[32];
    struct server *server;
    pthread_t thread;
    int fd; /* the client that every test has */
    uint64_t next_id;
    bool ended;
};

static inline void *serve(void *arg)
{
    struct flow *flow = arg;
    server_run(flow->server);
    return NULL;
}

static inline int dial(const struct flow *flow)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s/s", flow->directory);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static inline int set_up(void **state)
{
    struct flow *flow = calloc(1, sizeof *flow);
    assert_non_null(flow);
    memset(&fake, 0, sizeof fake);
    signal(SIGPIPE, SIG_IGN); /* as main does */
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

static inline uint64_t send_message(struct flow *flow, int fd, unsigned method,
                                    const ProtobufCMessage *message, uint32_t deadline_ms)
{
    struct arena arena;
    arena_init(&arena, 1 << 20);
    unsigned char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(message_pack(message, &arena, &data, &bytes, NULL), 0);
    static const unsigned char payload[256]; /* zeros for any tensor of these tests */
    struct frame frame = { .kind = FRAME_REQUEST,
                           .method = (uint16_t)method,
                           .request_id = ++flow->next_id,
                           .deadline_ms = deadline_ms,
                           .message_bytes = (uint32_t)bytes,
                           .payload_bytes = sizeof payload };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    assert_int_equal(write(fd, header, sizeof header), (ssize_t)sizeof header);
    if (bytes > 0) assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
    assert_int_equal(write(fd, payload, sizeof payload), (ssize_t)sizeof payload);
    arena_fini(&arena);
    return frame.request_id;
}

static inline Memd__Tensor tensor(uint64_t *shape)
{
    Memd__Tensor out = MEMD__TENSOR__INIT;
    out.dtype = MEMD__DTYPE__DTYPE_FP32;
    out.shape = shape;
    out.n_shape = 3;
    return out;
}

static inline uint64_t send_append(struct flow *flow, int fd, uint64_t position,
                                   uint32_t deadline_ms)
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

/* Fill in what an attend and a search need besides their own. */
static inline uint64_t send_item(struct flow *flow, int fd, Memd__AttendItem *item,
                                 uint32_t deadline_ms)
{
    uint64_t shape[3] = { 1, 2, 8 }, position = 1;
    Memd__Tensor q = tensor(shape);
    Memd__AttendItem *items[] = { item };
    if (item->context_id == 0) item->context_id = 1;
    item->q = &q;
    item->positions = &position;
    item->n_positions = 1;
    Memd__AttendRequest request = MEMD__ATTEND_REQUEST__INIT;
    request.items = items;
    request.n_items = 1;
    return send_message(flow, fd, METHOD_ATTEND, &request.base, deadline_ms);
}

/* Layer 0 is small enough for the loop, layer 1 is not. */
static inline uint64_t send_attend(struct flow *flow, int fd, uint32_t layer, uint32_t deadline_ms)
{
    Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT;
    item.layer = layer;
    return send_item(flow, fd, &item, deadline_ms);
}

static inline uint64_t send_health(struct flow *flow, int fd)
{
    Memd__HealthRequest request = MEMD__HEALTH_REQUEST__INIT;
    return send_message(flow, fd, METHOD_HEALTH, &request.base, 0);
}

/* The next reply, whatever it answers; *ret_body is its message and payload, in `arena`. */
static inline struct frame take_any(int fd, struct arena *arena, unsigned char **ret_body)
{
    unsigned char header[FRAME_HEADER_BYTES];
    struct frame frame;
    assert_true(read_whole(fd, header, sizeof header));
    assert_int_equal(frame_decode(header, &frame, NULL), 0);
    size_t bytes = frame.message_bytes + (size_t)frame.payload_bytes;
    *ret_body = arena_alloc(arena, bytes);
    assert_non_null(*ret_body);
    assert_true(read_whole(fd, *ret_body, bytes));
    return frame;
}

/* The next reply must answer `id`. */
static inline struct frame take_frame(int fd, uint64_t id, struct arena *arena,
                                      unsigned char **ret_body)
{
    struct frame frame = take_any(fd, arena, ret_body);
    assert_int_equal(frame.request_id, id);
    return frame;
}

/* The next reply must answer `id` well: its message. */
static inline const ProtobufCMessage *receive(int fd, uint64_t id, struct arena *arena)
{
    unsigned char *body = NULL;
    struct frame frame = take_frame(fd, id, arena, &body);
    assert_int_equal(frame.status, 0);
    return message_unpack_reply(frame.method, body, frame.message_bytes, arena, NULL);
}

/* The next reply must answer `id` with `status`. */
static inline void expect(int fd, uint64_t id, int status)
{
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, 1 << 20);
    unsigned char *body = NULL;
    struct frame frame = take_frame(fd, id, &arena, &body);
    if (frame.status != status)
        fail_msg("request %llu: %s, expected %s", (unsigned long long)id, error_name(frame.status),
                 error_name(status));
}

static inline void wait_attending(unsigned count)
{
    while (atomic_load(&fake.attending) < count) sched_yield();
}

static inline void end(struct flow *flow, unsigned timeout_ms)
{
    Memd__DrainRequest request = MEMD__DRAIN_REQUEST__INIT;
    request.deadline_ms = timeout_ms;
    int fd = dial(flow);
    expect(fd, send_message(flow, fd, METHOD_DRAIN, &request.base, 0), 0);
    close(fd);
    flow->ended = true;
}

static inline int tear_down(void **state)
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

#endif
