/* SPDX-License-Identifier: Apache-2.0 */
/* connection.c — bytes to requests, with every growth bounded before it happens.
 *
 * Admission is decided once per frame, when its header is complete and before anything is
 * allocated: a frame that may not come in yet leaves its header in conn->header and whatever was
 * read behind it in conn->leftover (at most one staging buffer), and the socket is not read until
 * there is room.
 *
 * Frames up to SMALL_FRAME_BYTES never wait for memory: a client that stalls in the middle of a
 * large frame can make other large frames wait for frame_timeout, never small ones.
 *
 * A client that breaks the framing gets one last reply (request id 0) and is closed: where the next
 * frame would begin is unknown.
 */
#include "daemon/connection.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/object.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/reply.h"
#include "daemon/request.h"
#include "daemon/server.h"

enum {
    SMALL_FRAME_BYTES = 64 << 10, /* never waits for memory; the most before Hello on TCP */
    DIRECT_READ_BYTES = 16 << 10, /* shorter rests are read together with what follows */
    FRAME_RATE_BYTES_PER_MS = 1 << 10, /* what frame_timeout is extended by: 1 MiB/s */
};
#define NS_PER_MS UINT64_C(1000000)

int connection_new(struct server *server, bool is_tcp, struct connection **ret_conn)
{
    struct connection *conn = calloc(1, sizeof *conn);
    if (conn == NULL) return MEMD_ENOMEM;
    *conn = (struct connection){ .magic = CONNECTION_MAGIC, .server = server, .is_tcp = is_tcp };
    list_init(&conn->requests);
    list_init(&conn->ordered);
    list_init(&conn->regions);
    conn->came = conn->of_frame = DESCRIPTORS_NONE;
    for (size_t i = 0; i < CONNECTION_FLOWS; i++) list_init(&conn->held[i]);
    int rc = is_tcp ? uv_tcp_init(&server->loop, &conn->uv.tcp)
                    : uv_pipe_init(&server->loop, &conn->uv.pipe, 1); /* for descriptors */
    if (rc < 0) {
        free(conn);
        return MEMD_EIO;
    }
    conn->uv.handle.data = conn;
    conn->number = ++server->stats.connections_total;
    conn->active_ns = conn->write_moved_ns = clock_monotonic_ns();
    list_append(&server->connections, &conn->link);
    server->connection_count++;
    *ret_conn = conn;
    return 0;
}

static void free_when_done(struct connection *conn)
{
    if (!conn->closed || conn->requests_count > 0) return;
    assert(list_empty(&conn->requests));
    list_remove(&conn->link);
    struct server *server = conn->server;
    server->connection_count--;
    descriptors_close(&conn->came);
    descriptors_close(&conn->of_frame);
    region_drop_all(&server->regions, &conn->regions);
    free(conn->leftover);
    conn->magic = 0;
    free(conn);
}

static void on_closed(uv_handle_t *handle)
{
    struct connection *conn = OBJECT_CAST(handle->data, CONNECTION_MAGIC);
    conn->closed = true;
    free_when_done(conn);
}

/* Take the request out of everything and free it. */
static void forget(struct request *req)
{
    struct connection *conn = req->connection;
    struct server *server = conn->server;
    if (req->active) server->requests_active--;
    list_remove(&req->connection_link);
    list_remove(&req->queue_link);
    assert(conn->requests_count > 0);
    conn->requests_count--;
    server_request_free(server, req);
}

void connection_close(struct connection *conn, const char *reason)
{
    if (conn->closing) return;
    conn->closing = true;
    log_event(LOG_DEBUG, "closing", "connection=%" PRIu64 " reason='%s' unanswered=%zu",
              conn->number, reason, conn->requests_count);
    list_remove(&conn->waiting_link);
    list_remove(&conn->resume_link);
    server_memory_changed(conn->server);
    conn->incoming = NULL;
    LIST_FOR_SAFE (link, after, &conn->requests) {
        struct request *req = LIST_ENTRY(link, struct request, connection_link);
        switch (req->state) {
        case REQUEST_READING:
        case REQUEST_WAITING:
        case REQUEST_PARKED: forget(req); break;
        case REQUEST_RUNNING: atomic_store(&req->stop_code, MEMD_ECANCELLED); break;
        case REQUEST_ANSWERING: break; /* its write callback is called with an error */
        }
    }
    uv_close(&conn->uv.handle, on_closed);
}

