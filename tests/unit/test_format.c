/* SPDX-License-Identifier: Apache-2.0 */
/* test_format.c — bytes on disk: the example of docs/FORMAT.md, keys that sort, damage that is
 * seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "memory/block.h"
#include "memory/format.h"
#include "memory/record.h"

enum { EXAMPLE_BYTES = 48 + 2 * 2 * 8 * 2 + 2 * 4, MARKED_BYTES = EXAMPLE_BYTES + 2 };

static const struct block_shape shape = {
    .heads = 1,
    .head_dim = 8,
    .dtype = DTYPE_FP16,
    .row_bytes = 16,
    .region_bytes = 64 + 1024 * 16,
    .model_hash = UINT64_C(0x1122334455667788),
};

/* The tail records of the document. */
static void make_example(unsigned char value[MARKED_BYTES], bool marked)
{
    struct block_shape kept = shape;
    columns_init(marked ? COLUMNS_MARKS : COLUMNS_NONE, 1, 8, &kept.columns);
    uint16_t k[16], v[16];
    uint32_t ids[] = { 7, 9 };
    for (size_t i = 0; i < 16; i++) {
        k[i] = half_to_fp16((float)i + 1);
        v[i] = half_to_fp16(-1);
    }
    struct block_cache cache;
    block_cache_init(&cache, 0);
    struct block *block = block_new(&cache, &kept);
    assert_non_null(block);
    struct given_rows rows = { .k = (unsigned char *)k, .v = (unsigned char *)v, .ids = ids,
                               .stride_bytes = 16, .count = 2 };
    block_write(block, &kept, 5, &rows);
    if (marked) memcpy(block_columns(block, &kept) + 5, (unsigned char[]){ 0, MARK_LANDMARK }, 2);
    assert_int_equal(block_tail_bytes(&kept, 2, true), marked ? MARKED_BYTES : EXAMPLE_BYTES);
    block_tail_encode(block, &kept, 5, 2, true, value);
    block_put(block);
    block_cache_fini(&cache);
}

/* The hex digits of the code block behind `marker` in the document; how many bytes. */
static size_t read_example(const char *marker, unsigned char *ret_bytes, size_t size)
{
    const char *root = getenv("MEMD_SOURCE_ROOT");
    char path[512];
    snprintf(path, sizeof path, "%s/docs/FORMAT.md", root == NULL ? "." : root);
    FILE *file = fopen(path, "r");
    if (file == NULL) fail_msg("cannot open %s", path);
    static char text[64 * 1024];
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    const char *at = strstr(text, marker);
    assert_non_null(at);
    at = strstr(at, "```");
    assert_non_null(at);
    const char *end = strstr(at + 3, "```");
    size_t count = 0;
    for (at += 3; at < end; at++) {
        if (!isxdigit((unsigned char)at[0])) continue;
        char pair[3] = { at[0], at[1], 0 };
        assert_true(count < size);
        ret_bytes[count++] = (unsigned char)strtoul(pair, NULL, 16);
        at++;
    }
    return count;
}

static void expect_documented(const char *marker, const unsigned char *value, size_t value_bytes)
{
    unsigned char documented[256];
    if (getenv("MEMD_PRINT_EXAMPLE") != NULL) {
        for (size_t i = 0; i < value_bytes; i++)
            printf("%02x%s", value[i], i % 16 == 15 ? "\n" : "");
        printf("\n");
    }
    size_t bytes = read_example(marker, documented, sizeof documented);
    assert_int_equal(bytes, value_bytes);
    assert_memory_equal(documented, value, value_bytes);
}

static void test_document(void **state)
{
    (void)state;
    unsigned char value[MARKED_BYTES], key[FORMAT_KEY_BYTES_MAX], documented[256];
    make_example(value, false);
    expect_documented("<!-- example value -->", value, EXAMPLE_BYTES);
    make_example(value, true);
    expect_documented("<!-- example marked -->", value, MARKED_BYTES);
    size_t bytes = read_example("<!-- example key -->", documented, sizeof documented);
    assert_int_equal(bytes, format_key_tail(3, 2, 5, key));
    assert_memory_equal(documented, key, bytes);
}

