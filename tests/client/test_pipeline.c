/* SPDX-License-Identifier: Apache-2.0 */
/* test_pipeline.c — many requests at a time: out of order, from many threads, given up, in both
 * directions at once.
 */
#include "tests/client/fake.h"

#include <assert.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "clients/libmemd/client.h"

enum { H = 4, G = 2, D = 8, TICKETS = 20, THREADS = 8, CALLS = 300 };

/* Answers with the position that was asked for. */
static void reply_position(int fd, const struct fake_request *request)
{
    const Memd__AppendRequest *append = (const Memd__AppendRequest *)request->message;
    Memd__AppendReply reply = MEMD__APPEND_REPLY__INIT;
    reply.tokens = append->layers[0]->position;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static int submit(const struct memd_context *context, uint64_t position,
                  struct memd_ticket **ticket)
{
    static const float row[G * D];
    struct memd_append layer = { .position = position, .tokens = 1, .k = row, .v = row };
    return memd_submit_append(context, &layer, 1, MEMD_ACK_MEMORY, ticket, NULL);
}

/* Answers TICKETS requests at a time, the last first. */
static void backwards_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    static struct fake_request requests[TICKETS];
    size_t count = 0;
    while (count < TICKETS && fake_receive(fd, &requests[count])) count++;
    for (size_t i = count; i > 0; i--) reply_position(fd, &requests[i - 1]);
    struct fake_request end = { 0 };
    bool more = fake_receive(fd, &end);
    assert(!more);
    arena_fini(&end.arena);
    for (size_t i = 0; i < count; i++) arena_fini(&requests[i].arena);
}

static void answers_in_any_order(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, backwards_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_ticket *tickets[TICKETS] = { NULL };
    for (size_t i = 0; i < TICKETS; i++) {
        assert_int_equal(submit(&context, 100 + i, &tickets[i]), 0);
        if (i == 0) assert_int_equal(memd_poll(tickets[0]), 0);
    }
    for (size_t i = 0; i < TICKETS; i++) {
        assert_int_equal(memd_wait(tickets[i], NULL), 0);
        assert_int_equal(memd_ticket_progress(tickets[i])->tokens, 100 + i);
        if (i == 0) assert_int_equal(memd_poll(tickets[TICKETS - 1]), 1);
    }
    for (size_t i = 0; i < TICKETS; i++) memd_ticket_free(tickets[i]);
    memd_close(client);
    fake_close(&fake);
}

/* Never holds more than two requests; the client was told so. */
static void two_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request first = { 0 }, second = { 0 };
    while (fake_receive(fd, &first)) {
        fake_expect(fd, &second, METHOD_APPEND);
        char byte;
        ssize_t count = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        assert(count < 0); /* nothing more has come, nor will it before an answer */
        reply_position(fd, &second);
        reply_position(fd, &first);
    }
    arena_fini(&first.arena);
    arena_fini(&second.arena);
}

static void no_more_in_flight_than_the_daemon_takes(void **state)
{
    (void)state;
    struct fake fake = { .flight_max = 2 };
    fake_open(&fake, two_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_ticket *tickets[TICKETS] = { NULL };
    for (size_t i = 0; i < TICKETS; i++) assert_int_equal(submit(&context, i, &tickets[i]), 0);
    for (size_t i = TICKETS; i > 0; i--) {
        assert_int_equal(memd_wait(tickets[i - 1], NULL), 0);
        assert_int_equal(memd_ticket_progress(tickets[i - 1])->tokens, i - 1);
        memd_ticket_free(tickets[i - 1]);
    }
    memd_close(client);
    fake_close(&fake);
}

static void echo_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) reply_position(fd, &request);
    arena_fini(&request.arena);
}

struct caller {
    pthread_t thread;
    const struct memd_context *context;
    uint64_t first;
    size_t right;
};

