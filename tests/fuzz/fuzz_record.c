/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_record.c — bytes of a stranger's data file: value headers, context records, model
 * descriptors.
 *
 * The first byte chooses. 'v': the rest is a value as it stands. 'r': the rest is the payload of
 * a context record; a sound header is put in front, since no fuzzer guesses checksums. Whatever
 * decodes must come out of encoding and decoding again as the same bytes.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "memory/format.h"
#include "memory/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void decode_value(const uint8_t *data, size_t bytes)
{
    struct value_header header;
    struct error err = { 0 };
    int rc = format_decode(data, bytes, &header, &err);
    if (rc == 0) {
        assert(header.payload_bytes == bytes - FORMAT_HEADER_BYTES);
        assert(header.kind == FORMAT_KIND_CONTEXT || header.tokens <= FORMAT_SEGMENT_TOKENS);
        uint64_t columns = format_columns_bytes(&header);
        assert(columns == 0 || columns * header.tokens <= header.payload_bytes);
        assert(columns != 0 || header.kind != FORMAT_KIND_COLUMNS);
        rc = format_verify(data, bytes, &err);
    }
    assert(rc == 0 || rc == MEMD_ECORRUPT || rc == MEMD_EVERSION);
    assert(rc == 0 || err.code == rc);
}

static void decode_record(const uint8_t *payload, size_t bytes)
{
    unsigned char *value = malloc(FORMAT_HEADER_BYTES + bytes + 2 * RECORD_BYTES_MAX);
    struct record *record = malloc(sizeof *record), *again = malloc(sizeof *again);
    assert(value != NULL && record != NULL && again != NULL);
    memcpy(value + FORMAT_HEADER_BYTES, payload, bytes);
    struct value_header header = { .kind = FORMAT_KIND_CONTEXT, .payload_bytes = bytes };
    format_seal(&header, value);
    struct error err = { 0 };
    int rc = record_decode(value, FORMAT_HEADER_BYTES + bytes, record, &err);
    assert(rc < 0);                                     /* the header names no model */
    if (strstr(err.text, "different models") != NULL) { /* all of the payload was sound */
        size_t first = record_encode(record, value);
        rc = record_decode(value, first, again, &err);
        assert(rc == 0);
        unsigned char *second = value + first;
        assert(record_encode(again, second) == first);
        assert(memcmp(value, second, first) == 0);
    }
    free(value);
    free(record);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 1 || bytes > 1 << 20) return 0;
    if (data[0] == 'v') decode_value(data + 1, bytes - 1);
    if (data[0] == 'r') decode_record(data + 1, bytes - 1);
    return 0;
}
