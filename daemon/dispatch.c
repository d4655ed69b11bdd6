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
    if (conn->role < entry->role)
        return error_set(err, MEMD_EPERM, "%s needs role %s, this connection has %s",
                         method_name(method), config_role_name(entry->role),
                         config_role_name(conn->role));
    if (req->server->draining && !entry->operation->while_draining)
        return error_set(err, MEMD_EDRAINING, "daemon is draining and takes no new work");
    return 0;
}

static void run_here(struct request *req)
{
    req->state = REQUEST_RUNNING;
    dispatch_done(req, request_run(req));
}

static int run_on_worker(struct request *req)
{
    req->state = REQUEST_RUNNING;
    if (worker_submit(req) == 0) return 0;
    return error_set(&req->err, MEMD_EBUSY, "%llu requests wait for a worker already",
                     (unsigned long long)req->server->config.queue_limit);
}

/* Start ordered requests until one is under way. A refused one is answered at once. */
static void run_next_ordered(struct connection *conn)
{
    while (conn->ordered_running == NULL && !list_empty(&conn->ordered)) {
        struct request *req =
            LIST_ENTRY(list_take_first(&conn->ordered), struct request, queue_link);
        int rc = run_on_worker(req);
        if (rc < 0)
            dispatch_done(req, rc);
        else
            conn->ordered_running = req;
    }
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
    if (req->operation->is_tiny != NULL && req->operation->is_tiny(req)) {
        run_here(req);
    } else if (req->operation->ordered) {
        req->state = REQUEST_ORDERED;
        list_append(&conn->ordered, &req->queue_link);
        run_next_ordered(conn);
    } else {
        rc = run_on_worker(req);
        if (rc < 0) dispatch_done(req, rc);
    }
}

/* A request whose time is over is answered although its append goes on: it cannot be taken back. */
static int poll_parked(struct request *req)
{
    int status = req->operation->poll(req, &req->err);
    int stop = status == OPERATION_WAIT ? request_stop(req) : 0;
    if (stop == 0) return status;
    return error_set(&req->err, stop, "appended, but not yet as safe as was asked: %s",
                     error_text(stop));
}

void dispatch_done(struct request *req, int status)
{
    struct connection *conn = req->connection;
    bool was_ordered = conn->ordered_running == req;
    if (was_ordered) conn->ordered_running = NULL;
    if (conn->closing) {
        connection_release(req);
        return;
    }
    /* A commit may have come between the end of run and this moment: ask before waiting for the
     * next. */
    if (status == OPERATION_WAIT) status = poll_parked(req);
    if (status == OPERATION_WAIT) {
        req->state = REQUEST_PARKED;
        list_append(&req->server->parked, &req->queue_link);
        server_watch_parked(req->server);
    } else {
        req->status = status;
        reply_send(req);
    }
    if (was_ordered && !conn->closing) run_next_ordered(conn);
}

void dispatch_poll_parked(struct server *server)
{
    /* Answering one may close its connection, which takes others out: walk a list of our own. */
    struct list_link asking;
    list_init(&asking);
    while (!list_empty(&server->parked)) list_append(&asking, list_take_first(&server->parked));
    while (!list_empty(&asking)) {
        struct request *req = LIST_ENTRY(list_take_first(&asking), struct request, queue_link);
        int status = poll_parked(req);
        if (status == OPERATION_WAIT)
            list_append(&server->parked, &req->queue_link);
        else
            dispatch_done(req, status);
    }
}
