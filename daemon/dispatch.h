/* SPDX-License-Identifier: Apache-2.0 */
/* dispatch.h — from a complete frame to the operation that answers it, and back to the reply.
 *
 * The table is made from proto/method.h: method M is answered by `operation_m`, defined in op_m.c.
 * An operation's `run` has one shape: decode, pin, compute, answer (request_reply). It runs on a
 * worker, or on the loop when `is_tiny` says so (docs/decisions/0020).
 *
 * Order    operations marked `ordered` (those that change something) of one connection run one at a
 *          time, in the order of arrival, so that appends can be pipelined. Others may overtake
 *          them: a read that must see an append is sent after the append's reply.
 * Shares   requests about one context are a flow (those about none: of one connection), and the
 *          pool shares its threads among flows (base/pool.h), so a context with slow requests costs
 *          others no more than their share. Of one flow a connection has at most one request more
 *          in the pool than there are workers, of all its flows at most half of what may wait
 *          there, and none new while too many bytes of its replies are unread. The rest waits, so
 *          that a flood or a deaf client costs its own connection.
 * Threads  loop, except `run` itself
 */
#ifndef MEMD_DAEMON_DISPATCH_H
#define MEMD_DAEMON_DISPATCH_H

#include <stdbool.h>

#include "proto/method.h"

struct connection;
struct error;
struct request;
struct server;

enum {
    OPERATION_WAIT = 1,      /* `run`, `poll`: the answer has to wait for the writer thread */
    OPERATION_ELSEWHERE = 2, /* `run` on the loop: it would have to wait; run it on a worker */
    OPERATION_AGAIN = 3,     /* `run`: no room now, err says why; run it again after a commit */
};

struct operation {
    /* 0 after request_reply, an error code with err filled, or one of the above. */
    int (*run)(struct request *req, struct error *err);
    /* Loop: is the cost so small that a worker would cost more? NULL: never. */
    bool (*is_tiny)(struct request *req);
    /* Loop: asked after every commit once run returned OPERATION_WAIT; same results. */
    int (*poll)(struct request *req, struct error *err);
    bool ordered;
    bool while_draining;
};

#define X(NAME, number, snake, Message, role) extern const struct operation operation_##snake;
METHOD_MAP(X)
#undef X

/* The frame is complete: check, then run, queue or refuse. Ends in dispatch_done, now or later. */
void dispatch_request(struct request *req);

/* `run` returned `status`: answer, park, or drop when the connection is gone. Starts the next
 * ordered one. */
void dispatch_done(struct request *req, int status);

/* Submit what the connection's share of the pool has room for now. */
void dispatch_held(struct connection *conn);
/* Does anything wait for that? */
bool dispatch_holds(const struct connection *conn);

/* Ask parked requests again: after commits, and in time for their deadlines. */
void dispatch_poll_parked(struct server *server);

/* For is_tiny of operations that never do more than read counters. */
bool dispatch_always_tiny(struct request *req);

#endif
