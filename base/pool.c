/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c — one mutex; flows with something to run in a list, the least recently served first.
 *
 * Who is free takes from the flow that the fewest threads work for, and of several the first in the
 * list. In a flow loops come before jobs: finishing what is begun keeps latency low. A loop lives
 * on the stack of pool_for; it leaves its flow when its last index is handed out and pool_for
 * returns when `left` is zero, so no worker can touch it afterwards. Locking once per index is
 * fine: an index is thousands of rows.
 *
 * Flows are a table of lists, found by number modulo its size (stochastic fairness queueing,
 * McKenney 1990): nothing is allocated for a flow, and contexts, whose ids are given out in order,
 * share one only when hundreds of them are at work.
 *
 * Relief threads do not help with loops: whoever asked for a loop works on it himself.
 */
#include "base/pool.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

enum { FLOWS = 1024 };

/* locked by the pool's lock */
struct flow {
    struct list_link link; /* in waiting, while it has jobs or loops */
    struct list_link loops, jobs;
    size_t running; /* threads that work for it */
};

struct loop {
    struct list_link link;
    struct flow *flow;
    void (*fn)(void *arg, size_t idx);
    void *arg;
    size_t next, count; /* indices handed out, and all */
    size_t left;        /* indices not finished */
    pthread_cond_t done;
};

struct thread {
    struct pool *pool;
    pthread_t id;
    struct flow *flow; /* that it works for; NULL: none. Locked by the pool's lock */
    bool is_relief;
};

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work, relief;
    struct list_link waiting; /* flows; locked by lock */
    size_t queued;            /* locked by lock */
    size_t idle;              /* workers in cond_wait; locked by lock */
    size_t busy;              /* workers that work for a flow; locked by lock */
    size_t resting;           /* relief threads in cond_wait; locked by lock */
    bool stopping;            /* locked by lock */
    size_t worker_count, thread_count;
    struct flow flows[FLOWS];
    struct thread threads[]; /* workers first */
};

/* It was served, or something came: its place in the list. */
static void settle(struct pool *pool, struct flow *flow)
{
    list_remove(&flow->link);
    if (!list_empty(&flow->loops) || !list_empty(&flow->jobs))
        list_append(&pool->waiting, &flow->link);
}

static struct flow *next_flow(const struct pool *pool)
{
    struct flow *best = NULL;
    LIST_FOR(link, &pool->waiting)
    {
        struct flow *flow = LIST_ENTRY(link, struct flow, link);
        if (best == NULL || flow->running < best->running) best = flow;
        if (best->running == 0) break;
    }
    return best;
}

/* A flow whose jobs nobody works for, though every worker is busy. */
static struct flow *next_relief(const struct pool *pool)
{
    if (pool->busy < pool->worker_count) return NULL;
    LIST_FOR(link, &pool->waiting)
    {
        struct flow *flow = LIST_ENTRY(link, struct flow, link);
        if (flow->running == 0 && !list_empty(&flow->jobs)) return flow;
    }
    return NULL;
}

static void call_relief(struct pool *pool)
{
    if (pool->resting > 0 && next_relief(pool) != NULL) pthread_cond_signal(&pool->relief);
}

/* Take and run one index; the lock is held before and after. */
static void run_index(struct pool *pool, struct loop *loop)
{
    size_t idx = loop->next++;
    if (loop->next == loop->count) list_remove(&loop->link);
    settle(pool, loop->flow);
    call_relief(pool);
    pthread_mutex_unlock(&pool->lock);
    loop->fn(loop->arg, idx);
    pthread_mutex_lock(&pool->lock);
    assert(loop->left > 0);
    if (--loop->left == 0) pthread_cond_signal(&loop->done);
}

/* Likewise with a job. */
static void run_job(struct pool *pool, struct flow *flow)
{
    struct pool_job *job = LIST_ENTRY(list_take_first(&flow->jobs), struct pool_job, link);
    pool->queued--;
    settle(pool, flow);
    call_relief(pool);
    pthread_mutex_unlock(&pool->lock);
    job->run(job);
    pthread_mutex_lock(&pool->lock);
}

