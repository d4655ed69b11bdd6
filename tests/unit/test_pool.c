/* SPDX-License-Identifier: Apache-2.0 */
/* test_pool.c — every index once, every job once, however many wait, and loops inside jobs.
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
#include <string.h>

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

static struct pool *open_pool(size_t threads)
{
    struct pool *pool = NULL;
    struct error err = { 0 };
    assert_int_equal(pool_open(threads, &pool, &err), 0);
    assert_int_equal(pool_threads(pool), threads);
    return pool;
}

static void loops_visit_every_index_once(void **state)
{
    (void)state;
    const size_t counts[] = { 0, 1, 2, 3, 7, 100, 500 };
    for (size_t threads = 1; threads <= 4; threads++) {
        struct pool *pool = open_pool(threads);
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
    struct pool *pool = open_pool(3);
    for (int i = 0; i < JOBS; i++) {
        tallies[i].pool = pool;
        tallies[i].count = 300;
        tallies[i].job.run = loop_inside;
        pool_submit(pool, &tallies[i].job);
    }
    pool_close(pool); /* finishes what is queued */
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(atomic_load(&tallies[i].runs), 1);
        check_visits(&tallies[i], 1);
    }
}

static void what_no_worker_is_free_for_waits(void **state)
{
    (void)state;
    enum { QUEUED = 500 };
    struct pool_job blockers[2] = { { .run = stand_at_gate }, { .run = stand_at_gate } };
    static struct tally queued[QUEUED];
    struct pool *pool = open_pool(2);
    gate_set(false);
    for (int i = 0; i < 2; i++) {
        pool_submit(pool, &blockers[i]);
        gate_await(i + 1); /* off the queue, on a worker */
    }
    for (int i = 0; i < QUEUED; i++) {
        queued[i].pool = pool;
        queued[i].job.run = loop_inside;
        pool_submit(pool, &queued[i].job);
    }
    assert_int_equal(pool_queued(pool), QUEUED);
    struct tally tally = { .count = 100 };
    pool_for(pool, 100, visit, &tally); /* all workers are busy: the caller does it alone */
    check_visits(&tally, 1);
    gate_set(true);
    pool_close(pool);
    for (int i = 0; i < QUEUED; i++) assert_int_equal(atomic_load(&queued[i].runs), 1);
}

/* ---- flows: every job stands at a door of its own and writes down that it came ---- */

enum { DOORS = 16 };

struct door {
    struct pool_job job;
    char name;
    struct pool *pool;
    size_t indices; /* > 0: it is a loop, whose indices stand there too */
    bool open, came;
    pthread_t thread;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char order[DOORS * 2]; /* names, as they came */
    size_t count;
    size_t indices; /* that have come */
    bool helper_may_go;
} hall = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void stand_at_index(void *arg, size_t idx)
{
    struct door *door = arg;
    (void)idx;
    pthread_mutex_lock(&hall.lock);
    hall.indices++;
    pthread_cond_broadcast(&hall.changed);
    bool helps = !pthread_equal(pthread_self(), door->thread);
    while (!door->open && !(helps && hall.helper_may_go))
        pthread_cond_wait(&hall.changed, &hall.lock);
    pthread_mutex_unlock(&hall.lock);
}

static void stand_at_door(struct pool_job *job)
{
    struct door *door = (struct door *)(void *)job; /* its first member */
    pthread_mutex_lock(&hall.lock);
    door->thread = pthread_self();
    door->came = true;
    hall.order[hall.count++] = door->name;
    pthread_cond_broadcast(&hall.changed);
    while (door->indices == 0 && !door->open) pthread_cond_wait(&hall.changed, &hall.lock);
    pthread_mutex_unlock(&hall.lock);
    if (door->indices > 0) pool_for(door->pool, door->indices, stand_at_index, door);
}

static void send(struct pool *pool, struct door *door, char name, uint64_t flow)
{
    size_t indices = door->indices;
    bool open = door->open;
    *door = (struct door){ .job = { .run = stand_at_door, .flow = flow },
                           .name = name,
                           .pool = pool,
                           .indices = indices,
                           .open = open };
    pool_submit(pool, &door->job);
}

static void await_door(struct door *door)
{
    pthread_mutex_lock(&hall.lock);
    while (!door->came) pthread_cond_wait(&hall.changed, &hall.lock);
    pthread_mutex_unlock(&hall.lock);
}