void connection_release(struct request *req)
{
    struct connection *conn = req->connection;
    forget(req);
    conn->active_ns = clock_monotonic_ns();
    if (conn->closing)
        free_when_done(conn);
    else if (conn->last && conn->requests_count == 0)
        connection_close(conn, "protocol error");
    else if (!conn->consuming && (!conn->reading || dispatch_holds(conn)))
        connection_resume(conn);
}

/* Answer with `code` and read no more: the stream has lost its frame boundaries. */
static void refuse_stream(struct connection *conn, int code, const char *text)
{
    conn->last = true;
    log_event(LOG_INFO, "protocol-error", "connection=%" PRIu64 " %s: %s", conn->number,
              error_name(code), text);
    struct request *req = server_request_new(conn->server);
    if (req == NULL) {
        connection_close(conn, "no memory for an error reply");
        return;
    }
    req->connection = conn;
    list_append(&conn->requests, &req->connection_link);
    conn->requests_count++;
    conn->server->requests_active++;
    req->active = true;
    req->state = REQUEST_RUNNING;
    req->complete_ns = clock_monotonic_ns();
    dispatch_done(req, error_set(&req->err, code, "%s", text));
}

/* Large frames queue for memory in the order they came. */
static bool may_take_memory(struct connection *conn, uint64_t bytes)
{
    struct server *server = conn->server;
    if (bytes <= SMALL_FRAME_BYTES) return true;
    struct list_link *waiters = &server->memory_waiters;
    bool first = list_empty(waiters) || waiters->next == &conn->waiting_link;
    if (first && server->memory_bytes + bytes <= server->config.memory_in_flight) return true;
    if (!list_linked(&conn->waiting_link)) list_append(waiters, &conn->waiting_link);
    return false;
}

/* Room for one more frame? Otherwise whoever makes room calls connection_resume. */
static bool may_begin(struct connection *conn, uint64_t bytes)
{
    const struct config *config = &conn->server->config;
    bool own = conn->requests_count < config->requests_in_flight_max &&
               conn->unsent_bytes <= config->output_buffer_max;
    if (own && !may_take_memory(conn, bytes)) return false;
    if (list_linked(&conn->waiting_link)) { /* it was the first: let the next one ask */
        list_remove(&conn->waiting_link);
        server_memory_changed(conn->server);
    }
    return own;
}

static int allocate(struct request *req)
{
    const struct frame *frame = &req->frame;
    uint64_t frame_bytes = frame->message_bytes + frame->payload_bytes;
    /* The frame's own bytes and their alignment come on top of what the request may use. */
    req->arena.limit_bytes =
        (size_t)(req->server->config.request_memory_max + frame_bytes + 4 * LIMIT_PAYLOAD_ALIGN);
    req->message = arena_alloc(&req->arena, frame->message_bytes);
    req->payload =
        arena_alloc_aligned(&req->arena, (size_t)frame->payload_bytes, LIMIT_PAYLOAD_ALIGN);
    if (req->message == NULL || req->payload == NULL) return MEMD_ENOMEM;
    server_charge(req->server, req, frame_bytes);
    return 0;
}

static void set_deadline(struct request *req)
{
    uint64_t ms = req->frame.deadline_ms;
    if (ms == 0) ms = req->server->config.default_deadline;
    req->begun_ns = clock_monotonic_ns();
    req->deadline_ns = ms == 0 ? 0 : req->begun_ns + ms * NS_PER_MS;
}

/* conn->header is complete. True when conn->incoming is there; else reading stopped or ended. */
static bool begin_frame(struct connection *conn)
{
    struct error err = { 0 };
    struct frame frame;
    int rc = frame_decode(conn->header, &frame, &err);
    if (rc == 0 && frame.kind != FRAME_REQUEST)
        rc = error_set(&err, MEMD_EPROTO, "a reply was sent to the daemon");
    uint64_t bytes = rc < 0 ? 0 : frame.message_bytes + frame.payload_bytes;
    uint64_t most = conn->greeted ? conn->server->config.memory_in_flight : SMALL_FRAME_BYTES;
    if (rc == 0 && bytes > most && bytes > SMALL_FRAME_BYTES)
        rc = error_set(&err, MEMD_ELIMIT, "frame of %" PRIu64 " bytes, limit %" PRIu64, bytes,
                       most);
    if (rc < 0) {
        refuse_stream(conn, rc, err.text);
        return false;
    }
    if (!may_begin(conn, bytes)) return false;
    struct request *req = server_request_new(conn->server);
    if (req == NULL) {
        connection_close(conn, "no memory for a request");
        return false;
    }
    req->connection = conn;
    req->frame = frame;
    req->state = REQUEST_READING;
    list_append(&conn->requests, &req->connection_link);
    conn->requests_count++;
    set_deadline(req);
    if (allocate(req) < 0) {
        forget(req);
        refuse_stream(conn, MEMD_ENOMEM, "no memory for the frame");
        return false;
    }
    conn->incoming = req;
    return true;
}

