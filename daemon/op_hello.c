/* SPDX-License-Identifier: Apache-2.0 */
/* op_hello.c — the two sides learn what the other speaks; on TCP it is also the door. */
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/connection.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static const char *const features[] = { "attend-batch", "append-batch", "deadline",
                                        "fork",         "search",       "methods",
                                        "levels",       "recall",       "rebuild",
                                        "inputs",       "explain",      "local",
                                        "observe",      "compress",     "params",  "theta",
                                        "window" };

/* A token on a Unix socket is not needed and not looked at: the kernel has said who asks. */
static int admit(struct connection *conn, const char *token, struct error *err)
{
    if (!conn->is_tcp) return 0;
    enum role role = identity_of_token(&conn->server->identity, token);
    if (role == ROLE_NONE)
        return error_set(err, MEMD_EPERM, "the token is not one of the token file");
    conn->role = role;
    conn->greeted = true;
    return 0;
}

static size_t count_names(const char *const *names)
{
    size_t count = 0;
    while (names[count] != NULL) count++;
    return count;
}

/* What a frame may have without ever meeting memory_in_flight, which counts message and payload. */
static void frame_limits(const struct config *config, Memd__HelloReply *reply)
{
    uint64_t half = config->memory_in_flight / 2;
    reply->frame_message_max =
        half < LIMIT_FRAME_MESSAGE_BYTES ? half : LIMIT_FRAME_MESSAGE_BYTES;
    uint64_t rest = config->memory_in_flight - reply->frame_message_max;
    reply->frame_payload_max = rest < LIMIT_FRAME_PAYLOAD_BYTES ? rest : LIMIT_FRAME_PAYLOAD_BYTES;
}

static int run(struct request *req, struct error *err)
{
    const Memd__HelloRequest *in = (const Memd__HelloRequest *)req->in;
    struct connection *conn = req->connection; /* on the loop: is_tiny */
    if (in->version < FRAME_VERSION)
        return error_set(err, MEMD_EVERSION, "client speaks version %u, daemon %d", in->version,
                         FRAME_VERSION);
    int rc = admit(conn, in->token, err);
    if (rc < 0) return rc;
    log_event(LOG_DEBUG, "hello", "connection=%llu client='%.100s'",
              (unsigned long long)conn->number, in->client);

    const char *const *methods = catalog_methods();
    Memd__HelloReply reply = MEMD__HELLO_REPLY__INIT;
    reply.version = FRAME_VERSION;
    reply.build = (char *)SERVER_BUILD;
    reply.features = (char **)features;
    reply.n_features = sizeof features / sizeof features[0];
    reply.role = (char *)config_role_name(conn->role);
    frame_limits(&req->server->config, &reply);
    reply.requests_in_flight_max = req->server->config.requests_in_flight_max;
    reply.methods = (char **)methods;
    reply.n_methods = count_names(methods);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_hello = { .run = run,
                                           .is_tiny = dispatch_always_tiny,
                                           .while_draining = true };
