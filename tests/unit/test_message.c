/* SPDX-License-Identifier: Apache-2.0 */
/* test_message.c — messages in an arena, text that is none, and tensors that do not fit.
 *
 * Bad bytes are written by hand (tag, length, content): protobuf-c would not let us pack them.
 */
#include "proto/message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/error.h"
#include "proto/limits.h"
#include "proto/method.h"
#include "tests/random.h"

enum { ARENA_BYTES = 1 << 20 };

static int set_up(void **state)
{
    static struct arena arena;
    arena_init(&arena, ARENA_BYTES);
    *state = &arena;
    return 0;
}

static int tear_down(void **state)
{
    arena_fini(*state);
    return 0;
}

/* ---- messages ---- */

static void an_append_there_and_back(void **state)
{
    struct arena *arena = *state;
    size_t shape[3] = { 5, 2, 64 };
    uint32_t ids[5] = { 1, 2, 3, 4, UINT32_MAX };
    Memd__AppendLayer layer = MEMD__APPEND_LAYER__INIT;
    layer.layer = 3;
    layer.position = UINT64_C(1) << 33;
    layer.k = message_make_tensor(arena, DTYPE_BF16, 3, shape, 0);
    layer.v = message_make_tensor(arena, DTYPE_BF16, 3, shape, 1280);
    layer.n_token_ids = 5;
    layer.token_ids = ids;
    Memd__AppendLayer *layers[] = { &layer };
    Memd__AppendRequest request = MEMD__APPEND_REQUEST__INIT;
    request.context_id = 42;
    request.n_layers = 1;
    request.layers = layers;
    request.ack = MEMD__ACK__ACK_SYNCED;

    unsigned char *data = NULL;
    size_t bytes = 0;
    struct error err = { 0 };
    assert_int_equal(message_pack(&request.base, arena, &data, &bytes, &err), 0);
    const Memd__AppendRequest *back = (const Memd__AppendRequest *)message_unpack_request(
        METHOD_APPEND, data, bytes, arena, &err);
    assert_non_null(back);
    assert_int_equal(back->context_id, 42);
    assert_int_equal(back->ack, MEMD__ACK__ACK_SYNCED);
    assert_int_equal(back->n_layers, 1);
    assert_int_equal(back->layers[0]->position, UINT64_C(1) << 33);
    assert_int_equal(back->layers[0]->token_ids[4], UINT32_MAX);
    assert_int_equal(back->layers[0]->v->offset, 1280);
    assert_null(back->layers[0]->q);
}

static void every_method_has_both_messages(void **state)
{
    struct arena *arena = *state;
    struct error err = { 0 };
#define X(NAME, number, snake, Message, role)                              \
    assert_non_null(message_unpack_request(number, NULL, 0, arena, &err)); \
    assert_non_null(message_unpack_reply(number, NULL, 0, arena, &err));
    METHOD_MAP(X)
#undef X
    assert_int_equal(err.code, 0);
    assert_null(message_unpack_request(99, NULL, 0, arena, &err));
    assert_int_equal(err.code, MEMD_EUNSUPPORTED);
    err.code = 0;
    assert_null(message_unpack_reply(99, NULL, 0, arena, &err));
    assert_int_equal(err.code, MEMD_EUNSUPPORTED);
}

static int unpack(struct arena *arena, unsigned method, const void *data, size_t bytes)
{
    struct error err = { 0 };
    const ProtobufCMessage *message = message_unpack_request(method, data, bytes, arena, &err);
    assert_int_equal(message == NULL, err.code != 0);
    return err.code;
}

