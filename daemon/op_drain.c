/* SPDX-License-Identifier: Apache-2.0 */
/* op_drain.c — SIGTERM by request: finish what runs, sync, exit. */
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const Memd__DrainRequest *in = (const Memd__DrainRequest *)req->in;
    struct server *server = req->server;
    uint64_t timeout_ms = in->deadline_ms == 0 ? server->config.drain_timeout : in->deadline_ms;
    server_drain(server, timeout_ms, "Drain");
    Memd__DrainReply reply = MEMD__DRAIN_REPLY__INIT;
    reply.requests_left = server->requests_active - 1; /* without this one */
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_drain = { .run = run,
                                           .is_tiny = dispatch_always_tiny,
                                           .while_draining = true };
