/* SPDX-License-Identifier: Apache-2.0 */
/* op_status.c — the daemon at a glance: what it is, where it listens, how full it is. */
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    struct server *server = req->server;
    struct catalog_stats catalog;
    catalog_get_stats(server->catalog, &catalog);
    char sync[OPTION_TEXT_BYTES];
    option_print(option_find("sync", 4), &server->config, sync);
    char backend[BACKEND_TEXT_BYTES], reason[BACKEND_TEXT_BYTES];
    backend_describe(&server->backend, backend, reason);
    char *listeners[LISTENERS_MAX];
    for (size_t i = 0; i < server->listener_count; i++) listeners[i] = server->listeners[i].name;

    Memd__StatusReply reply = MEMD__STATUS_REPLY__INIT;
    reply.build = (char *)SERVER_BUILD;
    reply.pid = (uint64_t)getpid();
    reply.uptime_ms = (clock_monotonic_ns() - server->started_ns) / 1000000;
    reply.data = server->config.data;
    reply.listeners = listeners;
    reply.n_listeners = server->listener_count;
    reply.sync = sync;
    reply.simd = (char *)cpu_level_name(cpu_level());
    reply.workers = (uint32_t)pool_threads(server->pool);
    reply.connections = server->connection_count;
    reply.contexts = catalog.contexts;
    reply.stored_bytes = catalog.stored_bytes;
    reply.budget_bytes = catalog.budget_bytes;
    reply.map_bytes = catalog.map_bytes;
    reply.map_used_bytes = catalog.map_used_bytes;
    reply.file_bytes = catalog.file_bytes;
    reply.backend = backend;
    reply.backend_reason = reason;
    reply.draining = server->draining;
    region_table_count(&server->regions, &reply.shared_regions, &reply.shared_bytes);
    reply.shared_bytes_max = server->config.shared_memory;
    reply.damaged_drops = catalog.damaged_drops;
    reply.damaged_pages = catalog.damaged_pages;
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_status = { .run = run,
                                            .is_tiny = dispatch_always_tiny,
                                            .while_draining = true };
