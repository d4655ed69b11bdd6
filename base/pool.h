/* SPDX-License-Identifier: Apache-2.0 */
/* pool.h — worker threads: a queue of jobs, loops that idle workers help with, and flows that share
 * the workers fairly.
 *
 * A job is one request's work. A loop (`pool_for`) is what a job splits itself into; the thread
 * that asks takes part, so a loop finishes even when every other worker is busy, and nested loops
 * cannot deadlock.
 *
 * A job belongs to a flow (a context, say), and so do the loops inside it. A free worker goes where
 * the fewest threads are: a flow with hundreds of jobs, or with a loop of thousands of indices,
 * gets what others leave, and one that had nothing gets the next thread. And since a thread that is
 * busy with a long job cannot be taken from it, there are some relief threads besides, which run a
 * job of a flow that has no thread at all while every worker is busy: what they share the
 * processors by is then the kernel's scheduler, in milliseconds (decisions/0070).
 *
 * Rejected: libuv's pool (process-wide, no bound on its queue, four threads by default), one thread
 * per connection (a thousand idle clients), a worker set aside for short jobs (nobody can say
 * beforehand which those are, and it idles otherwise).
 *
 * The queue has no maximum of its own: a job is its owner's memory, and who submits bounds how many
 * there are (for requests daemon/dispatch.h does), by flow. A limit on all of them would make one
 * flow's job fail, or wait outside, for what others submit.
 *
 * Memory   jobs and loop arguments belong to the caller; the pool allocates only at open.
 * Threads  any thread may submit; `run` is called on a worker, once per job.
 * Errors   MEMD_ENOMEM, MEMD_EIO at open
 * Tests    tests/unit/test_pool.c, tests/flow/test_fair.c
 */
#ifndef MEMD_BASE_POOL_H
#define MEMD_BASE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct pool;
struct error;

enum { POOL_RELIEF_MAX = 4 }; /* relief threads: as many as workers, but no more than these */

/* Intrusive; zero it, set run (and flow), submit. `run` may free or resubmit the job. */
struct pool_job {
    struct list_link link;
    void (*run)(struct pool_job *job);
    uint64_t flow; /* any number; two may share, if they are a multiple of 1024 apart */
};

/* thread_count ≥ 1 workers. */
int pool_open(size_t thread_count, struct pool **ret_pool, struct error *err);

/* Finish the queued jobs, stop the threads; nobody submits any more. NULL is fine. */
void pool_close(struct pool *pool);

void pool_submit(struct pool *pool, struct pool_job *job);

/* Call fn(arg, 0) … fn(arg, count-1), each once, in any order and on several threads; return when
 * all are done. With pool == NULL everything runs on the caller's thread, in order. At most
 * pool_threads(pool) + 1 calls at once. */
void pool_for(struct pool *pool, size_t count, void (*fn)(void *arg, size_t idx), void *arg);

size_t pool_threads(const struct pool *pool); /* workers; 1 for NULL */
size_t pool_queued(struct pool *pool);

#endif
