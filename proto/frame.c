/* SPDX-License-Identifier: Apache-2.0 */
/* frame.c — field by field through the byte cursors, never by copying a C struct.
 *
 * The header has no room for what nobody checks: a field that must be 0 is refused when it is not,
 * so that a later version can give it a meaning without old peers misreading it. The unknown method
 * is let through: the frame around it is sound, so the answer MEMD_EUNSUPPORTED can be sent and the
 * connection lives on, whereas every error returned here means that the place of the next frame is
 * unknown.
 */
#include "proto/frame.h"

#include <assert.h>
#include <inttypes.h>

#include "base/bytes.h"
#include "base/error.h"
#include "proto/limits.h"

void frame_encode(const struct frame *frame, unsigned char ret_header[FRAME_HEADER_BYTES])
{
    assert(frame->kind == FRAME_REQUEST || frame->kind == FRAME_REPLY);
    assert(frame->status <= 0 && (frame->kind == FRAME_REPLY || frame->status == 0));
    assert(frame->kind == FRAME_REQUEST || frame->deadline_ms == 0);
    assert(frame->message_bytes <= LIMIT_FRAME_MESSAGE_BYTES);
    assert(frame->payload_bytes <= LIMIT_FRAME_PAYLOAD_BYTES);
    struct bytes_writer out = bytes_writer(ret_header, FRAME_HEADER_BYTES);
    bytes_put_le32(&out, FRAME_MAGIC);
    bytes_put_u8(&out, FRAME_VERSION);
    bytes_put_u8(&out, (uint8_t)frame->kind);
    bytes_put_le16(&out, frame->method);
    bytes_put_le64(&out, frame->request_id);
    bytes_put_le32(&out, (uint32_t)frame->status);
    bytes_put_le32(&out, frame->deadline_ms);
    bytes_put_le32(&out, frame->message_bytes);
    bytes_put_le32(&out, 0);
    bytes_put_le64(&out, frame->payload_bytes);
    assert(!out.bad && out.offset == FRAME_HEADER_BYTES);
}

static int check_lengths(const struct frame *frame, struct error *err)
{
    if (frame->message_bytes > LIMIT_FRAME_MESSAGE_BYTES) {
        return error_set(err, MEMD_ELIMIT, "message of %" PRIu32 " bytes, at most %" PRIu32,
                         frame->message_bytes, LIMIT_FRAME_MESSAGE_BYTES);
    }
    if (frame->payload_bytes > LIMIT_FRAME_PAYLOAD_BYTES) {
        return error_set(err, MEMD_ELIMIT, "payload of %" PRIu64 " bytes, at most %" PRIu64,
                         frame->payload_bytes, LIMIT_FRAME_PAYLOAD_BYTES);
    }
    return 0;
}

/* What only one of both directions may carry. */
static int check_direction(const struct frame *frame, struct error *err)
{
    if (frame->kind == FRAME_REQUEST && frame->status != 0) {
        return error_set(err, MEMD_EPROTO, "request with status %" PRId32, frame->status);
    }
    if (frame->kind == FRAME_REPLY && frame->status > 0) {
        return error_set(err, MEMD_EPROTO, "reply with status %" PRId32 ", must be 0 or negative",
                         frame->status);
    }
    if (frame->kind == FRAME_REPLY && frame->deadline_ms != 0) {
        return error_set(err, MEMD_EPROTO, "reply with a deadline of %" PRIu32 " ms",
                         frame->deadline_ms);
    }
    return 0;
}

int frame_decode(const unsigned char header[FRAME_HEADER_BYTES], struct frame *ret_frame,
                 struct error *err)
{
    struct bytes_reader in = bytes_reader(header, FRAME_HEADER_BYTES);
    uint32_t magic = bytes_get_le32(&in);
    uint8_t version = bytes_get_u8(&in);
    uint8_t kind = bytes_get_u8(&in);
    struct frame frame = { .method = bytes_get_le16(&in) };
    frame.request_id = bytes_get_le64(&in);
    frame.status = (int32_t)bytes_get_le32(&in);
    frame.deadline_ms = bytes_get_le32(&in);
    frame.message_bytes = bytes_get_le32(&in);
    uint32_t reserved = bytes_get_le32(&in);
    frame.payload_bytes = bytes_get_le64(&in);
    assert(bytes_done(&in));

    if (magic != FRAME_MAGIC) {
        return error_set(err, MEMD_EPROTO, "magic 0x%08" PRIx32 ", must be 0x%08" PRIx32, magic,
                         FRAME_MAGIC);
    }
    if (version != FRAME_VERSION) {
        return error_set(err, MEMD_EVERSION, "frame version %u, this side speaks %d",
                         (unsigned)version, FRAME_VERSION);
    }
    if (kind != FRAME_REQUEST && kind != FRAME_REPLY) {
        return error_set(err, MEMD_EPROTO, "frame kind %u, must be 1 or 2", (unsigned)kind);
    }
    frame.kind = kind == FRAME_REQUEST ? FRAME_REQUEST : FRAME_REPLY;
    if (reserved != 0) {
        return error_set(err, MEMD_EPROTO, "reserved field is 0x%08" PRIx32 ", must be 0",
                         reserved);
    }
    int rc = check_direction(&frame, err);
    if (rc == 0) rc = check_lengths(&frame, err);
    if (rc == 0) *ret_frame = frame;
    return rc;
}
