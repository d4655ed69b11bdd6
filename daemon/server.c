/* SPDX-License-Identifier: Apache-2.0 */
/* server.c — building the process up, taking it down, and the small decisions in between.
 *
 * Order matters at both ends. Up: lock the data directory before touching the socket file, so that
 * a second daemon cannot steal it; listen last, so that who can connect is answered. Down: the loop
 * ends first, then the pool (its jobs touch contexts), then the catalog (its writer still wakes the
 * loop), then the handle that it wakes.
 */
#include "daemon/server.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/log.h"
#include "base/object.h"
#include "daemon/answers.h"
#include "daemon/connection.h"
#include "daemon/dispatch.h"
#include "daemon/notify.h"
#include "daemon/reload.h"
#include "daemon/request.h"

enum {
    TICK_MS = 250,
    DRAIN_TICK_MS = 5,
    PARKED_TICK_MS = 5,
    FREE_REQUESTS_MAX = 256,
    TCP_KEEPALIVE_S = 60,
};
#define NS_PER_MS UINT64_C(1000000)

struct request *server_request_new(struct server *server)
{
    struct request *req = NULL;
    struct list_link *link = list_take_first(&server->free_requests);
    if (link != NULL) {
        req = LIST_ENTRY(link, struct request, queue_link);
        server->free_request_count--;
        struct arena arena = req->arena;
        memset(req, 0, sizeof *req);
        req->arena = arena;
    } else {
        req = calloc(1, sizeof *req);
        if (req == NULL) return NULL;
    }
    req->magic = REQUEST_MAGIC;
    req->server = server;
    req->descriptors = DESCRIPTORS_NONE;
    req->arena.limit_bytes = (size_t)server->config.request_memory_max;
    return req;
}

void server_request_free(struct server *server, struct request *req)
{
    server_charge(server, req, 0);
    descriptors_close(&req->descriptors);
    region_copies_done(req);
    if (server->free_request_count >= FREE_REQUESTS_MAX) {
        arena_fini(&req->arena);
        req->magic = 0;
        free(req);
        return;
    }
    arena_reset(&req->arena);
    list_append(&server->free_requests, &req->queue_link);
    server->free_request_count++;
}

void server_charge(struct server *server, struct request *req, uint64_t bytes)
{
    bool less = bytes < req->charged_bytes;
    assert(server->memory_bytes >= req->charged_bytes);
    server->memory_bytes += bytes - req->charged_bytes;
    req->charged_bytes = bytes;
    if (less) server_memory_changed(server);
}

void server_memory_changed(struct server *server)
{
    if (list_empty(&server->memory_waiters)) return;
    connection_resume(LIST_ENTRY(server->memory_waiters.next, struct connection, waiting_link));
}

static void on_resume(uv_idle_t *idle)
{
    struct server *server = OBJECT_CAST(idle->data, SERVER_MAGIC);
    struct list_link now;
    list_init(&now);
    while (!list_empty(&server->resumable)) list_append(&now, list_take_first(&server->resumable));
    while (!list_empty(&now))
        connection_continue(LIST_ENTRY(list_take_first(&now), struct connection, resume_link));
    if (list_empty(&server->resumable)) uv_idle_stop(idle);
}

void server_schedule_resume(struct server *server, struct connection *conn)
{
    list_append(&server->resumable, &conn->resume_link);
    uv_idle_start(&server->resume, on_resume);
}

static void on_parked_timer(uv_timer_t *timer)
{
    struct server *server = OBJECT_CAST(timer->data, SERVER_MAGIC);
    dispatch_poll_parked(server);
    if (list_empty(&server->parked)) uv_timer_stop(timer);
}

void server_watch_parked(struct server *server)
{
    if (server->stopping || uv_is_active((uv_handle_t *)&server->parked_timer)) return;
    uv_timer_start(&server->parked_timer, on_parked_timer, PARKED_TICK_MS, PARKED_TICK_MS);
}