/* One call at a time, and now and then three at once. */
static void *call_often(void *arg)
{
    struct caller *caller = arg;
    static const float row[G * D];
    for (uint64_t i = 0; i < CALLS; i++) {
        struct memd_append layer = {
            .position = caller->first + i, .tokens = 1, .k = row, .v = row
        };
        struct memd_progress progress = { 0 };
        int rc = memd_append(caller->context, &layer, 1, MEMD_ACK_MEMORY, &progress, NULL);
        caller->right += rc == 0 && progress.tokens == caller->first + i;
        if (i % 16 != 0) continue;
        struct memd_ticket *tickets[3];
        for (uint64_t j = 0; j < 3; j++) submit(caller->context, caller->first + j, &tickets[j]);
        memd_ticket_free(tickets[1]); /* nobody waits for it */
        caller->right -= memd_wait(tickets[2], NULL) != 0;
        caller->right -= memd_ticket_progress(tickets[2])->tokens != caller->first + 2;
        memd_ticket_free(tickets[2]);
        memd_ticket_free(tickets[0]);
    }
    return NULL;
}

static void threads_share_a_client(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, echo_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct caller callers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        callers[i] = (struct caller){ .context = &context, .first = 1000000 * i };
        pthread_create(&callers[i].thread, NULL, call_often, &callers[i]);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].right, CALLS);
    }
    memd_close(client);
    fake_close(&fake);
}

/* Reads nothing more before its large reply has been read: a client that sends without reading
 * would wait for it for ever. */
static void stubborn_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    size_t bytes = (size_t)64 << 20;
    float *payload = aligned_alloc(64, bytes);
    for (size_t i = 0; i < bytes / 4; i++) payload[i] = (float)(i % 1000);
    while (fake_receive(fd, &request)) {
        const Memd__FetchRequest *fetch = (const Memd__FetchRequest *)request.message;
        if (request.frame.method == METHOD_APPEND) {
            reply_position(fd, &request);
            continue;
        }
        size_t shape[3] = { fetch->n_ids, G, D };
        Memd__FetchReply reply = MEMD__FETCH_REPLY__INIT;
        uint64_t cursor = 0;
        size_t half = fetch->n_ids * G * D * sizeof(float);
        reply.k = message_make_tensor(&request.arena, DTYPE_FP32, 3, shape,
                                      message_place(&cursor, half));
        reply.v = message_make_tensor(&request.arena, DTYPE_FP32, 3, shape,
                                      message_place(&cursor, half));
        fake_reply(fd, &request, &reply.base, payload, cursor);
    }
    free(payload);
    arena_fini(&request.arena);
}

static void large_both_ways_at_once(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, stubborn_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    enum { ROWS = 60000, BYTES = ROWS * G * D * 4 };
    float *rows = calloc(1, BYTES), *k = calloc(1, BYTES), *v = calloc(1, BYTES);
    uint64_t *ids = calloc(ROWS, sizeof *ids);
    struct memd_fetch fetch = { .context = &context, .ids = ids, .count = ROWS, .k = k, .v = v };
    struct memd_append layer = { .position = 5, .tokens = ROWS, .k = rows, .v = rows };
    struct memd_ticket *fetches[4], *appends[4];
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(memd_submit_fetch(&fetch, &fetches[i], NULL), 0);
        assert_int_equal(memd_submit_append(&context, &layer, 1, 0, &appends[i], NULL), 0);
    }
    for (size_t i = 4; i > 0; i--) {
        struct memd_error err = { 0 };
        assert_int_equal(memd_wait(appends[i - 1], &err), 0);
        assert_int_equal(memd_ticket_progress(appends[i - 1])->tokens, 5);
        assert_int_equal(memd_wait(fetches[i - 1], &err), 0);
        assert_ptr_equal(memd_ticket_rows(fetches[i - 1])->v, v);
        memd_ticket_free(fetches[i - 1]);
        memd_ticket_free(appends[i - 1]);
    }
    size_t last = ROWS * G * D - 1;
    assert_true(k[last] == (float)(last % 1000) && v[0] == (float)((last + 1) % 1000));
    free(rows);
    free(k);
    free(v);
    free(ids);
    memd_close(client);
    fake_close(&fake);
}

