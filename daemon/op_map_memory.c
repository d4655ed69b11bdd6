/* SPDX-License-Identifier: Apache-2.0 */
/* op_map_memory.c — take memory that a client shares.
 *
 * What the loop can do at once it does: a memfd is checked and mapped in microseconds, so that
 * whatever follows on the connection finds the region. What takes long is a worker's: pinning for a
 * device, importing the device's own memory. The answer may have to wait for requests of a
 * connection that had this memory before.
 *
 * A handle of CUDA IPC wants an administrator: its owner can free the memory under us, and that
 * would cost the daemon its device.
 */
#include <string.h>

#include "attention/cuda/neighbour.h"
#include "base/error.h"
#include "daemon/connection.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

/* The request is over, however it ended. */
static void put(void *object)
{
    region_forget(object);
    region_put(object);
}

static int check_connection(const struct request *req, const Memd__MapMemoryRequest *in,
                            struct error *err)
{
    const struct connection *conn = req->connection;
    bool device = in->kind != MEMD__MEMORY_KIND__MEMORY_HOST;
    unsigned wanted = device ? CONNECTION_DEVICE_MEMORY : CONNECTION_SHARED_MEMORY;
    if (in->kind > MEMD__MEMORY_KIND__MEMORY_DEVICE_HANDLE)
        return error_set(err, MEMD_EINVAL, "unknown kind %d of memory", (int)in->kind);
    if (conn->is_tcp) return error_set(err, MEMD_EUNSUPPORTED, "memory is shared on Unix sockets");
    if ((conn->features & wanted) == 0)
        return error_set(err, MEMD_EPERM, "no Hello with the feature %s-memory",
                         device ? "device" : "shared");
    if (in->kind == MEMD__MEMORY_KIND__MEMORY_DEVICE_HANDLE && req->role < ROLE_ADMIN)
        return error_set(err, MEMD_EPERM, "a handle of device memory needs role admin");
    return 0;
}

/* One descriptor or one handle, as the kind demands. */
static int check_export(const struct request *req, const Memd__MapMemoryRequest *in,
                        struct device_export *ret_export, struct error *err)
{
    bool handle = in->kind == MEMD__MEMORY_KIND__MEMORY_DEVICE_HANDLE;
    unsigned count = req->descriptors.count, wanted = handle ? 0 : 1;
    if (count != wanted || (wanted == 1 && req->descriptors.fd < 0))
        return error_set(err, MEMD_EINVAL, "%u descriptors came, must be %u", count, wanted);
    if (in->handle.len != (handle ? LIMIT_HANDLE_BYTES : 0))
        return error_set(err, MEMD_EINVAL, "handle of %zu bytes, must have %u", in->handle.len,
                         handle ? LIMIT_HANDLE_BYTES : 0);
    *ret_export = (struct device_export){
        .kind = handle ? DEVICE_EXPORT_HANDLE : DEVICE_EXPORT_DESCRIPTOR,
        .descriptor = req->descriptors.fd,
        .bytes = (size_t)in->bytes,
    };
    if (handle) memcpy(ret_export->handle, in->handle.data, in->handle.len);
    return 0;
}

static int begin(struct request *req, const Memd__MapMemoryRequest *in, struct error *err)
{
    struct server *server = req->server;
    struct region_wish wish = { .number = in->region,
                                .bytes = in->bytes,
                                .bytes_max = server->config.shared_memory,
                                .on_device = in->kind != MEMD__MEMORY_KIND__MEMORY_HOST };
    int rc = check_connection(req, in, err);
    if (rc == 0) rc = check_export(req, in, &wish.exported, err);
    if (rc == 0) rc = region_new(&server->regions, &wish, &req->region, err);
    if (rc < 0) return rc;
    if (arena_on_reset(&req->arena, put, req->region) < 0) return wire_no_memory(err);
    return wish.on_device ? 0 : region_enter(req->region, req->connection, err);
}

static int answer(struct request *req, struct error *err)
{
    if (!region_is_idle(req->region, false)) return OPERATION_WAIT;
    Memd__MapMemoryReply reply = MEMD__MAP_MEMORY_REPLY__INIT;
    reply.registered = req->region->pinned || req->region->imported;
    int rc = request_reply(req, &reply.base, NULL, 0, err);
    req->region->told = rc == 0;
    return rc;
}

static int run(struct request *req, struct error *err)
{
    const Memd__MapMemoryRequest *in = (const Memd__MapMemoryRequest *)req->in;
    struct accelerator *accelerator = req->server->backend.accelerator;
    bool on_device = in->kind != MEMD__MEMORY_KIND__MEMORY_HOST;
    int rc = 0;
    if (req->region == NULL) {
        rc = begin(req, in, err);
        if (rc < 0) return rc;
        bool offered = accelerator != NULL && neighbour_is_offered(accelerator);
        if (on_device || offered) return OPERATION_ELSEWHERE;
    } else {
        rc = region_register(req->region, err);
        if (rc == 0 && on_device) rc = region_enter(req->region, req->connection, err);
    }
    return rc < 0 ? rc : answer(req, err);
}

const struct operation operation_map_memory = { .run = run,
                                                .is_tiny = dispatch_always_tiny,
                                                .poll = answer };
