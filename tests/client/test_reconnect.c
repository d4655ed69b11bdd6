/* SPDX-License-Identifier: Apache-2.0 */
/* test_reconnect.c — connections that break at every point, and what is sent again afterwards.
 *
 * The scripts count what they get over all connections: "not sent twice" and "sent again in order"
 * are statements about that list.
 */
#include "tests/client/fake.h"

#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/whole.h"

enum { G = 2, D = 8, SEEN_MAX = 256 };

/* What the script got, in order; read by the test after fake_close. */
struct seen {
    uint64_t values[SEEN_MAX];
    size_t count;
    int connections_that_break;
    size_t requests_before; /* of each that breaks */
};

static void note(struct seen *seen, uint64_t value)
{
    assert(seen->count < SEEN_MAX);
    seen->values[seen->count++] = value;
}

static uint64_t value_of(const struct fake_request *request)
{
    if (request->frame.method != METHOD_APPEND) return request->frame.method;
    return ((const Memd__AppendRequest *)request->message)->layers[0]->position;
}

static void answer(int fd, const struct fake_request *request)
{
    Memd__AppendReply append = MEMD__APPEND_REPLY__INIT;
    Memd__ForkReply fork = MEMD__FORK_REPLY__INIT;
    Memd__DropReply drop = MEMD__DROP_REPLY__INIT;
    Memd__PinReply pin = MEMD__PIN_REPLY__INIT;
    switch (request->frame.method) {
    case METHOD_APPEND:
        append.tokens = value_of(request);
        fake_reply(fd, request, &append.base, NULL, 0);
        break;
    case METHOD_FORK: fake_reply(fd, request, &fork.base, NULL, 0); break;
    case METHOD_DROP: fake_reply(fd, request, &drop.base, NULL, 0); break;
    case METHOD_PIN: fake_reply(fd, request, &pin.base, NULL, 0); break;
    default: fake_error(fd, request, MEMD_EUNSUPPORTED, "not here"); break;
    }
}

/* The first connections break after some requests, which are not answered. Later ones answer all.
 * */
static void breaking_script(struct fake *fake, int fd, int number)
{
    struct seen *seen = fake->arg;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    size_t requests = 0;
    bool breaks = number < seen->connections_that_break;
    while ((!breaks || requests < seen->requests_before) && fake_receive(fd, &request)) {
        requests++;
        note(seen, value_of(&request));
        if (!breaks) answer(fd, &request);
    }
    arena_fini(&request.arena);
}

static const float zeros[G * D];

static struct memd_append row_at(uint64_t position)
{
    return (struct memd_append){ .position = position, .tokens = 1, .k = zeros, .v = zeros };
}

static void appends_are_sent_again_in_order(void **state)
{
    (void)state;
    struct seen seen = { .connections_that_break = 2, .requests_before = 3 };
    struct fake fake = { 0 };
    fake_open(&fake, breaking_script, &seen);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_ticket *tickets[5];
    for (uint64_t i = 0; i < 5; i++) {
        struct memd_append layer = row_at(100 + i);
        assert_int_equal(memd_submit_append(&context, &layer, 1, 0, &tickets[i], NULL), 0);
    }
    for (uint64_t i = 5; i > 0; i--) {
        struct memd_error err = { 0 };
        int rc = memd_wait(tickets[i - 1], &err);
        if (rc < 0) print_error("%s\n", err.text);
        assert_int_equal(rc, 0);
        assert_int_equal(memd_ticket_progress(tickets[i - 1])->tokens, 100 + i - 1);
        memd_ticket_free(tickets[i - 1]);
    }
    struct memd_counters counters;
    memd_get_counters(client, &counters);
    memd_close(client);
    fake_close(&fake);
    assert_int_equal(counters.reconnects, 2);
    static const uint64_t expected[] = { 100, 101, 102, 100, 101, 102, 100, 101, 102, 103, 104 };
    assert_int_equal(seen.count, sizeof expected / sizeof expected[0]);
    for (size_t i = 0; i < seen.count; i++) assert_int_equal(seen.values[i], expected[i]);
}

