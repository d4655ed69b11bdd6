/* SPDX-License-Identifier: Apache-2.0 */
/* test_connect.c — addresses, Hello, and all that the other side can be instead of a memd. */
#include "tests/client/fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"

static void expect_failure(const char *address, const struct memd_options *options, int code)
{
    struct memd_client *client = NULL;
    struct memd_error err = { 0 };
    int rc = memd_connect(address, options, &client, &err);
    if (rc != code) print_error("'%s': %s (%s)\n", address, memd_error_name(rc), err.text);
    assert_int_equal(rc, code);
    assert_int_equal(err.code, code);
    assert_true(strlen(err.text) > 0);
    assert_null(client); /* written only on success */
    assert_int_equal(memd_connect(address, options, &client, NULL), code);
}

static void addresses_that_are_none(void **state)
{
    (void)state;
    static const char *const addresses[] = {
        "",          "/tmp/x",   "unix:",     "tcp:",        "tcp:host",           "tcp:host:",
        "tcp::7777", "tcp:h:7x", "http:h:80", "tcp:[]:7777", "tcp:127.0.0.1:65536"
    };
    for (size_t i = 0; i < sizeof addresses / sizeof addresses[0]; i++)
        expect_failure(addresses[i], NULL, MEMD_EINVAL);
    char path[200] = "unix:/tmp/";
    memset(path + strlen(path), 'x', 150);
    expect_failure(path, NULL, MEMD_EINVAL);
    expect_failure(NULL, NULL, MEMD_EINVAL);
}

static void nobody_listens(void **state)
{
    (void)state;
    expect_failure("unix:/nonexistent/memd.sock", NULL, MEMD_ECLOSED);
    expect_failure("tcp:127.0.0.1:1", NULL, MEMD_ECLOSED);
    expect_failure("tcp:[::1]:1", NULL, MEMD_ECLOSED);
}

static void check_hello_script(struct fake *fake, int fd, int number)
{
    (void)fake;
    (void)number;
    struct fake_request request = { 0 };
    fake_expect(fd, &request, METHOD_HELLO);
    const Memd__HelloRequest *hello = (const Memd__HelloRequest *)request.message;
    bool ok = hello->version == FRAME_VERSION && strcmp(hello->token, "sesame") == 0 &&
              strcmp(hello->client, "tester") == 0 && request.frame.request_id == 1;
    if (ok) fake_error(fd, &request, MEMD_EPERM, "a wrong word");
    arena_fini(&request.arena);
}

static void a_refused_token(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, check_hello_script, NULL);
    struct memd_client *client = NULL;
    struct memd_error err = { 0 };
    struct memd_options options = { .token = "sesame", .client_name = "tester" };
    assert_int_equal(memd_connect(fake.address, &options, &client, &err), MEMD_EPERM);
    assert_string_equal(err.text, "a wrong word");
    fake_close(&fake);
}

/* Sends the bytes of fake->arg and closes when the client does. */
static void raw_script(struct fake *fake, int fd, int number)
{
    (void)number;
    const struct segment_bytes {
        const void *data;
        size_t bytes;
    } *raw = fake->arg;
    fake_send(fd, raw->data, raw->bytes);
    char byte;
    while (raw->bytes > 0 && read(fd, &byte, 1) == 1) continue;
}

static void expect_from_raw(const void *data, size_t bytes, int code)
{
    struct {
        const void *data;
        size_t bytes;
    } raw = { data, bytes };
    struct fake fake = { 0 };
    fake_open(&fake, raw_script, &raw);
    expect_failure(fake.address, &(struct memd_options){ .timeout_ms = FAKE_PATIENT_MS }, code);
    fake_close(&fake);
}

