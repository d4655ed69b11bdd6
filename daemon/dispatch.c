/* SPDX-License-Identifier: Apache-2.0 */
/* dispatch.c — the only place that decides where a request runs and whether it may.
 *
 * Checks come in the order of their price: known method, role, draining, then place. A request that
 * fails a check is answered through the same path as one that ran, so there is one way out.
 */
#include "daemon/dispatch.h"

#include <assert.h>
#include <stddef.h>

#include "base/clock.h"
#include "daemon/connection.h"
#include "daemon/reply.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/worker.h"

enum {
    MEMORY_REFUSE_FACTOR = 2, /* work is refused when memory_in_flight is charged as often */
    AGAIN_MS_MAX = 2000,      /* how long a request waits for room before it is refused */
};
#define NS_PER_MS UINT64_C(1000000)

struct entry {
    const struct operation *operation;
    enum role role;
};

static struct entry find(unsigned method)
{
    switch (method) {
#define X(NAME, number, snake, Message, role) \
    case number: return (struct entry){ &operation_##snake, role };
        METHOD_MAP(X)
#undef X
    default: return (struct entry){ NULL, ROLE_NONE };
    }
}

bool dispatch_always_tiny(struct request *req)
{
    (void)req;
    return true;
}

static int check(struct request *req, const struct entry *entry, struct error *err)
{
    const struct connection *conn = req->connection;
    unsigned method = req->frame.method;
    if (entry->operation == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "unknown method %u", method);
    if (!conn->greeted && method != METHOD_HELLO)
        return error_set(err, MEMD_EPERM, "%s before a Hello with a valid token",
                         method_name(method));
    if (req->descriptors.count > 0 && method != METHOD_MAP_MEMORY)
        return error_set(err, MEMD_EINVAL, "%u descriptors came with %s", req->descriptors.count,
                         method_name(method));
    if (conn->role < entry->role)
        return error_set(err, MEMD_EPERM, "%s needs role %s, this connection has %s",
                         method_name(method), config_role_name(entry->role),
                         config_role_name(conn->role));
    if (entry->operation->is_tiny == dispatch_always_tiny &&
        req->frame.message_bytes > LIMIT_SMALL_MESSAGE_BYTES)
        return error_set(err, MEMD_ELIMIT, "%s of %u bytes, limit %u", method_name(method),
                         req->frame.message_bytes, LIMIT_SMALL_MESSAGE_BYTES);
    if (req->server->draining && !entry->operation->while_draining)
        return error_set(err, MEMD_EDRAINING, "daemon is draining and takes no new work");
    return 0;
}

/* Even numbers are contexts, odd ones connections. */
static uint64_t flow_of(struct request *req)
{
    struct error err = { 0 };
    uint64_t context = 0;
    /* What is wrong with a message is said where it runs; a large one is unpacked there too. */
    if (req->in == NULL && req->frame.message_bytes <= LIMIT_SMALL_MESSAGE_BYTES)
        request_unpack(req, &err);
    if (req->in != NULL) context = message_context(req->in);
    return context != 0 ? 2 * context : 2 * req->connection->number + 1;
}

/* Of its flow among those of the connection. */
static size_t place_of(const struct request *req)
{
    return (size_t)(req->flow / 2 % CONNECTION_FLOWS);
}

static int submit(struct request *req)
{
    struct server *server = req->server;
    const struct config *config = &server->config;
    req->state = REQUEST_RUNNING;
    req->on_loop = false;
    /* Connections that are held back keep it near the limit; many new ones may still pass it. */
    if (server->memory_bytes > MEMORY_REFUSE_FACTOR * config->memory_in_flight)
        return error_set(&req->err, MEMD_EBUSY, "%llu bytes of requests and replies are in flight",
                         (unsigned long long)server->memory_bytes);
    worker_submit(req);
    req->pooled = true;
    req->connection->pooled_in[place_of(req)]++;
    return 0;
}

/* A request whose time is over is answered although its append goes on: it cannot be taken back. */
static int poll_parked(struct request *req)
{
    int status = req->operation->poll(req, &req->err);
    int stop = status == OPERATION_WAIT ? request_stop(req) : 0;
    if (stop == 0) return status;
    return error_set(&req->err, stop, "taken, but not yet as far as was asked: %s",
                     error_text(stop));
}

/* Answer, park, or drop when nobody is there any more. */
static void finish(struct request *req, int status)
{
    if (req->connection->closing) {
        connection_release(req);
        return;
    }
    /* A commit may have come between the end of run and now: ask before waiting for the next. */
    if (status == OPERATION_WAIT) status = poll_parked(req);
    if (status == OPERATION_WAIT) {
        req->state = REQUEST_PARKED;
        list_append(&req->server->parked, &req->queue_link);
        server_watch_parked(req->server);
    } else {
        req->status = status;
        reply_send(req);
    }
}

/* Submit the first request of a list. A refused one is answered at once; true when it was taken. */
static bool submit_first(struct list_link *list)
{
    struct request *req = LIST_ENTRY(list_take_first(list), struct request, queue_link);
    int rc = submit(req);
    if (rc < 0) finish(req, rc);
    return rc == 0;
}

/* Start ordered requests until one is under way. */
static void run_next_ordered(struct connection *conn)
{
    while (!conn->closing && conn->ordered_running == NULL && !list_empty(&conn->ordered)) {
        struct request *first = LIST_ENTRY(conn->ordered.next, struct request, queue_link);
        if (submit_first(&conn->ordered)) conn->ordered_running = first;
    }
}

/* Of every flow one more than there are workers, whatever the others do: what is in the pool at
 * once is bounded by the number of connections, and who floods it waits for itself. Who does not
 * read its replies is bounded twice more. */
static bool has_share(const struct connection *conn, size_t place)
{
    const struct server *server = conn->server;
    if (conn->pooled_in[place] > pool_threads(server->pool)) return false;
    if (conn->unsent_bytes == 0) return true;
    return conn->unsent_bytes <= server->config.output_buffer_max &&
           server->memory_bytes <= server->config.memory_in_flight;
}

void dispatch_held(struct connection *conn)
{
    size_t first = conn->held_next;
    for (size_t i = 0; i < CONNECTION_FLOWS; i++) {
        size_t place = (first + i) % CONNECTION_FLOWS;
        while (!conn->closing && !list_empty(&conn->held[place]) && has_share(conn, place)) {
            conn->held_next = place + 1;
            submit_first(&conn->held[place]);
        }
    }
}

bool dispatch_holds(const struct connection *conn)
{
    bool holds = false;
    for (size_t i = 0; i < CONNECTION_FLOWS; i++) holds |= !list_empty(&conn->held[i]);
    return holds;
}

static void enqueue(struct request *req)
{
    struct connection *conn = req->connection;
    bool ordered = req->operation->ordered;
    req->state = REQUEST_WAITING;
    req->flow = flow_of(req);
    list_append(ordered ? &conn->ordered : &conn->held[place_of(req)], &req->queue_link);
    if (ordered)
        run_next_ordered(conn);
    else
        dispatch_held(conn);
}

/* No room: wait for a commit without holding a worker or a pin. It keeps its turn. */
static void park_again(struct request *req)
{
    arena_release(&req->arena);
    if (req->again_since_ns == 0) req->again_since_ns = clock_monotonic_ns();
    req->again = true;
    req->state = REQUEST_PARKED;
    list_append(&req->server->parked, &req->queue_link);
    server_watch_parked(req->server);
}

static void run_again(struct request *req)
{
    req->again = false;
    int rc = request_stop(req);
    if (rc < 0) error_set(&req->err, rc, "not done: %s", error_text(rc));
    uint64_t waited_ns = clock_monotonic_ns() - req->again_since_ns;
    if (rc == 0 && waited_ns > AGAIN_MS_MAX * NS_PER_MS) rc = req->err.code; /* of its last run */
    if (rc == 0) rc = submit(req);
    if (rc < 0) dispatch_done(req, rc);
}

void dispatch_done(struct request *req, int status)
{
    struct connection *conn = req->connection;
    if (req->pooled) conn->pooled_in[place_of(req)]--;
    req->pooled = false;
    if (status == OPERATION_AGAIN && !conn->closing) {
        park_again(req);
        dispatch_held(conn);
        return;
    }
    if (conn->ordered_running == req) conn->ordered_running = NULL;
    bool was_closing = conn->closing;
    finish(req, status); /* a closing connection may be gone now */
    if (was_closing || conn->closing) return;
    run_next_ordered(conn);
    dispatch_held(conn);
}

static void run_here(struct request *req)
{
    req->state = REQUEST_RUNNING;
    req->on_loop = true;
    int status = request_run(req);
    if (status == OPERATION_ELSEWHERE)
        enqueue(req);
    else
        dispatch_done(req, status);
}

void dispatch_request(struct request *req)
{
    struct connection *conn = req->connection;
    struct entry entry = find(req->frame.method);
    req->complete_ns = clock_monotonic_ns();
    req->role = conn->role;
    req->server->requests_active++;
    req->active = true;
    int rc = check(req, &entry, &req->err);
    if (rc < 0) {
        dispatch_done(req, rc);
        return;
    }
    req->operation = entry.operation;
    if (req->operation->is_tiny != NULL && req->operation->is_tiny(req))
        run_here(req);
    else
        enqueue(req);
}

void dispatch_poll_parked(struct server *server)
{
    /* Answering one may close its connection, which takes others out: walk a list of our own. */
    struct list_link asking;
    list_init(&asking);
    while (!list_empty(&server->parked)) list_append(&asking, list_take_first(&server->parked));
    while (!list_empty(&asking)) {
        struct request *req = LIST_ENTRY(list_take_first(&asking), struct request, queue_link);
        if (req->again) {
            run_again(req);
            continue;
        }
        int status = poll_parked(req);
        if (status == OPERATION_WAIT)
            list_append(&server->parked, &req->queue_link);
        else
            dispatch_done(req, status);
    }
}
