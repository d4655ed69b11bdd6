/* SPDX-License-Identifier: Apache-2.0 */
/* capture.h — could these calls have been captured into a graph?
 *
 * CUDA's rules, as far as device.h can break them: the compute stream is captured from the first
 * call on; another stream is, from where it waits for an event that was recorded inside; a captured
 * stream waits for no event from outside, and nothing of a stream that is not captured may be
 * awaited; whatever was begun is joined before the end; no memory is allocated or freed, no stream
 * or device waited for, no pageable memory copied. The one `finish` that ends a step stands behind
 * the capture.
 */
#ifndef MEMD_TESTS_SIMT_CAPTURE_H
#define MEMD_TESTS_SIMT_CAPTURE_H

#include "tests/simt/fake_device.h"

/* NULL, or why not. */
static inline const char *capture_refuses(const struct fake_call *calls, size_t count)
{
    bool captured[DEVICE_STREAMS] = { [DEVICE_COMPUTE] = true }, inside[DEVICE_EVENTS] = { false };
    bool joined[DEVICE_STREAMS] = { [DEVICE_COMPUTE] = true };
    enum device_stream of[DEVICE_EVENTS] = { DEVICE_COMPUTE };
    if (count == 0 || calls[count - 1].kind != FAKE_FINISH ||
        calls[count - 1].stream != DEVICE_COMPUTE)
        return "it does not end in a wait for the compute stream";
    for (size_t i = 0; i + 1 < count; i++) {
        const struct fake_call *call = &calls[i];
        if (call->kind == FAKE_OPEN || call->kind == FAKE_ALLOC || call->kind == FAKE_FREE)
            return "memory is allocated or freed";
        if (call->kind == FAKE_FINISH) return "something is waited for inside";
        if (call->kind == FAKE_COPY && call->pageable) return "a copy of pageable memory";
        if (call->kind == FAKE_AWAIT) {
            if (!inside[call->event]) return "an event from outside is awaited";
            captured[call->stream] = true;
            if (call->stream == DEVICE_COMPUTE) joined[of[call->event]] = true;
            else joined[call->stream] = false;
            continue;
        }
        if (!captured[call->stream]) return "a stream is used that is not captured";
        if (call->kind == FAKE_RECORD) {
            inside[call->event] = true;
            of[call->event] = call->stream;
        } else if (call->stream != DEVICE_COMPUTE) {
            joined[call->stream] = false;
        }
    }
    for (int stream = 0; stream < DEVICE_STREAMS; stream++)
        if (captured[stream] && !joined[stream]) return "a stream is not joined";
    return NULL;
}

/* The same calls, but for where they read and write? */
static inline bool capture_equals(const struct fake_call *calls, const struct fake_call *others,
                                  size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (calls[i].kind != others[i].kind || calls[i].stream != others[i].stream ||
            calls[i].event != others[i].event || calls[i].bytes != others[i].bytes)
            return false;
    return true;
}

#endif
