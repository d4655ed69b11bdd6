/* SPDX-License-Identifier: Apache-2.0 */
/* test_pool.c — every index once, every job once, the queue's bound, and loops inside jobs.
 *
 * Where a test needs a worker to be busy, the job waits on a gate that the test opens: nothing
 * depends on time. Run under the thread sanitizer by ./check tsan.
 */
#include "base/pool.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/error.h"

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool open;
    int waiting;
};

static struct gate gate = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0 };

static void gate_set(bool open)
{
    pthread_mutex_lock(&gate.lock);
    gate.open = open;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

/* Return when `count` jobs stand at the gate. */
static void gate_await(int count)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.waiting < count) pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static void stand_at_gate(struct pool_job *job)
{
    (void)job;
    pthread_mutex_lock(&gate.lock);
    gate.waiting++;
    pthread_cond_broadcast(&gate.changed);
    while (!gate.open) pthread_cond_wait(&gate.changed, &gate.lock);
    gate.waiting--;
    pthread_mutex_unlock(&gate.lock);
}

struct tally {
    struct pool_job job;
    struct pool *pool;
    atomic_int visits[500];
    size_t count;
    atomic_int runs;
};

static void visit(void *arg, size_t idx)
{
    struct tally *tally = arg;
    atomic_fetch_add(&tally->visits[idx], 1);
}

static void check_visits(struct tally *tally, int want)
{
    for (size_t i = 0; i < 500; i++)
        assert_int_equal(atomic_load(&tally->visits[i]), i < tally->count ? want : 0);
}

static struct pool *open_pool(size_t threads, size_t queue_limit)
{
    struct pool *pool = NULL;
    struct error err = { 0 };
    assert_int_equal(pool_open(threads, queue_limit, &pool, &err), 0);
    assert_int_equal(pool_threads(pool), threads);
    return pool;
}

static void loops_visit_every_index_once(void **state)
{
    (void)state;
    const size_t counts[] = { 0, 1, 2, 3, 7, 100, 500 };
    for (size_t threads = 1; threads <= 4; threads++) {
        struct pool *pool = open_pool(threads, 4);
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            struct tally tally = { .count = counts[c] };
            pool_for(pool, counts[c], visit, &tally);
            check_visits(&tally, 1);
        }
        pool_close(pool);
    }
    struct tally alone = { .count = 50 };
    pool_for(NULL, 50, visit, &alone);
    check_visits(&alone, 1);
    assert_int_equal(pool_threads(NULL), 1);
}

static void loop_inside(struct pool_job *job)
{
    struct tally *tally = (struct tally *)(void *)job; /* its first member */
    pool_for(tally->pool, tally->count, visit, tally);
    atomic_fetch_add(&tally->runs, 1);
}

static void loops_inside_jobs_finish(void **state)
{
    (void)state;
    enum { JOBS = 8 };
    static struct tally tallies[JOBS];
    struct pool *pool = open_pool(3, JOBS);
    for (int i = 0; i < JOBS; i++) {
        tallies[i].pool = pool;
        tallies[i].count = 300;
        tallies[i].job.run = loop_inside;
        assert_int_equal(pool_submit(pool, &tallies[i].job), 0);
    }
    pool_close(pool); /* finishes what is queued */
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(atomic_load(&tallies[i].runs), 1);
        check_visits(&tallies[i], 1);
    }
}

static void a_full_queue_says_so(void **state)
{
    (void)state;
    enum { LIMIT = 3 };
    struct pool_job blockers[2] = { { .run = stand_at_gate }, { .run = stand_at_gate } };
    struct pool_job queued[LIMIT + 1];
    struct pool *pool = open_pool(2, LIMIT);
    gate_set(false);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pool_submit(pool, &blockers[i]), 0);
        gate_await(i + 1); /* off the queue, on a worker */
    }
    for (int i = 0; i <= LIMIT; i++) {
        queued[i] = (struct pool_job){ .run = stand_at_gate };
        assert_int_equal(pool_submit(pool, &queued[i]), i < LIMIT ? 0 : MEMD_EBUSY);
    }
    assert_int_equal(pool_queued(pool), LIMIT);
    struct tally tally = { .count = 100 };
    pool_for(pool, 100, visit, &tally); /* all workers are busy: the caller does it alone */
    check_visits(&tally, 1);
    gate_set(true);
    pool_close(pool);
}

static void nothing_to_close(void **state)
{
    (void)state;
    pool_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loops_visit_every_index_once),
        cmocka_unit_test(loops_inside_jobs_finish),
        cmocka_unit_test(a_full_queue_says_so),
        cmocka_unit_test(nothing_to_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
