/* SPDX-License-Identifier: Apache-2.0 */
/* frame.h — the fixed header in front of every message: 40 bytes, little-endian.
 *
 *     offset size field
 *          0    4 magic           "MEMD" (0x444D454D)
 *          4    1 version         1
 *          5    1 kind            1 request, 2 reply
 *          6    2 method          proto/method.h; a reply repeats its request's
 *          8    8 request_id      chosen by the client, repeated in the reply
 *         16    4 status          signed; 0 in requests; 0 or an error code in replies
 *         20    4 deadline_ms     requests: give up after this long, 0 = never; 0 in replies
 *         24    4 message_bytes   protobuf message that follows the header
 *         28    4 reserved        0
 *         32    8 payload_bytes   tensors that follow the message
 *
 * The message follows the header at once, the payload follows the message at once (no padding): a
 * receiver reads both into buffers of its own and so chooses the alignment; tensor offsets are
 * multiples of 64.
 *
 * Sans I/O: bytes in, structs out. frame_decode checks every field; a header that it accepts is
 * within limits.h, so that the lengths may be allocated.
 *
 * Errors   MEMD_EPROTO wrong magic, kind or reserved field · MEMD_EVERSION · MEMD_ELIMIT lengths
 * Tests    tests/unit/test_frame.c, tests/fuzz/fuzz_frame.c, the example in docs/PROTOCOL.md
 */
#ifndef MEMD_PROTO_FRAME_H
#define MEMD_PROTO_FRAME_H

#include <stdint.h>

struct error;

enum { FRAME_HEADER_BYTES = 40, FRAME_VERSION = 1 };
#define FRAME_MAGIC UINT32_C(0x444D454D)

enum frame_kind { FRAME_REQUEST = 1, FRAME_REPLY = 2 };

struct frame {
    enum frame_kind kind;
    uint16_t method;
    uint64_t request_id;
    int32_t status;
    uint32_t deadline_ms;
    uint32_t message_bytes;
    uint64_t payload_bytes;
};

void frame_encode(const struct frame *frame, unsigned char ret_header[FRAME_HEADER_BYTES]);
int frame_decode(const unsigned char header[FRAME_HEADER_BYTES], struct frame *ret_frame,
                 struct error *err);

#endif