static void somebody_else_answers(void **state)
{
    (void)state;
    static const char http[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    expect_from_raw(http, sizeof http, MEMD_EPROTO);
    expect_from_raw("", 0, MEMD_ECLOSED); /* closes at once */

    struct frame frame = { .kind = FRAME_REPLY, .method = METHOD_HELLO, .request_id = 2 };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    expect_from_raw(header, sizeof header, MEMD_EPROTO); /* a reply to something else */

    frame.request_id = 1;
    frame_encode(&frame, header);
    expect_from_raw(header, sizeof header, MEMD_EVERSION); /* an empty HelloReply: version 0 */

    header[4] = 9;
    expect_from_raw(header, sizeof header, MEMD_EVERSION);

    frame.request_id = 0;
    frame.status = MEMD_EBUSY; /* last words without a text */
    frame_encode(&frame, header);
    expect_from_raw(header, sizeof header, MEMD_EBUSY);
}

static void silent_script(struct fake *fake, int fd, int number)
{
    (void)fake;
    (void)number;
    char byte;
    while (read(fd, &byte, 1) == 1) continue;
}

static void somebody_who_says_nothing(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, silent_script, NULL);
    uint64_t before_ns = clock_monotonic_ns();
    struct memd_client *client = NULL;
    struct memd_error err = { 0 };
    struct memd_options options = { .timeout_ms = 60 };
    assert_int_equal(memd_connect(fake.address, &options, &client, &err), MEMD_EDEADLINE);
    uint64_t took_ms = (clock_monotonic_ns() - before_ns) / 1000000;
    print_message("gave up after %llu ms of 60\n", (unsigned long long)took_ms);
    assert_true(took_ms >= 60);
    fake_close(&fake);
}

static void hello_script(struct fake *fake, int fd, int number)
{
    (void)number;
    fake_hello(fake, fd);
    struct fake_request request = { 0 };
    while (fake_receive(fd, &request)) {
        Memd__HelloReply reply = MEMD__HELLO_REPLY__INIT;
        char *features[] = { (char *)"faiss", (char *)"systemd" };
        reply.version = FRAME_VERSION;
        reply.build = (char *)"memd 9";
        reply.role = (char *)"read";
        reply.n_features = 2;
        reply.features = features;
        reply.requests_in_flight_max = 3;
        fake_reply(fd, &request, &reply.base, NULL, 0);
    }
    arena_fini(&request.arena);
}

static void hello_says_who_is_there(void **state)
{
    (void)state;
    struct fake fake = { 0 };
    fake_open(&fake, hello_script, NULL);
    struct memd_client *client = fake_client(&fake);
    const struct memd_hello *hello = NULL;
    struct memd_error err = { 0 };
    assert_int_equal(memd_hello(client, &hello, &err), 0);
    assert_string_equal(hello->build, "memd 9");
    assert_string_equal(hello->role, "read");
    assert_int_equal(hello->feature_count, 2);
    assert_string_equal(hello->features[1], "systemd");
    assert_int_equal(hello->method_count, 0);
    assert_int_equal(hello->requests_in_flight_max, 3);
    memd_free(hello);
    struct memd_counters counters;
    memd_get_counters(client, &counters);
    assert_int_equal(counters.requests, 1);
    assert_int_equal(counters.reconnects, 0);
    assert_true(counters.bytes_sent > FRAME_HEADER_BYTES);
    memd_close(client);
    memd_close(NULL);
    memd_free(NULL);
    fake_close(&fake);
}

static void codes_have_names(void **state)
{
    (void)state;
    assert_string_equal(memd_error_name(MEMD_EPOSITION), "MEMD_EPOSITION");
    assert_string_equal(memd_error_name(MEMD_EDEVICE), "MEMD_EDEVICE");
    assert_string_equal(memd_error_text(MEMD_EBUSY), "too much work at once, try again");
    assert_string_equal(memd_error_name(-1000), "MEMD_E?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_that_are_none),   cmocka_unit_test(nobody_listens),
        cmocka_unit_test(a_refused_token),           cmocka_unit_test(somebody_else_answers),
        cmocka_unit_test(somebody_who_says_nothing), cmocka_unit_test(hello_says_who_is_there),
        cmocka_unit_test(codes_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