/* Does not answer what is asked at position 0, but everything else. */
static void deaf_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        const Memd__AppendRequest *append = (const Memd__AppendRequest *)request.message;
        assert(request.frame.deadline_ms > 0 && request.frame.deadline_ms <= FAKE_PATIENT_MS);
        if (append->layers[0]->position != 0) reply_position(fd, &request);
    }
    arena_fini(&request.arena);
}

static void a_deadline_passes(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, deaf_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_ticket *ticket = NULL, *other = NULL;
    struct memd_error err = { 0 };
    assert_int_equal(submit(&context, 0, &ticket), 0);
    assert_int_equal(submit(&context, 3, &other), 0);
    assert_int_equal(memd_wait(other, &err), 0);
    fake_wait(FAKE_PATIENT_MS - 20); /* for the rest it really waits */
    assert_int_equal(memd_wait(ticket, &err), MEMD_EDEADLINE);
    assert_int_equal(memd_wait(ticket, &err), MEMD_EDEADLINE);
    assert_non_null(strstr(err.text, "append"));
    memd_ticket_free(ticket);
    memd_ticket_free(other);
    assert_int_equal(submit(&context, 4, &ticket), 0);
    assert_int_equal(memd_wait(ticket, &err), 0);
    memd_ticket_free(ticket);
    struct memd_counters counters;
    memd_get_counters(client, &counters);
    assert_int_equal(counters.reconnects, 0);
    memd_close(client);
    fake_close(&fake);
}

/* Two fetches, the first of which is given up while its reply is arriving. */
static void forgotten_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    static _Alignas(64) float payload[2 * 1024 * G * D];
    for (size_t i = 0; i < sizeof payload / 4; i++) payload[i] = 7.0f;
    while (fake_receive(fd, &request)) {
        size_t shape[3] = { 1024, G, D };
        Memd__FetchReply reply = MEMD__FETCH_REPLY__INIT;
        reply.k = message_make_tensor(&request.arena, DTYPE_FP32, 3, shape, 0);
        reply.v = message_make_tensor(&request.arena, DTYPE_FP32, 3, shape, sizeof payload / 2);
        fake_reply(fd, &request, &reply.base, payload, sizeof payload);
    }
    arena_fini(&request.arena);
}

static void a_reply_that_nobody_wants_any_more(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, forgotten_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    float *k = calloc(1024, G * D * 4), *v = calloc(1024, G * D * 4);
    uint64_t ids[1024] = { 0 };
    struct memd_fetch fetch = { .context = &context, .ids = ids, .count = 1024, .k = k, .v = v };
    for (int polls = 0; polls < 6; polls++) {
        struct memd_ticket *first = NULL, *second = NULL;
        assert_int_equal(memd_submit_fetch(&fetch, &first, NULL), 0);
        for (int i = 0; i < polls; i++) memd_poll(first);
        memd_ticket_free(first);
        memset(k, 0, 1024 * G * D * 4); /* from here on nobody may write to it */
        fetch.k = NULL;
        assert_int_equal(memd_submit_fetch(&fetch, &second, NULL), 0);
        assert_int_equal(memd_wait(second, NULL), 0);
        const struct memd_rows *rows = memd_ticket_rows(second);
        assert_true(((const float *)rows->k)[1024 * G * D - 1] == 7.0f);
        for (size_t i = 0; i < 1024 * G * D; i++) assert_true(k[i] == 0.0f);
        memd_ticket_free(second);
        fetch.k = k;
    }
    free(k);
    free(v);
    memd_close(client);
    fake_close(&fake);
}

/* ---- the threads that wait take turns at leading ---- */

