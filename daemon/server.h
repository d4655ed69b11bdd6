/* SPDX-License-Identifier: Apache-2.0 */
/* server.h — the one object of the process: loop, listeners, connections, catalog, pool, and their
 * lives.
 *
 *     server_open → server_run (until drained) → server_close
 *
 * Life     SIGTERM, SIGINT and Drain stop the listeners and refuse new work; running requests get
 *          drain_timeout, are then cancelled, and when the last has been answered the loop ends and
 *          server_close commits and syncs. SIGHUP reads the configuration again; a bad file changes
 *          nothing.
 * Threads  the loop's, but for `catalog`, `pool`, `answers` and `started_ns`, which are immutable
 *          after open and may be used by operations on workers, and `regions`, which locks itself
 * Errors   of server_open: MEMD_EIO listeners, MEMD_EINVAL, MEMD_ENOMEM, and all of catalog_open
 */
#ifndef MEMD_DAEMON_SERVER_H
#define MEMD_DAEMON_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/list.h"
#include "daemon/backend.h"
#include "daemon/config.h"
#include "daemon/heap.h"
#include "daemon/identity.h"
#include "daemon/listener.h"
#include "daemon/region.h"
#include "daemon/stats.h"
#include "daemon/worker.h"

struct answers;
struct connection;
struct error;
struct request;

#define SERVER_MAGIC UINT32_C(0x56525345)

enum { SERVER_STAGING_BYTES = 64 << 10, SERVER_SIGNALS = 3, SERVER_TEXT_BYTES = 64 };
#define SERVER_BUILD "memd " MEMD_VERSION

/* Where the configuration came from, for reading it again. Borrowed from main. */
struct server_origin {
    const char *config_path; /* NULL = none */
    const struct config_override *overrides;
    size_t override_count;
};

struct server {
    uint32_t magic;
    uv_loop_t loop;
    bool loop_open;
    struct config config;
    struct server_origin origin;
    struct identity identity;
    struct catalog *catalog;
    struct pool *pool;
    struct backend_choice backend;
    struct region_table regions;
    uint64_t started_ns;
    struct stats stats;
    struct answers *answers; /* immutable after open; its inside is for any thread */
    struct heap heap;

    struct listener listeners[LISTENERS_MAX];
    size_t listener_count;
    struct list_link connections;
    size_t connection_count;
    unsigned char *staging; /* (SERVER_STAGING_BYTES): what a read may fill before it is consumed */

    struct list_link memory_waiters; /* connections with a large frame, oldest first */
    uint64_t memory_bytes;           /* charged by requests */
    struct list_link resumable;      /* connections that may be read again */
    uv_idle_t resume;

    struct list_link free_requests;
    size_t free_request_count;
    size_t requests_active; /* dispatched and not released */
    struct worker_queue finished;
    struct list_link parked;
    uv_timer_t parked_timer;

    uv_timer_t tick; /* slow and idle connections, the drain's deadline */
    uint64_t damaged_drops, damaged_pages; /* loop: that were logged */
    uv_timer_t watchdog;
    uv_signal_t signals[SERVER_SIGNALS];
    bool draining, stopping;
    uint64_t drain_deadline_ns;
};

int server_open(const struct config *config, const struct server_origin *origin,
                struct server *server, struct error *err);

/* Until the drain is over. */
void server_run(struct server *server);

/* Commit, sync, free. Safe on a server that server_open left half open. */
void server_close(struct server *server);

/* Begin to drain (again: only the earlier deadline counts). */
void server_drain(struct server *server, uint64_t timeout_ms, const char *why);

/* A zeroed request with an initialised arena, or NULL without memory. */
struct request *server_request_new(struct server *server);
void server_request_free(struct server *server, struct request *req);

/* Let the request account for `bytes` in all (0: nothing any more). */
void server_charge(struct server *server, struct request *req, uint64_t bytes);
void server_memory_changed(struct server *server);

void server_schedule_resume(struct server *server, struct connection *conn);
void server_watch_parked(struct server *server);

/* The handle of a listener has a connection to accept. */
void server_accept(struct server *server, struct listener *listener);

#endif