/* Where the next byte of the body goes and how many bytes of that buffer are missing. */
static unsigned char *body_rest(struct request *req, size_t *ret_bytes)
{
    uint64_t message_bytes = req->frame.message_bytes;
    if (req->filled_bytes < message_bytes) {
        *ret_bytes = (size_t)(message_bytes - req->filled_bytes);
        return req->message + req->filled_bytes;
    }
    uint64_t payload_filled = req->filled_bytes - message_bytes;
    *ret_bytes = (size_t)(req->frame.payload_bytes - payload_filled);
    return req->payload + payload_filled;
}

static size_t fill_body(struct request *req, const unsigned char *data, size_t bytes)
{
    size_t used = 0;
    while (used < bytes) {
        size_t missing = 0;
        unsigned char *rest = body_rest(req, &missing);
        if (missing == 0) break;
        size_t take = missing < bytes - used ? missing : bytes - used;
        memcpy(rest, data + used, take);
        req->filled_bytes += take;
        used += take;
    }
    return used;
}

static bool body_complete(const struct request *req)
{
    return req->filled_bytes == req->frame.message_bytes + req->frame.payload_bytes;
}

/* `whole`: what was read ends with this frame. */
static void end_frame(struct connection *conn, bool whole)
{
    struct request *req = conn->incoming;
    descriptors_move(&req->descriptors, &conn->of_frame);
    if (whole) descriptors_move(&req->descriptors, &conn->came);
    conn->incoming = NULL;
    conn->header_bytes = 0;
    conn->frame_begun_ns = 0;
    dispatch_request(req);
}

/* Is a frame waiting for room? Its header is complete and nothing of its body was taken. */
static bool is_held_back(const struct connection *conn)
{
    return conn->incoming == NULL && conn->header_bytes == FRAME_HEADER_BYTES;
}

/* Turn bytes into requests; how many bytes were used. Fewer than all: reading has to stop. */
static size_t consume(struct connection *conn, const unsigned char *data, size_t bytes)
{
    size_t used = 0;
    conn->consuming = true;
    while (!conn->closing && !conn->last) {
        if (conn->incoming == NULL) {
            size_t missing = FRAME_HEADER_BYTES - conn->header_bytes;
            size_t take = missing < bytes - used ? missing : bytes - used;
            if (take > 0 && conn->header_bytes == 0) conn->frame_begun_ns = clock_monotonic_ns();
            if (take > 0) memcpy(conn->header + conn->header_bytes, data + used, take);
            conn->header_bytes += take;
            used += take;
            if (conn->header_bytes < FRAME_HEADER_BYTES || !begin_frame(conn)) break;
        }
        used += fill_body(conn->incoming, data + used, bytes - used);
        if (!body_complete(conn->incoming)) break;
        end_frame(conn, used == bytes);
    }
    if (!conn->closing && !is_held_back(conn)) descriptors_move(&conn->of_frame, &conn->came);
    conn->consuming = false;
    return used;
}

static void stop_reading(struct connection *conn)
{
    if (conn->reading) uv_read_stop(&conn->uv.stream);
    conn->reading = false;
}

