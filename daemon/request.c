/* SPDX-License-Identifier: Apache-2.0 */
/* request.c — running an operation is the same on a worker and inline on the loop. */
#include "daemon/request.h"

#include <assert.h>

#include "base/clock.h"
#include "base/object.h"
#include "daemon/dispatch.h"

int request_stop(void *arg)
{
    struct request *req = OBJECT_CAST(arg, REQUEST_MAGIC);
    int code = atomic_load_explicit(&req->stop_code, memory_order_relaxed);
    if (code != 0) return code;
    if (req->deadline_ns != 0 && clock_monotonic_ns() > req->deadline_ns) return MEMD_EDEADLINE;
    return 0;
}

int request_unpack(struct request *req, struct error *err)
{
    if (req->in != NULL) return 0;
    req->in = message_unpack_request(req->frame.method, req->message, req->frame.message_bytes,
                                     &req->arena, err);
    return req->in == NULL ? err->code : 0;
}

int request_run(struct request *req)
{
    assert(req->operation != NULL && req->state == REQUEST_RUNNING);
    int rc = request_stop(req);
    if (rc < 0) return error_set(&req->err, rc, "gave up before it began: %s", error_text(rc));
    rc = request_unpack(req, &req->err);
    if (rc < 0) return rc;
    return req->operation->run(req, &req->err);
}

int request_reply(struct request *req, const ProtobufCMessage *message, const void *payload,
                  size_t payload_bytes, struct error *err)
{
    if (payload_bytes > LIMIT_FRAME_PAYLOAD_BYTES)
        return error_set(err, MEMD_ELIMIT, "answer of %zu bytes exceeds a frame; ask for less",
                         payload_bytes);
    unsigned char *data = NULL;
    size_t bytes = 0;
    int rc = message_pack(message, &req->arena, &data, &bytes, err);
    if (rc < 0) return rc;
    if (bytes > LIMIT_FRAME_MESSAGE_BYTES)
        return error_set(err, MEMD_ELIMIT,
                         "answer message of %zu bytes exceeds a frame; ask for less", bytes);
    req->reply_message = data;
    req->reply_message_bytes = bytes;
    req->reply_payload = payload;
    req->reply_payload_bytes = payload_bytes;
    return 0;
}
