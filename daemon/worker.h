/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h — between the loop and the pool: requests go out as jobs and come back as a list.
 *
 * One uv_async wakes the loop for both finished requests and the writer thread's progress. It is
 * sent only when the list was empty before, so that a burst costs one wake-up.
 *
 * Threads  worker_submit the loop; worker_progress the writer; the queue is locked by `lock`
 */
#ifndef MEMD_DAEMON_WORKER_H
#define MEMD_DAEMON_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "base/list.h"

struct error;
struct request;
struct server;

struct worker_queue {
    pthread_mutex_t lock;
    struct list_link done;   /* requests by queue_link; locked by lock */
    atomic_bool progressed;  /* the writer committed since the loop last looked */
    uv_async_t wake;
};

int worker_open(struct server *server, struct error *err);
void worker_close(struct server *server); /* closes the async handle; the pool is idle */

/* The request comes back through dispatch_done. */
void worker_submit(struct request *req);

/* struct catalog_config.on_progress; arg is the server. */
void worker_progress(void *arg);

#endif
