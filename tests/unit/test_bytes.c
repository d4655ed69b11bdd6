/* SPDX-License-Identifier: Apache-2.0 */
/* test_bytes.c — byte order written out by hand, and the first overrun that nothing forgives.
 *
 * The expected bytes are literals: a round trip alone would accept two mistakes that cancel.
 */
#include "base/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const unsigned char example[] = {
    0xAB,                                           /* u8 */
    0x34, 0x12,                                     /* le16 */
    0x78, 0x56, 0x34, 0x12,                         /* le32 */
    0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01, /* le64 */
    0x12, 0x34,                                     /* be16 */
    0x12, 0x34, 0x56, 0x78,                         /* be32 */
    0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF, /* be64 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xF8, 0x3F, /* 1.5 */
    0x02, 0x00, 'o',  'k',                          /* text */
};

static void put_example(struct bytes_writer *out)
{
    bytes_put_u8(out, 0xAB);
    bytes_put_le16(out, 0x1234);
    bytes_put_le32(out, 0x12345678);
    bytes_put_le64(out, UINT64_C(0x0123456789ABCDEF));
    bytes_put_be16(out, 0x1234);
    bytes_put_be32(out, 0x12345678);
    bytes_put_be64(out, UINT64_C(0x0123456789ABCDEF));
    bytes_put_f64(out, 1.5);
    bytes_put_text(out, "ok", 2);
}

static void writing_gives_the_bytes(void **state)
{
    (void)state;
    unsigned char data[sizeof example];
    struct bytes_writer out = bytes_writer(data, sizeof data);
    put_example(&out);
    assert_false(out.bad);
    assert_int_equal(out.offset, sizeof example);
    assert_memory_equal(data, example, sizeof example);
}

static void reading_gives_the_values(void **state)
{
    (void)state;
    struct bytes_reader in = bytes_reader(example, sizeof example);
    size_t bytes = 0;
    assert_int_equal(bytes_get_u8(&in), 0xAB);
    assert_int_equal(bytes_get_le16(&in), 0x1234);
    assert_int_equal(bytes_get_le32(&in), 0x12345678);
    assert_true(bytes_get_le64(&in) == UINT64_C(0x0123456789ABCDEF));
    assert_int_equal(bytes_get_be16(&in), 0x1234);
    assert_int_equal(bytes_get_be32(&in), 0x12345678);
    assert_true(bytes_get_be64(&in) == UINT64_C(0x0123456789ABCDEF));
    assert_true(bytes_get_f64(&in) == 1.5);
    assert_false(bytes_done(&in));
    const char *text = bytes_get_text(&in, &bytes);
    assert_int_equal(bytes, 2);
    assert_memory_equal(text, "ok", 2);
    assert_true(bytes_done(&in));
}

static void a_writer_stops_at_its_end(void **state)
{
    (void)state;
    for (size_t room = 0; room < sizeof example; room++) {
        unsigned char data[sizeof example + 1];
        memset(data, 0xEE, sizeof data);
        struct bytes_writer out = bytes_writer(data, room);
        put_example(&out);
        assert_true(out.bad);
        assert_true(out.offset <= room);
        for (size_t i = room; i < sizeof data; i++) assert_int_equal(data[i], 0xEE);
    }
}

static void the_first_overrun_is_remembered(void **state)
{
    (void)state;
    struct bytes_reader in = bytes_reader(example, 3);
    assert_int_equal(bytes_get_le32(&in), 0);
    assert_true(in.bad);
    assert_int_equal(bytes_get_u8(&in), 0); /* three bytes are left, but something is wrong */
    assert_null(bytes_get(&in, 1));
    assert_false(bytes_done(&in));

    struct bytes_reader whole = bytes_reader(example, 3);
    assert_non_null(bytes_get(&whole, 3));
    assert_true(bytes_done(&whole));
    assert_null(bytes_get(&whole, SIZE_MAX));
}

static void text_is_cut_or_refused(void **state)
{
    (void)state;
    size_t bytes = 99;
    const unsigned char cut[] = { 5, 0, 'a', 'b' }, with_zero[] = { 3, 0, 'a', 0, 'b' };
    struct bytes_reader in = bytes_reader(cut, sizeof cut);
    assert_null(bytes_get_text(&in, &bytes));
    assert_true(in.bad);
    in = bytes_reader(with_zero, sizeof with_zero);
    assert_null(bytes_get_text(&in, &bytes));
    assert_true(in.bad);
    const unsigned char empty[] = { 0, 0 };
    in = bytes_reader(empty, sizeof empty);
    assert_non_null(bytes_get_text(&in, &bytes));
    assert_int_equal(bytes, 0);
    unsigned char small[4];
    struct bytes_writer out = bytes_writer(small, sizeof small);
    bytes_put_text(&out, "too long", 8);
    assert_true(out.bad);
    static char huge[UINT16_MAX + 1], room[UINT16_MAX + 16];
    out = bytes_writer(room, sizeof room);
    bytes_put_text(&out, huge, sizeof huge); /* its length does not fit the prefix */
    assert_true(out.bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writing_gives_the_bytes),
        cmocka_unit_test(reading_gives_the_values),
        cmocka_unit_test(a_writer_stops_at_its_end),
        cmocka_unit_test(the_first_overrun_is_remembered),
        cmocka_unit_test(text_is_cut_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