static void fork_and_drop_are_not_sent_twice(void **state)
{
    (void)state;
    struct seen seen = { .connections_that_break = 2, .requests_before = 1 };
    struct fake fake = { 0 };
    fake_open(&fake, breaking_script, &seen);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client), fork;
    struct memd_error err = { 0 };
    assert_int_equal(memd_fork(&context, &(struct memd_fork){ .name = "other" }, &fork,
                               &err), MEMD_ECLOSED);
    assert_non_null(strstr(err.text, "fork was sent, but its answer is lost"));
    assert_int_equal(memd_drop(&context, NULL, &err), MEMD_ECLOSED);
    assert_int_equal(memd_fork(&context, &(struct memd_fork){ .name = "other" }, &fork,
                               &err), 0);
    assert_int_equal(memd_pin(&context, 5, NULL, &err), 0);
    memd_close(client);
    fake_close(&fake);
    static const uint64_t expected[] = { METHOD_FORK, METHOD_DROP, METHOD_FORK, METHOD_PIN };
    assert_int_equal(seen.count, 4);
    for (size_t i = 0; i < 4; i++) assert_int_equal(seen.values[i], expected[i]);
}

/* Closes at once after Hello, while nothing is asked. */
static void idle_script(struct fake *fake, int fd, int number)
{
    struct seen *seen = fake->arg;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (number > 0 && fake_receive(fd, &request)) {
        note(seen, value_of(&request));
        answer(fd, &request);
    }
    arena_fini(&request.arena);
}

/* The daemon was restarted while the client slept: nothing was under way, so nothing can be lost.
 * */
static void drop_after_idling(bool tcp)
{
    struct seen seen = { 0 };
    struct fake fake = { .tcp = tcp };
    fake_open(&fake, idle_script, &seen);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_error err = { 0 };
    sem_wait(&fake.closed);
    int rc = memd_drop(&context, NULL, &err);
    if (rc < 0) print_error("%s\n", err.text);
    assert_int_equal(rc, 0);
    memd_close(client);
    fake_close(&fake);
    assert_int_equal(seen.count, 1);
}

static void a_connection_that_ended_while_idle(void **state)
{
    (void)state;
    drop_after_idling(false);
    drop_after_idling(true); /* here sending would succeed, and the request be lost */
}

/* Reads half of a large request, then hangs up; later connections answer. */
static void half_script(struct fake *fake, int fd, int number)
{
    struct seen *seen = fake->arg;
    fake_hello(fake, fd);
    if (number < seen->connections_that_break) {
        static unsigned char half[1 << 20];
        bool received = read_whole(fd, half, sizeof half);
        assert(received);
        return;
    }
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        note(seen, value_of(&request));
        answer(fd, &request);
    }
    arena_fini(&request.arena);
}

static void a_connection_that_breaks_in_a_payload(void **state)
{
    (void)state;
    struct seen seen = { .connections_that_break = 3 };
    struct fake fake = { 0 };
    fake_open(&fake, half_script, &seen);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    enum { ROWS = 100000 };
    float *rows = calloc(ROWS, G * D * 4);
    struct memd_append layer = { .position = 9, .tokens = ROWS, .k = rows, .v = rows };
    struct memd_progress progress;
    assert_int_equal(memd_append(&context, &layer, 1, 0, &progress, NULL), 0);
    assert_int_equal(progress.tokens, 9);
    free(rows);
    memd_close(client);
    fake_close(&fake);
    assert_int_equal(seen.count, 1);
}