static void keep_leftover(struct connection *conn, const unsigned char *data, size_t bytes)
{
    stop_reading(conn);
    if (bytes == 0) return;
    conn->leftover = malloc(bytes);
    if (conn->leftover == NULL) {
        connection_close(conn, "no memory for a held back frame");
        return;
    }
    memcpy(conn->leftover, data, bytes);
    conn->leftover_bytes = bytes;
    conn->leftover_used = 0;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf)
{
    (void)suggested;
    struct connection *conn = OBJECT_CAST(handle->data, CONNECTION_MAGIC);
    size_t missing = 0;
    unsigned char *rest = conn->incoming == NULL ? NULL : body_rest(conn->incoming, &missing);
    if (missing >= DIRECT_READ_BYTES)
        *ret_buf = uv_buf_init((char *)rest, (unsigned)missing);
    else
        *ret_buf = uv_buf_init((char *)conn->server->staging, SERVER_STAGING_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buf)
{
    struct connection *conn = OBJECT_CAST(stream->data, CONNECTION_MAGIC);
    if (count == 0) return;
    if (count < 0) {
        connection_close(conn, count == UV_EOF ? "closed by client" : uv_strerror((int)count));
        return;
    }
    if (!conn->is_tcp && descriptors_take(&conn->uv.pipe, &conn->came) < 0) {
        connection_close(conn, "no memory for a descriptor");
        return;
    }
    size_t bytes = (size_t)count;
    conn->active_ns = clock_monotonic_ns();
    conn->server->stats.received_bytes_total += bytes;
    if ((unsigned char *)buf->base != conn->server->staging) {
        conn->incoming->filled_bytes += bytes;
        descriptors_move(&conn->of_frame, &conn->came);
        if (body_complete(conn->incoming)) end_frame(conn, true);
        return;
    }
    size_t used = consume(conn, conn->server->staging, bytes);
    if (conn->closing) return;
    if (conn->last)
        stop_reading(conn);
    else if (is_held_back(conn))
        keep_leftover(conn, conn->server->staging + used, bytes - used);
}

static void start_reading(struct connection *conn)
{
    int rc = uv_read_start(&conn->uv.stream, on_alloc, on_read);
    if (rc < 0)
        connection_close(conn, uv_strerror(rc));
    else
        conn->reading = true;
}

void connection_start(struct connection *conn, enum role role, bool greeted)
{
    conn->role = role;
    conn->greeted = greeted;
    start_reading(conn);
}

void connection_resume(struct connection *conn)
{
    if (conn->closing || conn->last) return;
    if (!list_linked(&conn->resume_link)) server_schedule_resume(conn->server, conn);
}

void connection_continue(struct connection *conn)
{
    if (!conn->closing) dispatch_held(conn);
    if (conn->closing || conn->last || conn->reading) return;
    uint64_t now_ns = clock_monotonic_ns();
    if (conn->frame_begun_ns != 0)
        conn->frame_begun_ns = now_ns; /* we did not read: not its fault */
    /* Without a leftover only the header waits: any valid pointer will do for no bytes. */
    const unsigned char *rest =
        conn->leftover == NULL ? conn->header : conn->leftover + conn->leftover_used;
    conn->leftover_used += consume(conn, rest, conn->leftover_bytes - conn->leftover_used);
    if (conn->closing || conn->last || is_held_back(conn)) return;
    assert(conn->leftover_used == conn->leftover_bytes);
    free(conn->leftover);
    conn->leftover = NULL;
    conn->leftover_bytes = conn->leftover_used = 0;
    start_reading(conn);
}

static bool frame_is_late(const struct connection *conn, uint64_t now_ns)
{
    if (conn->frame_begun_ns == 0 || !conn->reading) return false;
    uint64_t elapsed_ms = (now_ns - conn->frame_begun_ns) / NS_PER_MS;
    uint64_t grace_ms = conn->server->config.frame_timeout;
    if (elapsed_ms <= grace_ms) return false;
    uint64_t filled = conn->incoming == NULL ? 0 : conn->incoming->filled_bytes;
    return filled < (elapsed_ms - grace_ms) * FRAME_RATE_BYTES_PER_MS;
}

static bool write_is_stuck(struct connection *conn, uint64_t now_ns)
{
    size_t queued = uv_stream_get_write_queue_size(&conn->uv.stream);
    if (queued == 0 || queued != conn->write_seen_bytes) {
        conn->write_seen_bytes = queued;
        conn->write_moved_ns = now_ns;
    }
    return now_ns - conn->write_moved_ns > conn->server->config.write_timeout * NS_PER_MS;
}

void connection_check_time(struct connection *conn, uint64_t now_ns)
{
    if (conn->closing) return;
    uint64_t idle_ms = conn->server->config.idle_timeout;
    if (frame_is_late(conn, now_ns))
        connection_close(conn, "frame arrives too slowly");
    else if (write_is_stuck(conn, now_ns))
        connection_close(conn, "replies are not read");
    else if (idle_ms != 0 && conn->requests_count == 0 && conn->frame_begun_ns == 0 &&
             now_ns - conn->active_ns > idle_ms * NS_PER_MS)
        connection_close(conn, "idle");
}
