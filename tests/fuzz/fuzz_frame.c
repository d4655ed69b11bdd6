/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_frame.c — any 40 bytes: either an error with a code and a text, or a frame whose encoding is
 * the same 40 bytes. The second half makes every bit of the header count.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "proto/frame.h"
#include "proto/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < FRAME_HEADER_BYTES) return 0;
    struct frame frame;
    struct error err = { 0 };
    int rc = frame_decode(data, &frame, &err);
    if (rc < 0) {
        assert(rc == MEMD_EPROTO || rc == MEMD_EVERSION || rc == MEMD_ELIMIT);
        assert(err.code == rc && err.text[0] != '\0');
        return 0;
    }
    assert(frame.message_bytes <= LIMIT_FRAME_MESSAGE_BYTES);
    assert(frame.payload_bytes <= LIMIT_FRAME_PAYLOAD_BYTES);
    unsigned char again[FRAME_HEADER_BYTES];
    frame_encode(&frame, again);
    assert(memcmp(again, data, sizeof again) == 0);
    return 0;
}