static void serve(struct thread *thread, struct flow *flow)
{
    size_t *busy = &thread->pool->busy;
    *busy += !thread->is_relief;
    thread->flow = flow;
    flow->running++;
    if (!thread->is_relief && !list_empty(&flow->loops))
        run_index(thread->pool, LIST_ENTRY(flow->loops.next, struct loop, link));
    else
        run_job(thread->pool, flow);
    flow->running--;
    thread->flow = NULL;
    *busy -= !thread->is_relief;
}

static void *worker(void *arg)
{
    struct thread *thread = arg;
    struct pool *pool = thread->pool;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct flow *flow = next_flow(pool);
        if (flow != NULL) {
            serve(thread, flow);
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

static void *relief(void *arg)
{
    struct thread *thread = arg;
    struct pool *pool = thread->pool;
    pthread_mutex_lock(&pool->lock);
    while (!pool->stopping) {
        struct flow *flow = next_relief(pool);
        if (flow != NULL) {
            serve(thread, flow);
        } else {
            pool->resting++;
            pthread_cond_wait(&pool->relief, &pool->lock);
            pool->resting--;
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
    /* pool_for looks for its caller here: nobody sees the table before it is complete. */
    pthread_mutex_lock(&pool->lock);
    while (rc == 0 && pool->thread_count < thread_count) {
        struct thread *thread = &pool->threads[pool->thread_count];
        *thread = (struct thread){ .pool = pool,
                                   .is_relief = pool->thread_count >= pool->worker_count };
        rc = pthread_create(&thread->id, NULL, thread->is_relief ? relief : worker, thread);
        if (rc == 0) pool->thread_count++;
    }
    pthread_mutex_unlock(&pool->lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) return 0;
    return error_set(err, MEMD_EIO, "cannot start worker thread %zu of %zu", pool->thread_count + 1,
                     thread_count);
}

int pool_open(size_t thread_count, struct pool **ret_pool, struct error *err)
{
    assert(thread_count >= 1);
    size_t all = thread_count + (thread_count < POOL_RELIEF_MAX ? thread_count : POOL_RELIEF_MAX);
    struct pool *pool = calloc(1, sizeof *pool + all * sizeof pool->threads[0]);
    if (pool == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a pool");
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->relief, NULL);
    list_init(&pool->waiting);
    for (size_t i = 0; i < FLOWS; i++) {
        list_init(&pool->flows[i].loops);
        list_init(&pool->flows[i].jobs);
    }
    pool->worker_count = thread_count;
    int rc = start_threads(pool, all, err);
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
    pthread_cond_broadcast(&pool->relief);
    pthread_mutex_unlock(&pool->lock);
    for (size_t i = 0; i < pool->thread_count; i++) pthread_join(pool->threads[i].id, NULL);
    assert(list_empty(&pool->waiting));
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->relief);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void pool_submit(struct pool *pool, struct pool_job *job)
{
    assert(job->run != NULL);
    pthread_mutex_lock(&pool->lock);
    assert(!pool->stopping);
    struct flow *flow = &pool->flows[job->flow % FLOWS];
    list_append(&flow->jobs, &job->link);
    if (!list_linked(&flow->link)) list_append(&pool->waiting, &flow->link);
    pool->queued++;
    pthread_cond_signal(&pool->work);
    call_relief(pool);
    pthread_mutex_unlock(&pool->lock);
}

/* The flow that the calling thread works for; a thread of somebody else's: the first. */
static struct flow *flow_of_caller(struct pool *pool)
{
    pthread_t self = pthread_self();
    for (size_t i = 0; i < pool->thread_count; i++) {
        struct thread *thread = &pool->threads[i];
        if (pthread_equal(thread->id, self) && thread->flow != NULL) return thread->flow;
    }
    return &pool->flows[0];
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
    loop.flow = flow_of_caller(pool);
    list_append(&loop.flow->loops, &loop.link);
    if (!list_linked(&loop.flow->link)) list_append(&pool->waiting, &loop.flow->link);
    if (pool->idle == 1) pthread_cond_signal(&pool->work);
    if (pool->idle > 1) pthread_cond_broadcast(&pool->work);
    while (loop.next < loop.count) run_index(pool, &loop);
    while (loop.left > 0) pthread_cond_wait(&loop.done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&loop.done);
}

size_t pool_threads(const struct pool *pool)
{
    return pool == NULL ? 1 : pool->worker_count;
}

size_t pool_queued(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    size_t queued = pool->queued;
    pthread_mutex_unlock(&pool->lock);
    return queued;
}