/* ---- accepting ---- */

static enum role peer_role(struct server *server, struct connection *conn)
{
    struct ucred peer = { 0 };
    socklen_t bytes = sizeof peer;
    uv_os_fd_t fd = -1;
    if (uv_fileno(&conn->uv.handle, &fd) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
        return ROLE_NONE;
    enum role role = identity_of_uid(&server->config, (uint32_t)peer.uid);
    log_event(LOG_DEBUG, "accepted", "connection=%" PRIu64 " uid=%u pid=%d role=%s", conn->number,
              (unsigned)peer.uid, (int)peer.pid, config_role_name(role));
    return role;
}

/* A typed answer for who comes too late, as far as one write takes it. */
static void refuse(struct connection *conn)
{
    struct frame frame = { .kind = FRAME_REPLY, .status = MEMD_EBUSY };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    uv_buf_t buf = uv_buf_init((char *)header, sizeof header);
    uv_try_write(&conn->uv.stream, &buf, 1);
    conn->server->stats.connections_refused_total++;
    connection_close(conn, "too many connections");
}

void server_accept(struct server *server, struct listener *listener)
{
    struct connection *conn = NULL;
    if (connection_new(server, listener->is_tcp, &conn) < 0) {
        log_event(LOG_ERROR, "accept-failed", "listener=%s reason='no memory'", listener->name);
        return;
    }
    int rc = uv_accept(&listener->uv.stream, &conn->uv.stream);
    if (rc < 0) {
        connection_close(conn, uv_strerror(rc));
    } else if (server->connection_count > server->config.connections_max) {
        refuse(conn);
    } else if (listener->is_tcp) {
        uv_tcp_nodelay(&conn->uv.tcp, 1);
        uv_tcp_keepalive(&conn->uv.tcp, 1, TCP_KEEPALIVE_S);
        connection_start(conn, ROLE_NONE, false);
    } else {
        connection_start(conn, peer_role(server, conn), true);
    }
}

/* ---- the end ---- */

static void close_handle(uv_handle_t *handle)
{
    if (handle->loop != NULL && !uv_is_closing(handle)) uv_close(handle, NULL);
}

/* Nothing runs any more: let the loop run out of handles, but for the one the writer wakes. */
static void stop(struct server *server)
{
    if (server->stopping) return;
    server->stopping = true;
    listener_close_all(server);
    LIST_FOR_SAFE (link, after, &server->connections)
        connection_close(LIST_ENTRY(link, struct connection, link), "daemon stops");
    close_handle((uv_handle_t *)&server->tick);
    close_handle((uv_handle_t *)&server->watchdog);
    close_handle((uv_handle_t *)&server->parked_timer);
    close_handle((uv_handle_t *)&server->resume);
    for (size_t i = 0; i < SERVER_SIGNALS; i++)
        close_handle((uv_handle_t *)&server->signals[i]);
}

static void cancel_all(struct server *server)
{
    LIST_FOR (conn_link, &server->connections) {
        struct connection *conn = LIST_ENTRY(conn_link, struct connection, link);
        LIST_FOR (link, &conn->requests) {
            struct request *req = LIST_ENTRY(link, struct request, connection_link);
            int none = 0;
            atomic_compare_exchange_strong(&req->stop_code, &none, MEMD_ECANCELLED);
        }
    }
    dispatch_poll_parked(server);
}

/* Replies that nobody reads must not hold up the end. */
static void close_stuck(struct server *server)
{
    LIST_FOR_SAFE (link, after, &server->connections) {
        struct connection *conn = LIST_ENTRY(link, struct connection, link);
        if (conn->unsent_bytes > 0) connection_close(conn, "drain timeout");
    }
}

static void check_drain(struct server *server, uint64_t now_ns)
{
    if (now_ns > server->drain_deadline_ns) {
        cancel_all(server);
        close_stuck(server);
    }
    if (server->requests_active == 0) stop(server);
}

/* Once for each, also after a restart. */
static void report_damage(struct server *server)
{
    struct catalog_stats catalog;
    catalog_get_stats(server->catalog, &catalog);
    if (catalog.damaged_drops > server->damaged_drops)
        log_event(LOG_ERROR, "damage",
                  "drops=%" PRIu64 " detail='dropped contexts whose bytes stay in the store'",
                  catalog.damaged_drops);
    if (catalog.damaged_pages > server->damaged_pages)
        log_event(LOG_ERROR, "damage",
                  "pages=%" PRIu64 " detail='fenced off in data.mdb; memctl verify says which'",
                  catalog.damaged_pages);
    server->damaged_drops = catalog.damaged_drops;
    server->damaged_pages = catalog.damaged_pages;
}

static void on_tick(uv_timer_t *timer)
{
    struct server *server = OBJECT_CAST(timer->data, SERVER_MAGIC);
    uint64_t now_ns = clock_monotonic_ns();
    LIST_FOR_SAFE (link, after, &server->connections)
        connection_check_time(LIST_ENTRY(link, struct connection, link), now_ns);
    heap_tick(&server->heap, server, now_ns);
    report_damage(server);
    if (server->draining) check_drain(server, now_ns);
}

void server_drain(struct server *server, uint64_t timeout_ms, const char *why)
{
    uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    if (server->draining) {
        if (deadline_ns < server->drain_deadline_ns) server->drain_deadline_ns = deadline_ns;
        return;
    }
    server->draining = true;
    server->drain_deadline_ns = deadline_ns;
    log_event(LOG_INFO, "draining", "why=%s active=%zu timeout_ms=%" PRIu64, why,
              server->requests_active, timeout_ms);
    notify_stopping("draining", timeout_ms + 10000);
    listener_close_all(server);
    uv_timer_start(&server->tick, on_tick, DRAIN_TICK_MS, DRAIN_TICK_MS);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct server *server = OBJECT_CAST(handle->data, SERVER_MAGIC);
    if (number == SIGHUP)
        reload_config(server);
    else
        server_drain(server, server->config.drain_timeout,
                     number == SIGTERM ? "SIGTERM" : "SIGINT");
}

static void on_watchdog(uv_timer_t *timer)
{
    (void)timer;
    notify_watchdog();
}

/* ---- the beginning ---- */

static int open_timers(struct server *server, struct error *err)
{
    static const int numbers[SERVER_SIGNALS] = { SIGTERM, SIGINT, SIGHUP };
    uint64_t watchdog_ms = notify_watchdog_ms() / 2;
    int rc = uv_timer_init(&server->loop, &server->tick);
    if (rc == 0) rc = uv_timer_init(&server->loop, &server->watchdog);
    if (rc == 0) rc = uv_timer_init(&server->loop, &server->parked_timer);
    if (rc == 0) rc = uv_idle_init(&server->loop, &server->resume);
    server->tick.data = server->parked_timer.data = server->resume.data = server;
    if (rc == 0) rc = uv_timer_start(&server->tick, on_tick, TICK_MS, TICK_MS);
    if (rc == 0 && watchdog_ms > 0)
        rc = uv_timer_start(&server->watchdog, on_watchdog, watchdog_ms, watchdog_ms);
    for (size_t i = 0; i < SERVER_SIGNALS && rc == 0; i++) {
        rc = uv_signal_init(&server->loop, &server->signals[i]);
        server->signals[i].data = server;
        if (rc == 0) rc = uv_signal_start(&server->signals[i], on_signal, numbers[i]);
    }
    return rc < 0 ? error_set(err, MEMD_EIO, "event loop: %s", uv_strerror(rc)) : 0;
}

static int open_store(struct server *server, struct error *err)
{
    const struct config *config = &server->config;
    size_t threads = (size_t)config->workers;
    if (threads == 0) threads = uv_available_parallelism();
    int rc = pool_open(threads, &server->pool, err);
    if (rc < 0) return rc;
    backend_open(config, &server->backend);
    server->regions.pool = server->pool;
    server->regions.accelerator = server->backend.accelerator;
    struct catalog_config catalog = {
        .path = config->data,
        .map_bytes = config->map_size,
        .budget_bytes = config->budget,
        .tail_bytes_max = config->tail_memory,
        .sync = config->sync.mode,
        .sync_interval_ms = config->sync.interval_ms,
        .contexts_max = (size_t)config->contexts_resident_max,
        .resident_bytes_max = config->resident_memory,
        .pool = server->pool,
        .accelerator = server->backend.accelerator,
        .on_progress = worker_progress,
        .on_progress_arg = server,
    };
    return catalog_open(&catalog, &server->catalog, err);
}

static int open_loop(struct server *server, struct error *err)
{
    int rc = uv_loop_init(&server->loop);
    if (rc < 0) return error_set(err, MEMD_EIO, "event loop: %s", uv_strerror(rc));
    server->loop_open = true;
    rc = worker_open(server, err);
    if (rc < 0) return rc;
    /* The writer wakes it until the very end, so it must not keep the loop alive. */
    uv_unref((uv_handle_t *)&server->finished.wake);
    server->staging = malloc(SERVER_STAGING_BYTES);
    if (server->staging == NULL) return error_set(err, MEMD_ENOMEM, "no memory to read into");
    return 0;
}

int server_open(const struct config *config, const struct server_origin *origin,
                struct server *server, struct error *err)
{
    *server = (struct server){ .magic = SERVER_MAGIC, .config = *config, .origin = *origin };
    server->started_ns = clock_monotonic_ns();
    list_init(&server->connections);
    list_init(&server->memory_waiters);
    list_init(&server->resumable);
    list_init(&server->free_requests);
    list_init(&server->parked);
    region_table_init(&server->regions);
    atomic_store(&server->regions.copied_max, config->memory_in_flight);
    int rc = identity_load(config->token_file, &server->identity, err);
    if (rc == 0) rc = answers_new(&server->answers, err);
    if (rc == 0) rc = open_loop(server, err);
    if (rc == 0) rc = open_store(server, err);
    if (rc == 0) rc = open_timers(server, err);
    if (rc == 0) rc = listener_open_all(server, err);
    if (rc < 0) return rc;
    uint64_t ms = (clock_monotonic_ns() - server->started_ns) / NS_PER_MS;
    log_event(LOG_INFO, "ready", "build='%s' data=%s workers=%zu simd=%s opened_ms=%" PRIu64,
              SERVER_BUILD, config->data, pool_threads(server->pool), cpu_level_name(cpu_level()),
              ms);
    notify_ready("ready");
    return 0;
}

void server_run(struct server *server)
{
    uv_run(&server->loop, UV_RUN_DEFAULT);
    assert(server->stopping && server->connection_count == 0);
}

static void free_requests(struct server *server)
{
    struct list_link *link = NULL;
    while ((link = list_take_first(&server->free_requests)) != NULL) {
        struct request *req = LIST_ENTRY(link, struct request, queue_link);
        arena_fini(&req->arena);
        free(req);
    }
}

void server_close(struct server *server)
{
    stop(server);
    if (server->loop_open) uv_run(&server->loop, UV_RUN_DEFAULT);
    pool_close(server->pool);
    region_table_fini(&server->regions);
    catalog_close(server->catalog);
    backend_close(&server->backend);
    if (server->loop_open) {
        worker_close(server);
        uv_run(&server->loop, UV_RUN_DEFAULT);
        int rc = uv_loop_close(&server->loop);
        assert(rc == 0);
    }
    free_requests(server);
    free(server->staging);
    answers_free(server->answers);
    server->magic = 0;
}
