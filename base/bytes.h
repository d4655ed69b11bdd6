/* SPDX-License-Identifier: Apache-2.0 */
/* bytes.h — bounds-checked cursors over flat bytes with a sticky error: decode ten fields, test
 * once.
 *
 * Little-endian is the order of values and frames, big-endian that of LMDB keys (so that a range
 * scan is positional). After the first overrun every further call is a no-op that returns 0, and
 * `bad` stays set.
 *
 * Memory   nothing is owned; get_bytes returns pointers into the input.
 * Threads  one cursor, one thread.
 * Tests    tests/unit/test_bytes.c
 */
#ifndef MEMD_BASE_BYTES_H
#define MEMD_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes_reader {
    const unsigned char *data;
    size_t size_bytes;
    size_t offset;
    bool bad;
};

struct bytes_writer {
    unsigned char *data;
    size_t size_bytes;
    size_t offset;
    bool bad;
};

struct bytes_reader bytes_reader(const void *data, size_t size_bytes);
uint8_t bytes_get_u8(struct bytes_reader *in);
uint16_t bytes_get_le16(struct bytes_reader *in);
uint32_t bytes_get_le32(struct bytes_reader *in);
uint64_t bytes_get_le64(struct bytes_reader *in);
uint16_t bytes_get_be16(struct bytes_reader *in);
uint32_t bytes_get_be32(struct bytes_reader *in);
uint64_t bytes_get_be64(struct bytes_reader *in);
double bytes_get_f64(struct bytes_reader *in);
/* The next `size_bytes` bytes, or NULL (and `bad`) when there are fewer. */
const unsigned char *bytes_get(struct bytes_reader *in, size_t size_bytes);
/* A string stored as u16 length + characters; NULL when cut or when it holds a zero byte. */
const char *bytes_get_text(struct bytes_reader *in, size_t *ret_bytes);
/* True when nothing went wrong and everything was read. */
bool bytes_done(const struct bytes_reader *in);

struct bytes_writer bytes_writer(void *data, size_t size_bytes);
void bytes_put_u8(struct bytes_writer *out, uint8_t value);
void bytes_put_le16(struct bytes_writer *out, uint16_t value);
void bytes_put_le32(struct bytes_writer *out, uint32_t value);
void bytes_put_le64(struct bytes_writer *out, uint64_t value);
void bytes_put_be16(struct bytes_writer *out, uint16_t value);
void bytes_put_be32(struct bytes_writer *out, uint32_t value);
void bytes_put_be64(struct bytes_writer *out, uint64_t value);
void bytes_put_f64(struct bytes_writer *out, double value);
void bytes_put(struct bytes_writer *out, const void *data, size_t size_bytes);
void bytes_put_text(struct bytes_writer *out, const char *text, size_t size_bytes);

#endif