/* Hangs up in the middle of a reply. */
static void cut_script(struct fake *fake, int fd, int number)
{
    struct seen *seen = fake->arg;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        note(seen, value_of(&request));
        if (number < 30) {
            Memd__AppendReply reply = MEMD__APPEND_REPLY__INIT;
            reply.tokens = reply.committed_tokens = reply.synced_tokens = UINT64_MAX;
            unsigned char bytes[FRAME_HEADER_BYTES + 64] = { 0 };
            unsigned char *message = NULL;
            size_t message_bytes = 0;
            int rc = message_pack(&reply.base, &request.arena, &message, &message_bytes, NULL);
            assert(rc == 0 && message_bytes == 33);
            struct frame frame = { .kind = FRAME_REPLY,
                                   .method = request.frame.method,
                                   .request_id = request.frame.request_id,
                                   .message_bytes = (uint32_t)message_bytes };
            frame_encode(&frame, bytes);
            memcpy(bytes + FRAME_HEADER_BYTES, message, message_bytes);
            fake_send(fd, bytes, (size_t)(number * 5 % 73));
            break;
        }
        answer(fd, &request);
    }
    arena_fini(&request.arena);
}

static void a_connection_that_breaks_in_a_reply(void **state)
{
    (void)state;
    struct seen seen = { 0 };
    struct fake fake = { 0 };
    fake_open(&fake, cut_script, &seen);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    size_t given_up = 0;
    for (uint64_t i = 0; i < 12; i++) {
        struct memd_append layer = row_at(i);
        struct memd_progress progress;
        struct memd_error err = { 0 };
        int rc = memd_append(&context, &layer, 1, 0, &progress, &err);
        /* A request is not sent more than eight times: one that kills the daemon must not do so
         * for ever. */
        if (rc == MEMD_ECLOSED) given_up++;
        if (rc == 0) assert_int_equal(progress.tokens, i);
    }
    assert_int_equal(given_up, 3);
    memd_close(client);
    fake_close(&fake);
}

/* Says why and hangs up, once. */
static void last_words_script(struct fake *fake, int fd, int number)
{
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        if (number == 0) {
            request.frame.request_id = 0;
            request.frame.method = 0;
            fake_error(fd, &request, MEMD_ELIMIT, "frame of 5 bytes, limit 4");
            break;
        }
        answer(fd, &request);
    }
    arena_fini(&request.arena);
}

static void last_words_are_the_error(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, last_words_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_append layer = row_at(1);
    struct memd_error err = { 0 };
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, &err), MEMD_ELIMIT);
    assert_non_null(strstr(err.text, "frame of 5 bytes, limit 4"));
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, &err), 0);
    memd_close(client);
    fake_close(&fake);
}

/* Says why it does not even read the request, which the client is still sending. */
static void too_large_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    unsigned char header[FRAME_HEADER_BYTES];
    if (!read_whole(fd, header, sizeof header)) return; /* the client is through */
    struct fake_request nobody = { 0 };
    fake_error(fd, &nobody, MEMD_ELIMIT, "frame of 6 MB, limit 5");
}

static void last_words_in_the_middle_of_a_request(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, too_large_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    enum { ROWS = 100000 };
    float *rows = calloc(ROWS, G * D * 4);
    struct memd_append layer = { .tokens = ROWS, .k = rows, .v = rows };
    struct memd_error err = { 0 };
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, &err), MEMD_ELIMIT);
    assert_non_null(strstr(err.text, "frame of 6 MB, limit 5"));
    free(rows);
    memd_close(client);
    fake_close(&fake);
}

/* Answers with a method that was not asked, then to a request that was not sent, then properly. */
static void lying_script(struct fake *fake, int fd, int number)
{
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        if (number == 0) request.frame.method = METHOD_FETCH;
        if (number == 1) request.frame.request_id += 1000;
        Memd__AppendReply reply = MEMD__APPEND_REPLY__INIT;
        fake_reply(fd, &request, &reply.base, NULL, 0);
    }
    arena_fini(&request.arena);
}

