/* SPDX-License-Identifier: Apache-2.0 */
/* record.c — one flat value per context, rewritten whole: it changes when a context is made,
 * used after a minute of rest, retained, or dropped, never with an append, so its size (some 300
 * bytes) does not matter.
 */
#include "memory/record.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "memory/block.h"
#include "memory/methods/methods.h"

enum { RECORD_FLAG_DROPPING = 1 };

static void put_string(struct bytes_writer *out, const char *text)
{
    bytes_put_text(out, text, strlen(text));
}

size_t record_encode(const struct record *record, unsigned char ret_value[RECORD_BYTES_MAX])
{
    struct bytes_writer out = bytes_writer(ret_value, RECORD_BYTES_MAX);
    out.offset = FORMAT_HEADER_BYTES;
    put_string(&out, record->name);
    bytes_put_le64(&out, record->parent_id);
    bytes_put_le64(&out, record->created_unix_ms);
    bytes_put_le64(&out, record->used_unix_ms);
    bytes_put_le64(&out, record->retained_until_unix_ms);
    bytes_put_le64(&out, record->generation);
    bytes_put_u8(&out, record->dropping ? RECORD_FLAG_DROPPING : 0);
    model_encode(&record->model, &out);
    put_string(&out, record->method);
    bytes_put_le16(&out, (uint16_t)record->parameter_count);
    for (size_t i = 0; i < record->parameter_count; i++) {
        put_string(&out, record->parameters[i].name);
        put_string(&out, record->parameters[i].value);
    }
    assert(!out.bad);
    struct value_header header = {
        .kind = FORMAT_KIND_CONTEXT,
        .payload_bytes = out.offset - FORMAT_HEADER_BYTES,
        .model_hash = model_hash(&record->model),
    };
    format_seal(&header, ret_value);
    return out.offset;
}

/* Copy a stored string into a zeroed array of `size` bytes. */
static bool get_string(struct bytes_reader *in, char *ret_text, size_t size)
{
    size_t bytes = 0;
    const char *text = bytes_get_text(in, &bytes);
    if (text == NULL || bytes >= size) {
        in->bad = true;
        return false;
    }
    memcpy(ret_text, text, bytes);
    ret_text[bytes] = 0;
    return true;
}

static int decode_payload(struct bytes_reader *in, struct record *record, struct error *err)
{
    get_string(in, record->name, sizeof record->name);
    record->parent_id = bytes_get_le64(in);
    record->created_unix_ms = bytes_get_le64(in);
    record->used_unix_ms = bytes_get_le64(in);
    record->retained_until_unix_ms = bytes_get_le64(in);
    record->generation = bytes_get_le64(in);
    record->dropping = (bytes_get_u8(in) & RECORD_FLAG_DROPPING) != 0;
    if (in->bad) return error_set(err, MEMD_ECORRUPT, "context record is cut short");
    int rc = model_decode(in, &record->model, err);
    if (rc < 0) return rc;
    get_string(in, record->method, sizeof record->method);
    size_t count = bytes_get_le16(in);
    if (in->bad || count > LIMIT_PARAMETERS)
        return error_set(err, MEMD_ECORRUPT, "context record has %zu parameters, %u are allowed",
                         count, LIMIT_PARAMETERS);
    for (size_t i = 0; i < count; i++) {
        get_string(in, record->parameters[i].name, sizeof record->parameters[i].name);
        get_string(in, record->parameters[i].value, sizeof record->parameters[i].value);
    }
    record->parameter_count = count;
    if (!bytes_done(in)) return error_set(err, MEMD_ECORRUPT, "context record is malformed");
    return 0;
}

int record_decode(const void *value, size_t bytes, struct record *ret_record, struct error *err)
{
    struct value_header header;
    int rc = format_decode(value, bytes, &header, err);
    if (rc == 0 && header.kind != FORMAT_KIND_CONTEXT)
        rc = error_set(err, MEMD_ECORRUPT, "value of kind %u where a context belongs", header.kind);
    if (rc == 0) rc = format_verify(value, bytes, err);
    if (rc < 0) return rc;
    struct bytes_reader in = bytes_reader((const unsigned char *)value + FORMAT_HEADER_BYTES,
                                          bytes - FORMAT_HEADER_BYTES);
    memset(ret_record, 0, sizeof *ret_record);
    rc = decode_payload(&in, ret_record, err);
    if (rc == 0 && header.model_hash != model_hash(&ret_record->model))
        rc = error_set(err, MEMD_ECORRUPT, "context record and its header name different models");
    return rc;
}

bool record_shape(const struct record *record, struct block_shape *ret_shape)
{
    const struct method *method = method_find(record->method);
    double options[OPTIONS_MAX];
    bool known = method != NULL && method_parse(method, record->parameters, record->parameter_count,
                                                options, NULL) == 0;
    block_shape_init(&record->model, known ? method_columns(method, options) : COLUMNS_NONE,
                     known ? method_state_width(method, options) : 0, ret_shape);
    return known;
}
