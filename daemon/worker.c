/* SPDX-License-Identifier: Apache-2.0 */
/* worker.c — handing a request over is handing over the right to touch it. */
#include "daemon/worker.h"

#include "base/error.h"
#include "base/object.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static void on_wake(uv_async_t *async)
{
    struct server *server = OBJECT_CAST(async->data, SERVER_MAGIC);
    struct worker_queue *queue = &server->finished;
    struct list_link taken;
    list_init(&taken);
    pthread_mutex_lock(&queue->lock);
    while (!list_empty(&queue->done)) list_append(&taken, list_take_first(&queue->done));
    pthread_mutex_unlock(&queue->lock);
    while (!list_empty(&taken)) {
        struct request *req = LIST_ENTRY(list_take_first(&taken), struct request, queue_link);
        dispatch_done(req, req->status);
    }
    if (atomic_exchange(&queue->progressed, false)) dispatch_poll_parked(server);
}

int worker_open(struct server *server, struct error *err)
{
    struct worker_queue *queue = &server->finished;
    pthread_mutex_init(&queue->lock, NULL);
    list_init(&queue->done);
    atomic_init(&queue->progressed, false);
    int rc = uv_async_init(&server->loop, &queue->wake, on_wake);
    if (rc < 0) return error_set(err, MEMD_EIO, "async handle: %s", uv_strerror(rc));
    queue->wake.data = server;
    return 0;
}

void worker_close(struct server *server)
{
    uv_handle_t *wake = (uv_handle_t *)&server->finished.wake;
    if (wake->loop != NULL) uv_close(wake, NULL); /* NULL: worker_open failed */
}

static void run_job(struct pool_job *job)
{
    struct request *req = OBJECT_CAST(LIST_ENTRY(job, struct request, job), REQUEST_MAGIC);
    struct worker_queue *queue = &req->server->finished;
    req->status = request_run(req);
    pthread_mutex_lock(&queue->lock);
    bool was_empty = list_empty(&queue->done);
    list_append(&queue->done, &req->queue_link);
    pthread_mutex_unlock(&queue->lock);
    /* The request may be gone by now; the queue lives as long as the server. */
    if (was_empty) uv_async_send(&queue->wake);
}

void worker_submit(struct request *req)
{
    req->job = (struct pool_job){ .run = run_job, .flow = req->flow };
    pool_submit(req->server->pool, &req->job);
}

void worker_progress(void *arg)
{
    struct server *server = OBJECT_CAST(arg, SERVER_MAGIC);
    if (!atomic_exchange(&server->finished.progressed, true)) uv_async_send(&server->finished.wake);
}