static void bytes_that_are_no_message(void **state)
{
    struct arena *arena = *state;
    static const struct {
        const char *data;
        size_t bytes;
    } bad[] = {
        { "\x0A", 1 }, /* a length is missing */
        { "\x0A\x05"
          "abc",
          5 },                                                      /* shorter than its length */
        { "\x08", 1 },                                              /* a number is missing */
        { "\x08\x80", 2 },                                          /* half a number */
        { "\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 12 }, /* more than 64 bits */
        { "\x09\x01\x02", 3 },                                      /* a fixed64 of two bytes */
        { "\x0B\x0C", 2 },                                          /* a group */
        { "\x0F", 1 },                                              /* wire type 7 */
        { "\x00\x00", 2 },                                          /* field 0 */
        { "\x12\x02\x0A\x05", 4 }, /* Open: a model that is cut inside */
        { "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11 }, /* a length of 2^64 - 1 */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int rc = unpack(arena, METHOD_OPEN, bad[i].data, bad[i].bytes);
        if (rc != MEMD_EPROTO) print_error("bytes %zu: %s\n", i, error_name(rc));
        assert_int_equal(rc, MEMD_EPROTO);
    }
}

static void unknown_fields_are_ignored(void **state)
{
    /* 100: 7 (number), 101: "\xFF" (no string that we know), 102: fixed32, 103: fixed64 */
    static const char data[] = "\x0A\x01"
                               "a"
                               "\xA0\x06\x07"
                               "\xAA\x06\x01\xFF"
                               "\xB5\x06"
                               "1234"
                               "\xB9\x06"
                               "12345678"
                               "\x28\x01";
    struct error err = { 0 };
    const Memd__OpenRequest *open = (const Memd__OpenRequest *)message_unpack_request(
        METHOD_OPEN, data, sizeof data - 1, *state, &err);
    assert_int_equal(err.code, 0);
    assert_string_equal(open->name, "a");
    assert_true(open->create);
}

/* Open with this name. */
static int open_named(struct arena *arena, const char *name, size_t bytes)
{
    unsigned char data[300] = { 0x0A, (unsigned char)bytes };
    assert_true(bytes < 128);
    memcpy(data + 2, name, bytes);
    return unpack(arena, METHOD_OPEN, data, bytes + 2);
}

static void strings_are_text(void **state)
{
    struct arena *arena = *state;
    static const char *const good[] = {
        "",
        "book",
        "\xC2\x80",
        "\xDF\xBF",
        "\xE0\xA0\x80",
        "\xED\x9F\xBF",
        "\xEE\x80\x80",
        "\xEF\xBF\xBF",
        "\xF0\x90\x80\x80",
        "\xF4\x8F\xBF\xBF",
        "Gr\xC3\xBC\xC3\x9F \xE2\x86\x92",
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(open_named(arena, good[i], strlen(good[i])), 0);
    static const char *const bad[] = {
        "\x80",
        "\xBF",
        "\xC0\x80",
        "\xC1\xBF",
        "\xC2",
        "\xC2"
        "A",
        "\xE0\x80\x80",
        "\xE0\x9F\xBF",
        "\xED\xA0\x80",
        "\xED\xBF\xBF",
        "\xE2\x86",
        "\xE2\x86"
        "A",
        "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80",
        "\xF0\x90\x80",
        "\xFF",
        "ok\xFE",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int rc = open_named(arena, bad[i], strlen(bad[i]));
        if (rc != MEMD_EPROTO) print_error("text %zu: %s\n", i, error_name(rc));
        assert_int_equal(rc, MEMD_EPROTO);
    }
    assert_int_equal(open_named(arena, "a\0b", 3), MEMD_EPROTO);
    assert_int_equal(open_named(arena, "a\0", 2), MEMD_EPROTO);
    /* inside another message: Open.parameters[0].value */
    assert_int_equal(unpack(arena, METHOD_OPEN, "\x22\x03\x12\x01\xFF", 5), MEMD_EPROTO);
    /* bytes are no text: Verify.cursor */
    assert_int_equal(unpack(arena, METHOD_VERIFY, "\x12\x02\x00\xFF", 4), 0);
}

static void a_name_is_more_than_text(void **state)
{
    (void)state;
    char name[LIMIT_NAME_BYTES + 2];
    memset(name, 'n', sizeof name);
    name[LIMIT_NAME_BYTES] = '\0';
    assert_true(message_name_ok(name));
    name[LIMIT_NAME_BYTES] = 'n';
    name[LIMIT_NAME_BYTES + 1] = '\0';
    assert_false(message_name_ok(name));
    assert_true(message_name_ok("a b/c:\xC2\xA0"));
    assert_false(message_name_ok(""));
    assert_false(message_name_ok("a\n"));
    assert_false(message_name_ok("\x7F"));
    assert_false(message_name_ok("a\xC2\x85")); /* U+0085, next line */
    assert_false(message_name_ok("\xFF"));
}

static void a_message_cannot_outgrow_its_arena(void **state)
{
    (void)state;
    /* 100,000 empty items: 200 kB on the wire, some 10 MB unpacked. */
    static unsigned char data[200000];
    for (size_t i = 0; i < sizeof data; i += 2) data[i] = 0x0A;
    struct arena arena;
    arena_init(&arena, 1 << 20);
    struct error err = { 0 };
    assert_null(message_unpack_request(METHOD_ATTEND, data, sizeof data, &arena, &err));
    assert_int_equal(err.code, MEMD_ENOMEM);
    assert_true(arena.used_bytes <= 1 << 20);
    arena_fini(&arena);
    arena_init(&arena, 64 << 20);
    const Memd__AttendRequest *attend = (const Memd__AttendRequest *)message_unpack_request(
        METHOD_ATTEND, data, sizeof data, &arena, &err);
    assert_int_equal(attend->n_items, 100000);
    print_message("%zu bytes on the wire, %zu in the arena\n", sizeof data, arena.used_bytes);
    arena_fini(&arena);
    assert_null(
        message_unpack_request(METHOD_ATTEND, data, LIMIT_FRAME_MESSAGE_BYTES + 1, *state, &err));
    assert_int_equal(err.code, MEMD_ELIMIT);
}

static void packing_has_limits(void **state)
{
    (void)state;
    static uint64_t ids[600000];
    for (size_t i = 0; i < 600000; i++) ids[i] = UINT64_MAX;
    Memd__FetchRequest fetch = MEMD__FETCH_REQUEST__INIT;
    fetch.ids = ids;
    fetch.n_ids = 1000;
    struct arena arena;
    arena_init(&arena, 5000);
    unsigned char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(message_pack(&fetch.base, &arena, &data, &bytes, NULL), MEMD_ENOMEM);
    arena_fini(&arena);
    fetch.n_ids = 600000;
    arena_init(&arena, 64 << 20);
    assert_int_equal(message_pack(&fetch.base, &arena, &data, &bytes, NULL), MEMD_ELIMIT);
    assert_null(data);
    arena_fini(&arena);
}

static void an_error_reply(void **state)
{
    Memd__ErrorReply reply = MEMD__ERROR_REPLY__INIT;
    reply.code = MEMD_EBUSY;
    reply.text = (char *)"too much";
    unsigned char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(message_pack(&reply.base, *state, &data, &bytes, NULL), 0);
    const Memd__ErrorReply *back = message_unpack_error(data, bytes, *state);
    assert_int_equal(back->code, MEMD_EBUSY);
    assert_string_equal(back->text, "too much");
    assert_null(message_unpack_error("\x0A", 1, *state));
}

/* ---- tensors ---- */

static const unsigned char payload[4096];

static int resolve(const Memd__Tensor *wire, const struct message_shape *expect, size_t bytes)
{
    struct tensor tensor = { .dims = 9 };
    struct error err = { 0 };
    int rc = message_tensor(wire, payload, bytes, expect, &tensor, &err);
    assert_int_equal(rc, err.code);
    if (rc < 0) assert_int_equal(tensor.dims, 9); /* written only on success */
    if (rc < 0) assert_non_null(strstr(err.text, expect->what));
    return rc;
}

static void a_tensor_that_fits(void **state)
{
    size_t shape[3] = { 3, 2, 16 };
    Memd__Tensor *wire = message_make_tensor(*state, DTYPE_FP16, 3, shape, 128);
    struct message_shape expect = { .what = "k", .dims = 3, .shape = { MESSAGE_ANY, 2, 16 } };
    struct tensor tensor;
    size_t bytes = 128 + 3 * 2 * 16 * 2;
    assert_int_equal(message_tensor(wire, payload, bytes, &expect, &tensor, NULL), 0);
    assert_ptr_equal(tensor.data, payload + 128);
    assert_int_equal(tensor.dtype, DTYPE_FP16);
    assert_int_equal(tensor.dims, 3);
    assert_int_equal(tensor.shape[0], 3);
    assert_int_equal(resolve(wire, &expect, bytes - 1), MEMD_ESHAPE);
    expect.dtype = DTYPE_FP16;
    assert_int_equal(resolve(wire, &expect, bytes), 0);
    assert_int_equal(message_tensor(wire, NULL, bytes, &expect, &tensor, NULL), 0);
    assert_null(tensor.data); /* the payload has not come yet */
}

static void tensors_that_do_not_fit(void **state)
{
    struct arena *arena = *state;
    size_t shape[3] = { 3, 2, 16 };
    struct message_shape expect = { .what = "k", .dims = 3, .shape = { MESSAGE_ANY, 2, 16 } };
    assert_int_equal(resolve(NULL, &expect, 4096), MEMD_ESHAPE);
    Memd__Tensor *wire = message_make_tensor(arena, DTYPE_FP32, 3, shape, 0);
    static const uint32_t dtypes[] = { 0, DTYPE_U64, DTYPE_U32, 6, 1000, UINT32_MAX };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        wire->dtype = (Memd__DType)dtypes[i];
        assert_int_equal(resolve(wire, &expect, 4096), MEMD_ESHAPE);
    }
    wire->dtype = MEMD__DTYPE__DTYPE_FP32;
    assert_int_equal(resolve(wire, &expect, 4096), 0);
    expect.dtype = DTYPE_BF16;
    assert_int_equal(resolve(wire, &expect, 4096), MEMD_ESHAPE);
    expect.dtype = 0;
    static const uint64_t lengths[] = { 0, 1, 3, UINT32_MAX, UINT64_MAX };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        wire->shape[1] = lengths[i];
        assert_int_equal(resolve(wire, &expect, 4096), MEMD_ESHAPE);
    }
    wire->shape[1] = 2;
    static const uint64_t counts[] = { 0, 33, UINT64_MAX, UINT64_MAX / 64, UINT64_C(1) << 57 };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        wire->shape[0] = counts[i];
        assert_int_equal(resolve(wire, &expect, 4096), MEMD_ESHAPE);
    }
    wire->shape[0] = 3;
    static const uint64_t offsets[] = { 1, 63, 4096, 4096 - 320, UINT64_MAX, UINT64_MAX - 63 };
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        wire->offset = offsets[i];
        assert_int_equal(resolve(wire, &expect, 4096), MEMD_ESHAPE);
    }
    wire->offset = 0;
    for (size_t dims = 0; dims < 3; dims++) {
        wire->n_shape = dims;
        assert_int_equal(resolve(wire, &expect, 4096), MEMD_ESHAPE);
    }
}