struct baton {
    sem_t go; /* the script may answer one more */
};

/* Answers in order, each when told to. */
static void told_script(struct fake *fake, int fd, int number)
{
    (void)number;
    struct baton *baton = fake->arg;
    fake_hello(fake, fd);
    struct fake_request first = { 0 }, second = { 0 };
    fake_expect(fd, &first, METHOD_APPEND);
    fake_expect(fd, &second, METHOD_APPEND);
    sem_wait(&baton->go);
    reply_position(fd, &first);
    sem_wait(&baton->go);
    reply_position(fd, &second);
    arena_fini(&first.arena);
    arena_fini(&second.arena);
}

struct waiter {
    pthread_t thread;
    struct memd_ticket *ticket;
    int rc;
};

static void *wait_for_it(void *arg)
{
    struct waiter *waiter = arg;
    waiter->rc = memd_wait(waiter->ticket, NULL);
    return NULL;
}

/* Until so many threads are in exchange_wait: the leader polls, the others sleep. */
static void until_waiters(struct memd_client *client, size_t count)
{
    size_t waiters = 0;
    while (waiters != count) {
        pthread_mutex_lock(&client->lock);
        waiters = client->led || count == 0 ? client->waiters : 0;
        pthread_mutex_unlock(&client->lock);
        sched_yield();
    }
}

static void who_leaves_hands_over(void **state)
{
    (void)state;
    struct baton baton;
    sem_init(&baton.go, 0, 0);
    struct fake fake = { 0 };
    fake_open(&fake, told_script, &baton);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct waiter waiters[2] = { 0 };
    for (uint64_t i = 0; i < 2; i++) {
        submit(&context, i, &waiters[i].ticket);
        pthread_create(&waiters[i].thread, NULL, wait_for_it, &waiters[i]);
        until_waiters(client, i + 1); /* the first leads, the second sleeps */
    }
    sem_post(&baton.go);
    pthread_join(waiters[0].thread, NULL);
    until_waiters(client, 1);
    sem_post(&baton.go);
    pthread_join(waiters[1].thread, NULL);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(waiters[i].rc, 0);
        memd_ticket_free(waiters[i].ticket);
    }
    memd_close(client);
    fake_close(&fake);
    sem_destroy(&baton.go);
}

/* The leader waits for an answer that comes only after another thread's large request: it must be
 * woken to send the rest of that. */
static void the_leader_sends_for_others(void **state)
{
    (void)state;
    struct baton baton;
    sem_init(&baton.go, 0, 2);
    struct fake fake = { 0 };
    fake_open(&fake, told_script, &baton);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    enum { ROWS = 200000 };
    float *rows = calloc(ROWS, G * D * 4);
    struct waiter small = { 0 };
    submit(&context, 1, &small.ticket);
    pthread_create(&small.thread, NULL, wait_for_it, &small);
    until_waiters(client, 1);
    struct memd_append layer = { .position = 2, .tokens = ROWS, .k = rows, .v = rows };
    struct memd_error err = { 0 };
    int rc = memd_append(&context, &layer, 1, 0, NULL, &err);
    if (rc < 0) print_error("%s\n", err.text);
    assert_int_equal(rc, 0);
    pthread_join(small.thread, NULL);
    assert_int_equal(small.rc, 0);
    memd_ticket_free(small.ticket);
    free(rows);
    memd_close(client);
    fake_close(&fake);
    sem_destroy(&baton.go);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_in_any_order),
        cmocka_unit_test(no_more_in_flight_than_the_daemon_takes),
        cmocka_unit_test(threads_share_a_client),
        cmocka_unit_test(large_both_ways_at_once),
        cmocka_unit_test(a_deadline_passes),
        cmocka_unit_test(a_reply_that_nobody_wants_any_more),
        cmocka_unit_test(who_leaves_hands_over),
        cmocka_unit_test(the_leader_sends_for_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
