/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c — one mutex, one condition, two lists: loops that still have indices to give away, and
 * jobs.
 *
 * Workers prefer loops to jobs: finishing what is begun keeps latency low. A loop lives on the
 * stack of pool_for; it leaves the list when its last index is handed out and pool_for returns when
 * `left` is zero, so no worker can touch it afterwards. Locking once per index is fine: an index is
 * thousands of rows.
 */
#include "base/pool.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

struct loop {
    struct list_link link;
    void (*fn)(void *arg, size_t idx);
    void *arg;
    size_t next, count; /* indices handed out, and all */
    size_t left;        /* indices not finished */
    pthread_cond_t done;
};

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct list_link loops, jobs; /* locked by lock */
    size_t queued, queue_limit;   /* locked by lock */
    size_t idle;                  /* workers in cond_wait; locked by lock */
    bool stopping;                /* locked by lock */
    size_t thread_count;
    pthread_t threads[];
};

/* Take and run one index; the lock is held before and after. */
static void run_index(struct pool *pool, struct loop *loop)
{
    size_t idx = loop->next++;
    if (loop->next == loop->count) list_remove(&loop->link);
    pthread_mutex_unlock(&pool->lock);
    loop->fn(loop->arg, idx);
    pthread_mutex_lock(&pool->lock);
    assert(loop->left > 0);
    if (--loop->left == 0) pthread_cond_signal(&loop->done);
}

static void *worker(void *arg)
{
    struct pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        if (!list_empty(&pool->loops)) {
            run_index(pool, LIST_ENTRY(pool->loops.next, struct loop, link));
        } else if (!list_empty(&pool->jobs)) {
            struct pool_job *job = LIST_ENTRY(list_take_first(&pool->jobs), struct pool_job, link);
            pool->queued--;
            pthread_mutex_unlock(&pool->lock);
            job->run(job);
            pthread_mutex_lock(&pool->lock);
        } else if (pool->stopping) {
            break;
        } else {
            pool->idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->idle--;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static int start_threads(struct pool *pool, size_t thread_count, struct error *err)
{
    sigset_t all, before; /* signals belong to the loop thread */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int rc = 0;
    while (rc == 0 && pool->thread_count < thread_count) {
        rc = pthread_create(&pool->threads[pool->thread_count], NULL, worker, pool);
        if (rc == 0) pool->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) return 0;
    return error_set(err, MEMD_EIO, "cannot start worker thread %zu of %zu", pool->thread_count + 1,
                     thread_count);
}

int pool_open(size_t thread_count, size_t queue_limit, struct pool **ret_pool, struct error *err)
{
    assert(thread_count >= 1);
    struct pool *pool = calloc(1, sizeof *pool + thread_count * sizeof pool->threads[0]);
    if (pool == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a pool");
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    list_init(&pool->loops);
    list_init(&pool->jobs);
    pool->queue_limit = queue_limit;
    int rc = start_threads(pool, thread_count, err);
    if (rc < 0) {
        pool_close(pool);
        return rc;
    }
    *ret_pool = pool;
    return 0;
}

void pool_close(struct pool *pool)
{
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (size_t i = 0; i < pool->thread_count; i++) pthread_join(pool->threads[i], NULL);
    assert(list_empty(&pool->jobs) && list_empty(&pool->loops));
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

int pool_submit(struct pool *pool, struct pool_job *job)
{
    assert(job->run != NULL);
    pthread_mutex_lock(&pool->lock);
    bool room = pool->queued < pool->queue_limit && !pool->stopping;
    if (room) {
        list_append(&pool->jobs, &job->link);
        pool->queued++;
        pthread_cond_signal(&pool->work);
    }
    pthread_mutex_unlock(&pool->lock);
    return room ? 0 : MEMD_EBUSY;
}

void pool_for(struct pool *pool, size_t count, void (*fn)(void *arg, size_t idx), void *arg)
{
    if (pool == NULL || count <= 1) {
        for (size_t i = 0; i < count; i++) fn(arg, i);
        return;
    }
    struct loop loop = { .fn = fn, .arg = arg, .count = count, .left = count };
    pthread_cond_init(&loop.done, NULL);
    pthread_mutex_lock(&pool->lock);
    list_append(&pool->loops, &loop.link);
    if (pool->idle == 1) pthread_cond_signal(&pool->work);
    if (pool->idle > 1) pthread_cond_broadcast(&pool->work);
    while (loop.next < loop.count) run_index(pool, &loop);
    while (loop.left > 0) pthread_cond_wait(&loop.done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&loop.done);
}

size_t pool_threads(const struct pool *pool)
{
    return pool == NULL ? 1 : pool->thread_count;
}

size_t pool_queued(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    size_t queued = pool->queued;
    pthread_mutex_unlock(&pool->lock);
    return queued;
}
