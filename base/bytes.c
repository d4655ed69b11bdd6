/* SPDX-License-Identifier: Apache-2.0 */
/* bytes.c — integers are assembled byte by byte, so that host order and alignment never matter. */
#include "base/bytes.h"

#include <assert.h>
#include <string.h>

struct bytes_reader bytes_reader(const void *data, size_t size_bytes)
{
    assert(data != NULL || size_bytes == 0);
    return (struct bytes_reader){ .data = data, .size_bytes = size_bytes };
}

const unsigned char *bytes_get(struct bytes_reader *in, size_t size_bytes)
{
    static const unsigned char empty[1];
    if (in->bad || size_bytes > in->size_bytes - in->offset) {
        in->bad = true;
        return NULL;
    }
    const unsigned char *at = in->data == NULL ? empty : in->data + in->offset;
    in->offset += size_bytes;
    return at;
}

static uint64_t get_le(struct bytes_reader *in, size_t size_bytes)
{
    const unsigned char *at = bytes_get(in, size_bytes);
    uint64_t value = 0;
    for (size_t i = 0; at != NULL && i < size_bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static uint64_t get_be(struct bytes_reader *in, size_t size_bytes)
{
    const unsigned char *at = bytes_get(in, size_bytes);
    uint64_t value = 0;
    for (size_t i = 0; at != NULL && i < size_bytes; i++) value = value << 8 | at[i];
    return value;
}

uint8_t bytes_get_u8(struct bytes_reader *in) { return (uint8_t)get_le(in, 1); }
uint16_t bytes_get_le16(struct bytes_reader *in) { return (uint16_t)get_le(in, 2); }
uint32_t bytes_get_le32(struct bytes_reader *in) { return (uint32_t)get_le(in, 4); }
uint64_t bytes_get_le64(struct bytes_reader *in) { return get_le(in, 8); }
uint16_t bytes_get_be16(struct bytes_reader *in) { return (uint16_t)get_be(in, 2); }
uint32_t bytes_get_be32(struct bytes_reader *in) { return (uint32_t)get_be(in, 4); }
uint64_t bytes_get_be64(struct bytes_reader *in) { return get_be(in, 8); }

double bytes_get_f64(struct bytes_reader *in)
{
    uint64_t bits = bytes_get_le64(in);
    double value = 0;
    memcpy(&value, &bits, sizeof value);
    return value;
}

const char *bytes_get_text(struct bytes_reader *in, size_t *ret_bytes)
{
    size_t size_bytes = bytes_get_le16(in);
    const unsigned char *text = bytes_get(in, size_bytes);
    if (text == NULL) return NULL;
    if (size_bytes != 0 && memchr(text, 0, size_bytes) != NULL) {
        in->bad = true;
        return NULL;
    }
    *ret_bytes = size_bytes;
    return (const char *)text;
}

bool bytes_done(const struct bytes_reader *in)
{
    return !in->bad && in->offset == in->size_bytes;
}

struct bytes_writer bytes_writer(void *data, size_t size_bytes)
{
    assert(data != NULL || size_bytes == 0);
    return (struct bytes_writer){ .data = data, .size_bytes = size_bytes };
}

void bytes_put(struct bytes_writer *out, const void *data, size_t size_bytes)
{
    if (out->bad || size_bytes > out->size_bytes - out->offset) {
        out->bad = true;
        return;
    }
    if (size_bytes != 0) memcpy(out->data + out->offset, data, size_bytes);
    out->offset += size_bytes;
}

static void put_le(struct bytes_writer *out, uint64_t value, size_t size_bytes)
{
    unsigned char raw[8];
    for (size_t i = 0; i < size_bytes; i++) raw[i] = (unsigned char)(value >> (8 * i));
    bytes_put(out, raw, size_bytes);
}

static void put_be(struct bytes_writer *out, uint64_t value, size_t size_bytes)
{
    unsigned char raw[8];
    for (size_t i = 0; i < size_bytes; i++)
        raw[i] = (unsigned char)(value >> (8 * (size_bytes - 1 - i)));
    bytes_put(out, raw, size_bytes);
}

void bytes_put_u8(struct bytes_writer *out, uint8_t value) { put_le(out, value, 1); }
void bytes_put_le16(struct bytes_writer *out, uint16_t value) { put_le(out, value, 2); }
void bytes_put_le32(struct bytes_writer *out, uint32_t value) { put_le(out, value, 4); }
void bytes_put_le64(struct bytes_writer *out, uint64_t value) { put_le(out, value, 8); }
void bytes_put_be16(struct bytes_writer *out, uint16_t value) { put_be(out, value, 2); }
void bytes_put_be32(struct bytes_writer *out, uint32_t value) { put_be(out, value, 4); }
void bytes_put_be64(struct bytes_writer *out, uint64_t value) { put_be(out, value, 8); }

void bytes_put_f64(struct bytes_writer *out, double value)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    bytes_put_le64(out, bits);
}

void bytes_put_text(struct bytes_writer *out, const char *text, size_t size_bytes)
{
    if (size_bytes > UINT16_MAX) {
        out->bad = true;
        return;
    }
    bytes_put_le16(out, (uint16_t)size_bytes);
    bytes_put(out, text, size_bytes);
}