/* A tensor of a region is judged as one of a payload, and never taken for one. */
static void tensors_in_a_region(void **state)
{
    size_t shape[3] = { 3, 2, 16 };
    Memd__Tensor *wire = message_make_tensor(*state, DTYPE_FP16, 3, shape, 128);
    struct message_shape expect = { .what = "k", .dims = 3, .shape = { MESSAGE_ANY, 2, 16 } };
    struct tensor tensor = { .dims = 9 };
    struct error err = { 0 };
    size_t bytes = 128 + 3 * 2 * 16 * 2;
    wire->region = 5;
    assert_int_equal(resolve(wire, &expect, sizeof payload), MEMD_ESHAPE);
    assert_int_equal(message_region_tensor(wire, bytes, &expect, &tensor, &err), 0);
    assert_null(tensor.data);
    assert_int_equal(tensor.shape[0], 3);
    assert_int_equal(tensor.dtype, DTYPE_FP16);
    assert_int_equal(message_region_tensor(wire, bytes - 1, &expect, &tensor, &err), MEMD_ESHAPE);
    assert_non_null(strstr(err.text, "region of 319"));
    static const uint64_t offsets[] = { 192, 1, UINT64_MAX - 63, UINT64_C(1) << 63 };
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        wire->offset = offsets[i];
        assert_int_equal(message_region_tensor(wire, bytes, &expect, &tensor, NULL), MEMD_ESHAPE);
    }
    wire->offset = 0;
    wire->shape[0] = UINT64_C(1) << 62;
    assert_int_equal(message_region_tensor(wire, bytes, &expect, &tensor, NULL), MEMD_ESHAPE);
}

