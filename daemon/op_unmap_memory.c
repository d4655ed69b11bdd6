/* SPDX-License-Identifier: Apache-2.0 */
/* op_unmap_memory.c — give shared memory back: no later request finds it, and the answer says that
 * none before touches it any more. */
#include "base/error.h"
#include "daemon/connection.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static void put(void *object)
{
    region_put(object);
}

static int answer(struct request *req, struct error *err)
{
    if (!region_is_idle(req->region, true)) return OPERATION_WAIT;
    Memd__UnmapMemoryReply reply = MEMD__UNMAP_MEMORY_REPLY__INIT;
    return request_reply(req, &reply.base, NULL, 0, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__UnmapMemoryRequest *in = (const Memd__UnmapMemoryRequest *)req->in;
    int rc = region_leave(req->connection, in->region, &req->region, err);
    if (rc < 0) return rc;
    if (arena_on_reset(&req->arena, put, req->region) < 0) return wire_no_memory(err);
    return answer(req, err);
}

const struct operation operation_unmap_memory = {
    .run = run, .is_tiny = dispatch_always_tiny, .poll = answer, .while_draining = true
};
