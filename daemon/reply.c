/* SPDX-License-Identifier: Apache-2.0 */
/* reply.c — first an immediate write, which is all that most replies need; only what the socket
 * does not take is queued, as views of the request's arena, and the request lives until the last
 * byte has left.
 */
#include "daemon/reply.h"

#include <assert.h>

#include "base/object.h"
#include "daemon/connection.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"

/* An error text that cannot be packed leaves an empty message: the header's status says enough. */
static void pack_error(struct request *req)
{
    Memd__ErrorReply message = MEMD__ERROR_REPLY__INIT;
    message.code = req->status;
    message.text = req->err.text[0] != '\0' ? req->err.text : (char *)error_text(req->status);
    req->reply_message = NULL;
    req->reply_message_bytes = req->reply_payload_bytes = 0;
    request_reply(req, &message.base, NULL, 0, NULL);
}

static unsigned make_buffers(struct request *req, uv_buf_t ret_bufs[3])
{
    struct frame frame = {
        .kind = FRAME_REPLY,
        .method = req->frame.method,
        .request_id = req->frame.request_id,
        .status = req->status,
        .message_bytes = (uint32_t)req->reply_message_bytes,
        .payload_bytes = req->reply_payload_bytes,
    };
    frame_encode(&frame, req->reply_header);
    ret_bufs[0] = uv_buf_init((char *)req->reply_header, FRAME_HEADER_BYTES);
    ret_bufs[1] = uv_buf_init((char *)req->reply_message, (unsigned)req->reply_message_bytes);
    ret_bufs[2] = uv_buf_init((char *)req->reply_payload, (unsigned)req->reply_payload_bytes);
    return req->reply_payload_bytes > 0 ? 3 : req->reply_message_bytes > 0 ? 2 : 1;
}

/* Drop the first `bytes` from the buffers. */
static unsigned skip(uv_buf_t *bufs, unsigned count, size_t bytes)
{
    unsigned first = 0;
    while (first < count && bytes >= bufs[first].len) bytes -= bufs[first++].len;
    for (unsigned i = first; i < count; i++) bufs[i - first] = bufs[i];
    if (first < count) {
        bufs[0].base += bytes;
        bufs[0].len -= bytes;
    }
    return count - first;
}

static void on_written(uv_write_t *write, int status)
{
    struct request *req = OBJECT_CAST(write->data, REQUEST_MAGIC);
    struct connection *conn = req->connection;
    conn->unsent_bytes -= req->unsent_bytes;
    if (status == 0) conn->server->stats.sent_bytes_total += req->unsent_bytes;
    if (status < 0) connection_close(conn, uv_strerror(status));
    connection_release(req);
}

void reply_send(struct request *req)
{
    struct connection *conn = req->connection;
    assert(!conn->closing);
    req->state = REQUEST_ANSWERING;
    if (req->status < 0) pack_error(req);
    stats_record(&conn->server->stats, req);
    arena_release(&req->arena);
    descriptors_close(&req->descriptors);
    server_charge(req->server, req, req->arena.used_bytes);
    region_copies_done(req);

    uv_buf_t bufs[3];
    unsigned count = make_buffers(req, bufs);
    size_t total = 0;
    for (unsigned i = 0; i < count; i++) total += bufs[i].len;
    int sent = uv_try_write(&conn->uv.stream, bufs, count);
    if (sent == UV_EAGAIN) sent = 0;
    if (sent > 0) conn->server->stats.sent_bytes_total += (uint64_t)sent;
    if (sent >= 0 && (size_t)sent < total) {
        count = skip(bufs, count, (size_t)sent);
        req->unsent_bytes = total - (size_t)sent;
        conn->unsent_bytes += req->unsent_bytes;
        req->write.data = req;
        sent = uv_write(&req->write, &conn->uv.stream, bufs, count, on_written);
        if (sent == 0) return;
        conn->unsent_bytes -= req->unsent_bytes;
    }
    if (sent < 0) connection_close(conn, uv_strerror(sent));
    connection_release(req);
}