static void replies_to_what_was_not_asked(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, lying_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_append layer = row_at(1);
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, NULL), MEMD_EPROTO);
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, NULL), MEMD_EPROTO);
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, NULL), 0);
    memd_close(client);
    fake_close(&fake);
}

/* Answers one request and hangs up; later connections answer all. */
static void one_script(struct fake *fake, int fd, int number)
{
    struct seen *seen = fake->arg;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    for (int i = 0; (number > 0 || i < 1) && fake_receive(fd, &request); i++) {
        note(seen, value_of(&request));
        answer(fd, &request);
    }
    arena_fini(&request.arena);
}

/* The end is noticed by the next send, before the reply has been read: it must not be lost. */
static void a_reply_that_came_before_the_end(void **state)
{
    (void)state;
    struct seen seen = { 0 };
    struct fake fake = { 0 };
    fake_open(&fake, one_script, &seen);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_ticket *tickets[2] = { NULL };
    for (uint64_t i = 0; i < 2; i++) {
        struct memd_append layer = row_at(5 + i);
        assert_int_equal(memd_submit_append(&context, &layer, 1, 0, &tickets[i], NULL), 0);
        if (i == 0) sem_wait(&fake.closed);
    }
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(memd_wait(tickets[i], NULL), 0);
        memd_ticket_free(tickets[i]);
    }
    memd_close(client);
    fake_close(&fake);
    assert_int_equal(seen.count, 2); /* the first was not sent again */
}

/* Refuses every connection after the first. */
static void locked_out_script(struct fake *fake, int fd, int number)
{
    if (number == 0) {
        fake_hello(fake, fd);
        return;
    }
    struct fake_request request = { 0 };
    fake_expect(fd, &request, METHOD_HELLO);
    fake_error(fd, &request, MEMD_EPERM, "the token was withdrawn");
    arena_fini(&request.arena);
}

static void a_daemon_that_lets_us_in_no_more(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, locked_out_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    struct memd_append layer = row_at(1);
    struct memd_error err = { 0 };
    assert_int_equal(memd_append(&context, &layer, 1, 0, NULL, &err), MEMD_EPERM);
    assert_string_equal(err.text, "the token was withdrawn");
    memd_close(client);
    fake_close(&fake);
}

static void a_daemon_that_never_comes_back(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, locked_out_script, NULL);
    struct memd_client *client = fake_client(&fake);
    struct memd_context context = fake_context(client);
    fake_close(&fake);
    struct memd_append layer = row_at(1);
    struct memd_error err = { 0 };
    struct memd_ticket *ticket = NULL;
    assert_int_equal(memd_submit_append(&context, &layer, 1, 0, &ticket, NULL), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(memd_poll(ticket), 0); /* it has tried */
    fake_wait(FAKE_PATIENT_MS - 20); /* and tries for the rest of the time */
    assert_int_equal(memd_wait(ticket, &err), MEMD_EDEADLINE);
    assert_non_null(strstr(err.text, "cannot connect"));
    memd_ticket_free(ticket);
    assert_int_equal(memd_submit_append(&context, &layer, 1, 0, &ticket, NULL), 0);
    memd_poll(ticket);
    memd_ticket_free(ticket);
    memd_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appends_are_sent_again_in_order),
        cmocka_unit_test(fork_and_drop_are_not_sent_twice),
        cmocka_unit_test(a_connection_that_ended_while_idle),
        cmocka_unit_test(a_connection_that_breaks_in_a_payload),
        cmocka_unit_test(a_connection_that_breaks_in_a_reply),
        cmocka_unit_test(last_words_are_the_error),
        cmocka_unit_test(last_words_in_the_middle_of_a_request),
        cmocka_unit_test(replies_to_what_was_not_asked),
        cmocka_unit_test(a_reply_that_came_before_the_end),
        cmocka_unit_test(a_daemon_that_lets_us_in_no_more),
        cmocka_unit_test(a_daemon_that_never_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
