/* SPDX-License-Identifier: Apache-2.0 */
/* op_health.c — alive because it answers, ready unless it drains: it listens only once it has
 * recovered. */
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const struct server *server = req->server;
    Memd__HealthReply reply = MEMD__HEALTH_REPLY__INIT;
    reply.live = true;
    reply.ready = !server->draining;
    reply.draining = server->draining;
    if (server->draining) reply.reason = (char *)"draining";
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_health = { .run = run,
                                            .is_tiny = dispatch_always_tiny,
                                            .while_draining = true };