static void placing_is_aligned_and_disjoint(void **state)
{
    (void)state;
    uint64_t random = random_seed(), cursor = 0, end = 0;
    for (int i = 0; i < 1000; i++) {
        size_t bytes = (size_t)random_below(&random, 1000);
        uint64_t offset = message_place(&cursor, bytes);
        assert_int_equal(offset % LIMIT_PAYLOAD_ALIGN, 0);
        assert_true(offset >= end && offset < end + LIMIT_PAYLOAD_ALIGN);
        end = offset + bytes;
        assert_int_equal(cursor, end);
    }
}

static void no_memory_for_a_tensor(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 16);
    size_t shape[1] = { 1 };
    assert_null(message_make_tensor(&arena, DTYPE_FP32, 1, shape, 0));
    arena_fini(&arena);
}

static void test_context_of_a_request(void **state)
{
    (void)state;
    Memd__AppendRequest append = MEMD__APPEND_REQUEST__INIT;
    append.context_id = 7;
    assert_int_equal(message_context(&append.base), 7);
    Memd__AttendRequest attend = MEMD__ATTEND_REQUEST__INIT;
    assert_int_equal(message_context(&attend.base), 0); /* nothing in it */
    Memd__AttendItem first = MEMD__ATTEND_ITEM__INIT, second = MEMD__ATTEND_ITEM__INIT;
    Memd__AttendItem *items[] = { &first, &second };
    first.context_id = UINT64_MAX;
    second.context_id = 3;
    attend.items = items;
    attend.n_items = 2;
    assert_true(message_context(&attend.base) == UINT64_MAX);
    Memd__ListRequest list = MEMD__LIST_REQUEST__INIT; /* no such field */
    assert_int_equal(message_context(&list.base), 0);
    Memd__PutParamsRequest put = MEMD__PUT_PARAMS_REQUEST__INIT;
    put.context_id = 5;
    assert_int_equal(message_context(&put.base), 5);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(an_append_there_and_back),
        TEST(every_method_has_both_messages),
        TEST(bytes_that_are_no_message),
        TEST(unknown_fields_are_ignored),
        TEST(strings_are_text),
        TEST(a_name_is_more_than_text),
        TEST(a_message_cannot_outgrow_its_arena),
        TEST(packing_has_limits),
        TEST(an_error_reply),
        TEST(a_tensor_that_fits),
        TEST(tensors_that_do_not_fit),
        TEST(tensors_in_a_region),
        TEST(placing_is_aligned_and_disjoint),
        TEST(no_memory_for_a_tensor),
        cmocka_unit_test(test_context_of_a_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