static void open_door(struct door *door)
{
    pthread_mutex_lock(&hall.lock);
    door->open = true;
    pthread_cond_broadcast(&hall.changed);
    pthread_mutex_unlock(&hall.lock);
}

static void enter_hall(void)
{
    memset(hall.order, 0, sizeof hall.order);
    hall.count = hall.indices = 0;
    hall.helper_may_go = false;
}

/* Whatever one flow does, another gets a thread at once, though it has to be a relief thread. */
static void a_busy_flow_delays_no_other(void **state)
{
    (void)state;
    for (size_t threads = 1; threads <= 3; threads++) {
        struct pool *pool = open_pool(threads);
        static struct door doors[DOORS];
        memset(doors, 0, sizeof doors);
        enter_hall();
        for (size_t i = 0; i < 8; i++) send(pool, &doors[i], 'a', 1);
        for (size_t i = 0; i < threads; i++) await_door(&doors[i]); /* all workers stand still */
        doors[8].open = doors[9].open = doors[10].open = true;
        send(pool, &doors[8], 'b', 2);
        send(pool, &doors[9], 'c', 3);
        send(pool, &doors[10], 'b', 2);
        for (size_t i = 8; i <= 10; i++) await_door(&doors[i]);
        assert_int_equal(pool_queued(pool), 8 - threads); /* of flow 1: no thread besides */
        assert_int_equal(hall.count, threads + 3);
        for (size_t i = 0; i < 8; i++) open_door(&doors[i]);
        pool_close(pool);
        assert_int_equal(hall.count, 11);
    }
}

/* One worker, and one relief thread that stands still for flow 2. */
static void a_free_worker_goes_where_fewest_are(void **state)
{
    (void)state;
    struct pool *pool = open_pool(1);
    static struct door doors[DOORS];
    memset(doors, 0, sizeof doors);
    enter_hall();
    send(pool, &doors[0], 'A', 1);
    await_door(&doors[0]);
    send(pool, &doors[1], 'B', 2);
    await_door(&doors[1]);
    static const struct {
        char name;
        uint64_t flow;
    } queued[] = { { 'b', 2 }, { 'a', 1 }, { 'a', 1 }, { 'a', 1 }, { 'c', 3 }, { 'c', 1024 + 3 } };
    for (size_t i = 0; i < 6; i++) {
        doors[2 + i].open = true;
        send(pool, &doors[2 + i], queued[i].name, queued[i].flow);
    }
    open_door(&doors[0]);
    await_door(&doors[2]); /* it comes last */
    assert_string_equal(hall.order, "ABacacab");
    open_door(&doors[1]);
    pool_close(pool);
}

/* Two workers, one with a loop that the other helps with; no relief thread is free. */
static void a_long_loop_lets_others_in(void **state)
{
    (void)state;
    struct pool *pool = open_pool(2);
    static struct door doors[DOORS];
    memset(doors, 0, sizeof doors);
    enter_hall();
    for (size_t i = 0; i < 4; i++) { /* workers, then relief threads */
        send(pool, &doors[i], 'x', 10 + i);
        await_door(&doors[i]);
    }
    open_door(&doors[0]);
    open_door(&doors[1]);
    doors[4].indices = 100;
    send(pool, &doors[4], 'l', 1);
    pthread_mutex_lock(&hall.lock);
    while (hall.indices < 2) pthread_cond_wait(&hall.changed, &hall.lock);
    pthread_mutex_unlock(&hall.lock);
    send(pool, &doors[5], 'j', 2);
    pthread_mutex_lock(&hall.lock);
    hall.helper_may_go = true;
    pthread_cond_broadcast(&hall.changed);
    pthread_mutex_unlock(&hall.lock);
    await_door(&doors[5]);
    assert_int_equal(hall.indices, 2); /* the helper took no other index before */
    for (size_t i = 2; i < 6; i++) open_door(&doors[i]);
    pool_close(pool);
    assert_int_equal(hall.indices, 100);
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
        cmocka_unit_test(what_no_worker_is_free_for_waits),
        cmocka_unit_test(a_busy_flow_delays_no_other),
        cmocka_unit_test(a_free_worker_goes_where_fewest_are),
        cmocka_unit_test(a_long_loop_lets_others_in),
        cmocka_unit_test(nothing_to_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