static void expect_every_bit_counts(unsigned char *value, size_t value_bytes)
{
    struct value_header header;
    struct error err = { 0 };
    assert_int_equal(format_decode(value, value_bytes, &header, &err), 0);
    assert_int_equal(format_verify(value, value_bytes, &err), 0);
    assert_int_equal(header.position, 5);
    assert_int_equal(header.tokens, 2);
    assert_int_equal(header.heads, 1);
    for (size_t bit = 0; bit < value_bytes * 8; bit++) {
        value[bit / 8] ^= (unsigned char)(1u << bit % 8);
        int rc = format_decode(value, value_bytes, &header, &err);
        if (rc == 0) rc = format_verify(value, value_bytes, &err);
        if (rc != MEMD_ECORRUPT && !(rc == MEMD_EVERSION && bit / 8 == 4))
            fail_msg("bit %zu flipped: %s", bit, error_name(rc));
        value[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    for (size_t bytes = 0; bytes < value_bytes; bytes++)
        assert_int_equal(format_decode(value, bytes, &header, &err), MEMD_ECORRUPT);
}

static void test_every_bit_counts(void **state)
{
    (void)state;
    unsigned char value[MARKED_BYTES];
    make_example(value, false);
    expect_every_bit_counts(value, EXAMPLE_BYTES);
    make_example(value, true);
    expect_every_bit_counts(value, MARKED_BYTES);
}

/* A sealed header in front of `payload_bytes` of anything. */
static int decode_again(struct value_header header, size_t payload_bytes,
                        struct value_header *ret_header)
{
    unsigned char value[48 + 4096] = { 0 };
    assert_true(payload_bytes <= 4096);
    header.payload_bytes = payload_bytes;
    format_seal(&header, value);
    return format_decode(value, 48 + payload_bytes, ret_header, NULL);
}

/* Their length is what is left: there must be some, the same for every token. */
static void test_columns(void **state)
{
    (void)state;
    struct value_header header, tail = { .kind = FORMAT_KIND_TAIL, .dtype = DTYPE_FP16,
                                         .tokens = 2, .head_dim = 8, .heads = 1 };
    const size_t rows = 2 * 2 * 8 * 2;
    assert_int_equal(decode_again(tail, rows, &header), 0);
    assert_int_equal(format_columns_bytes(&header), 0);
    assert_int_equal(decode_again(tail, rows + 2, &header), MEMD_ECORRUPT);
    tail.flags = FORMAT_FLAG_COLUMNS;
    assert_int_equal(decode_again(tail, rows, &header), MEMD_ECORRUPT);
    assert_int_equal(decode_again(tail, rows + 1, &header), MEMD_ECORRUPT);
    assert_int_equal(decode_again(tail, rows - 2, &header), MEMD_ECORRUPT);
    assert_int_equal(decode_again(tail, rows + 6, &header), 0);
    assert_int_equal(format_columns_bytes(&header), 3);
    tail.flags = FORMAT_FLAG_COLUMNS | FORMAT_FLAG_IDS;
    assert_int_equal(decode_again(tail, rows + 6, &header), MEMD_ECORRUPT);
    assert_int_equal(decode_again(tail, rows + 8, &header), MEMD_ECORRUPT);
    assert_int_equal(decode_again(tail, rows + 10, &header), 0);
    assert_int_equal(format_columns_bytes(&header), 1);
    tail.flags = 4; /* of a later version */
    assert_int_equal(decode_again(tail, rows, &header), MEMD_ECORRUPT);
    struct value_header columns = { .kind = FORMAT_KIND_COLUMNS, .tokens = 1024 };
    assert_int_equal(decode_again(columns, 3072, &header), 0);
    assert_int_equal(format_columns_bytes(&header), 3);
    assert_int_equal(decode_again(columns, 3073, &header), MEMD_ECORRUPT);
    assert_int_equal(decode_again(columns, 0, &header), MEMD_ECORRUPT);
    columns.flags = FORMAT_FLAG_COLUMNS;
    assert_int_equal(decode_again(columns, 3072, &header), MEMD_ECORRUPT);
    columns.flags = 0;
    columns.dtype = DTYPE_FP16;
    assert_int_equal(decode_again(columns, 3072, &header), MEMD_ECORRUPT);
}

static void test_keys_sort_and_return(void **state)
{
    (void)state;
    unsigned char a[FORMAT_KEY_BYTES_MAX], b[FORMAT_KEY_BYTES_MAX];
    struct chain_key chain;
    struct tail_key tail;
    struct segment_key segment;
    uint64_t id = 0;
    size_t bytes = format_key_chain(1, 2, 255, a);
    assert_int_equal(format_key_chain(1, 2, 256, b), bytes);
    assert_true(memcmp(a, b, bytes) < 0);
    assert_true(format_read_chain(b, bytes, &chain));
    assert_true(chain.context == 1 && chain.layer == 2 && chain.sequence == 256);
    assert_false(format_read_chain(b, bytes - 1, &chain));
    bytes = format_key_tail(1, 2, 0x1FF, a);
    assert_int_equal(format_key_tail(1, 3, 0, b), bytes);
    assert_true(memcmp(a, b, bytes) < 0);
    assert_true(format_read_tail(a, bytes, &tail));
    assert_true(tail.context == 1 && tail.layer == 2 && tail.position == 0x1FF);
    bytes = format_key_segment(7, 1023, FORMAT_KIND_V, a);
    assert_true(format_read_segment(a, bytes, &segment));
    assert_true(segment.segment == 7 && segment.head == 1023 && segment.kind == FORMAT_KIND_V);
    bytes = format_key_id(UINT64_MAX, a);
    assert_true(format_read_id(a, bytes, &id) && id == UINT64_MAX);
    unsigned char ref_bytes[FORMAT_REF_BYTES];
    struct segment_ref ref = { 3, 99 }, back;
    format_put_ref(&ref, ref_bytes);
    assert_true(format_read_ref(ref_bytes, sizeof ref_bytes, &back) && back.count == 3 &&
                back.bytes == 99);
    ref_bytes[5] = 1;
    assert_false(format_read_ref(ref_bytes, sizeof ref_bytes, &back));
}

static void test_record_round_trip(void **state)
{
    (void)state;
    struct record *record = calloc(1, sizeof *record), *back = calloc(1, sizeof *back);
    unsigned char *value = malloc(RECORD_BYTES_MAX);
    struct error err = { 0 };
    snprintf(record->name, sizeof record->name, "a name");
    snprintf(record->method, sizeof record->method, "full");
    record->model = (struct model){
        .layers = 3,
        .query_heads = 8,
        .kv_heads = 2,
        .head_dim = 64,
        .dtype = DTYPE_BF16,
        .has_rope = true,
        .rope = { .theta = 1e5, .scaling = ROPE_SCALE_YARN, .factor = 4, .original_context = 4096 }
    };
    if (model_check(&record->model, &err) < 0) fail_msg("%s", err.text);
    record->parent_id = 5;
    record->used_unix_ms = 123456789;
    record->parameter_count = 1;
    snprintf(record->parameters[0].name, sizeof record->parameters[0].name, "window");
    snprintf(record->parameters[0].value, sizeof record->parameters[0].value, "12");
    size_t bytes = record_encode(record, value);
    if (record_decode(value, bytes, back, &err) < 0) fail_msg("%s", err.text);
    assert_string_equal(back->name, record->name);
    assert_string_equal(back->parameters[0].value, "12");
    assert_int_equal(back->parent_id, 5);
    assert_int_equal(back->used_unix_ms, 123456789);
    assert_int_equal(model_compare(&back->model, &record->model, &err), 0);
    for (size_t i = 0; i < bytes; i++) {
        value[i] ^= 0x40;
        if (record_decode(value, bytes, back, &err) == 0)
            fail_msg("byte %zu flipped and nothing noticed", i);
        value[i] ^= 0x40;
    }
    for (size_t i = 0; i < bytes; i++) assert_true(record_decode(value, i, back, &err) < 0);
    free(record);
    free(back);
    free(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_document),
        cmocka_unit_test(test_every_bit_counts),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_keys_sort_and_return),
        cmocka_unit_test(test_record_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
