/* SPDX-License-Identifier: Apache-2.0 */
/* op_hello.c — the two sides learn what the other speaks; on TCP it is also the door. */
#include <string.h>

#include "attention/cuda/neighbour.h"

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
enum { FEATURES = sizeof features / sizeof features[0] };
static const char shared_memory[] = "shared-memory", device_memory[] = "device-memory";

/* What depends on the connection and on what the daemon has. */
static unsigned offered(const struct server *server, const struct connection *conn)
{
    struct accelerator *accelerator = server->backend.accelerator;
    if (conn->is_tcp || server->config.shared_memory == 0) return 0;
    bool device = accelerator != NULL && neighbour_is_offered(accelerator);
    return CONNECTION_SHARED_MEMORY | (device ? CONNECTION_DEVICE_MEMORY : 0);
}

/* Of that, what the client is going to use. */
static unsigned wanted(const Memd__HelloRequest *in)
{
    unsigned wanted = 0;
    for (size_t i = 0; i < in->n_features; i++) {
        if (strcmp(in->features[i], shared_memory) == 0) wanted |= CONNECTION_SHARED_MEMORY;
        if (strcmp(in->features[i], device_memory) == 0) wanted |= CONNECTION_DEVICE_MEMORY;
    }
    return wanted;
}

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

    unsigned offers = offered(req->server, conn);
    conn->features = offers & wanted(in);
    const char *names[FEATURES + 2];
    size_t count = FEATURES;
    memcpy(names, features, sizeof features);
    if ((offers & CONNECTION_SHARED_MEMORY) != 0) names[count++] = shared_memory;
    if ((offers & CONNECTION_DEVICE_MEMORY) != 0) names[count++] = device_memory;

    const char *const *methods = catalog_methods();
    Memd__HelloReply reply = MEMD__HELLO_REPLY__INIT;
    reply.version = FRAME_VERSION;
    reply.build = (char *)SERVER_BUILD;
    reply.features = (char **)names;
    reply.n_features = count;
    reply.region_bytes_max = offers == 0 ? 0 : req->server->config.shared_memory;
    reply.regions_max = offers == 0 ? 0 : LIMIT_REGIONS;
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
