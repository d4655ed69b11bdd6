/* SPDX-License-Identifier: Apache-2.0 */
/* test_frame.c — a known header byte by byte, every field out of range, and what is let through.
 */
#include "proto/frame.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "proto/limits.h"
#include "proto/method.h"
#include "tests/random.h"

static const struct frame request = { .kind = FRAME_REQUEST,
                                      .method = 0x1234,
                                      .request_id = UINT64_C(0x1122334455667788),
                                      .deadline_ms = 0x0A0B0C0D,
                                      .message_bytes = 0x00010203,
                                      .payload_bytes = 0x04050607 };

static void the_layout_is_that_of_the_document(void **state)
{
    (void)state;
    static const unsigned char expected[FRAME_HEADER_BYTES] = {
        'M',  'E',  'M', 'D', 1,    1,    0x34, 0x12, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
        0x22, 0x11, 0,   0,   0,    0,    0x0D, 0x0C, 0x0B, 0x0A, 0x03, 0x02, 0x01, 0x00,
        0,    0,    0,   0,   0x07, 0x06, 0x05, 0x04, 0,    0,    0,    0
    };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&request, header);
    assert_memory_equal(header, expected, sizeof expected);

    struct frame reply = { .kind = FRAME_REPLY, .method = 18, .request_id = 1, .status = -13 };
    frame_encode(&reply, header);
    assert_int_equal(header[5], 2);
    assert_int_equal(header[16], 0xF3);
    assert_int_equal(header[19], 0xFF);
}

static void assert_frames_equal(const struct frame *a, const struct frame *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->method, b->method);
    assert_int_equal(a->request_id, b->request_id);
    assert_int_equal(a->status, b->status);
    assert_int_equal(a->deadline_ms, b->deadline_ms);
    assert_int_equal(a->message_bytes, b->message_bytes);
    assert_int_equal(a->payload_bytes, b->payload_bytes);
}

static void what_is_encoded_is_decoded(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (int i = 0; i < 10000; i++) {
        struct frame frame = { .method = (uint16_t)random_u64(&random),
                               .request_id = random_u64(&random) };
        frame.kind = random_below(&random, 2) == 0 ? FRAME_REQUEST : FRAME_REPLY;
        if (frame.kind == FRAME_REPLY)
            frame.status = -(int32_t)random_below(&random, INT32_MAX);
        else
            frame.deadline_ms = (uint32_t)random_u64(&random);
        frame.message_bytes = (uint32_t)random_below(&random, LIMIT_FRAME_MESSAGE_BYTES + 1);
        frame.payload_bytes = random_below(&random, LIMIT_FRAME_PAYLOAD_BYTES + 1);
        unsigned char header[FRAME_HEADER_BYTES];
        frame_encode(&frame, header);
        struct frame decoded;
        assert_int_equal(frame_decode(header, &decoded, NULL), 0);
        assert_frames_equal(&frame, &decoded);
    }
}

/* The header of `request` with one byte changed must be refused with `code`. */
static void refuse(size_t offset, unsigned char value, int code)
{
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&request, header);
    header[offset] = value;
    struct frame frame = { .method = 77 };
    struct error err = { 0 };
    int rc = frame_decode(header, &frame, &err);
    if (rc != code) print_error("byte %zu = %u: %s\n", offset, value, error_name(rc));
    assert_int_equal(rc, code);
    assert_int_equal(err.code, code);
    assert_true(strlen(err.text) > 0);
    assert_int_equal(frame.method, 77); /* written only on success */
}

static void every_field_is_checked(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) refuse(i, 0, MEMD_EPROTO);
    refuse(4, 0, MEMD_EVERSION);
    refuse(4, 2, MEMD_EVERSION);
    refuse(4, 255, MEMD_EVERSION);
    refuse(5, 0, MEMD_EPROTO);
    refuse(5, 3, MEMD_EPROTO);
    for (size_t i = 16; i < 20; i++) refuse(i, 1, MEMD_EPROTO); /* status in a request */
    for (size_t i = 28; i < 32; i++) refuse(i, 1, MEMD_EPROTO); /* reserved */
    refuse(5, FRAME_REPLY, MEMD_EPROTO);                        /* a reply with a deadline */
    refuse(27, 1, MEMD_ELIMIT);
    for (size_t i = 36; i < 40; i++) refuse(i, 1, MEMD_ELIMIT);
    refuse(39, 0x80, MEMD_ELIMIT);
}

static void a_reply_has_no_positive_status(void **state)
{
    (void)state;
    struct frame reply = { .kind = FRAME_REPLY, .method = 18 };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&reply, header);
    header[16] = 1;
    assert_int_equal(frame_decode(header, &reply, NULL), MEMD_EPROTO);
}

static void the_limits_themselves_are_allowed(void **state)
{
    (void)state;
    struct frame frame = { .kind = FRAME_REQUEST,
                           .message_bytes = LIMIT_FRAME_MESSAGE_BYTES,
                           .payload_bytes = LIMIT_FRAME_PAYLOAD_BYTES };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    struct frame decoded;
    assert_int_equal(frame_decode(header, &decoded, NULL), 0);
    header[24]++; /* 4 MiB + 1 */
    assert_int_equal(frame_decode(header, &decoded, NULL), MEMD_ELIMIT);
    header[24]--;
    header[32]++; /* 256 MiB + 1 */
    assert_int_equal(frame_decode(header, &decoded, NULL), MEMD_ELIMIT);
}

static void methods_have_names(void **state)
{
    (void)state;
    assert_string_equal(method_name(METHOD_HELLO), "hello");
    assert_string_equal(method_name(METHOD_DRAIN), "drain");
    assert_null(method_name(0));
    assert_null(method_name(15));
    assert_null(method_name(65535));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_layout_is_that_of_the_document),
        cmocka_unit_test(what_is_encoded_is_decoded),
        cmocka_unit_test(every_field_is_checked),
        cmocka_unit_test(a_reply_has_no_positive_status),
        cmocka_unit_test(the_limits_themselves_are_allowed),
        cmocka_unit_test(methods_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
