/* SPDX-License-Identifier: Apache-2.0 */
/* receive.c — three stages per frame, each a list of segments to be filled.
 *
 * Header, message and payload differ only in where their bytes go and in what happens when they are
 * there. The payload's segments are laid out when the message has told what it holds, hence a
 * tensor lands in the caller's array without a copy, and bytes that nobody wants are counted, not
 * kept.
 *
 * A reply whose request was given up is read and thrown away: the stream must go on behind it.
 */
#include "clients/libmemd/receive.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "clients/libmemd/client.h"
#include "clients/libmemd/exchange.h"

enum {
    DIRECT_BYTES = 16 << 10, /* shorter rests come with whatever follows them */
    WORDS_ARENA_BYTES = 16 << 10,
};

static void expect_header(struct receiver *receiver)
{
    receiver->stage = RECEIVE_HEADER;
    receiver->one = (struct segment){ receiver->header, FRAME_HEADER_BYTES };
    receiver->segments = &receiver->one;
    receiver->segment_count = 1;
    receiver->segment_idx = receiver->offset = 0;
}

void receive_reset(struct receiver *receiver)
{
    receiver->ticket = NULL;
    receiver->last_words = false;
    receiver->begin = receiver->end = 0;
    expect_header(receiver);
}

static uint64_t stage_left(const struct receiver *receiver)
{
    uint64_t left = 0;
    for (size_t i = receiver->segment_idx; i < receiver->segment_count; i++)
        left += receiver->segments[i].bytes;
    return left - receiver->offset;
}

static void skip_stage(struct receiver *receiver, uint64_t bytes)
{
    receiver->one = (struct segment){ NULL, (size_t)bytes };
    receiver->segments = &receiver->one;
    receiver->segment_count = 1;
    receiver->segment_idx = receiver->offset = 0;
}

void receive_forget(struct receiver *receiver, const struct memd_ticket *ticket)
{
    if (receiver->ticket != ticket) return;
    receiver->ticket = NULL;
    if (receiver->stage != RECEIVE_HEADER) skip_stage(receiver, stage_left(receiver));
}

static struct memd_ticket *find(struct memd_client *client, uint64_t request_id)
{
    LIST_FOR (link, &client->flight) {
        struct memd_ticket *ticket = LIST_ENTRY(link, struct memd_ticket, link);
        if (ticket->request_id == request_id) return ticket;
    }
    return NULL;
}

/* ---- the end of each stage ---- */

static int end_header(struct memd_client *client, struct error *err)
{
    struct receiver *receiver = &client->receiver;
    struct frame *frame = &receiver->frame;
    int rc = frame_decode(receiver->header, frame, err);
    if (rc < 0) return rc;
    receiver->last_words = frame->request_id == 0 && frame->status < 0;
    if (frame->kind != FRAME_REPLY || (frame->request_id == 0 && !receiver->last_words) ||
        frame->request_id >= client->next_id) {
        return error_set(err, MEMD_EPROTO,
                         "a frame of kind %d for request %" PRIu64 ", which was "
                         "never sent",
                         (int)frame->kind, frame->request_id);
    }
    struct memd_ticket *ticket = find(client, frame->request_id);
    if (ticket != NULL && ticket->method != frame->method) {
        return error_set(err, MEMD_EPROTO, "method %u in the reply to a request of method %u",
                         (unsigned)frame->method, ticket->method);
    }
    receiver->ticket = ticket;
    receiver->stage = RECEIVE_MESSAGE;
    skip_stage(receiver, frame->message_bytes);
    if (receiver->last_words && frame->message_bytes <= sizeof receiver->words)
        receiver->one.at = receiver->words;
    if (ticket == NULL) return 0;
    receiver->message = arena_alloc(&ticket->arena, frame->message_bytes);
    receiver->one.at = receiver->message;
    if (receiver->message == NULL)
        exchange_finish_locked(ticket,
                               error_set(&ticket->err, MEMD_ENOMEM, "no memory for a reply"));
    return 0;
}

/* The message of an error: its text, when there is one, goes to the ticket. */
static void take_error(struct memd_ticket *ticket, const struct receiver *receiver)
{
    const struct frame *frame = &receiver->frame;
    const Memd__ErrorReply *reply = message_unpack_error(receiver->message, frame->message_bytes,
                                                         &ticket->arena);
    bool has_text = reply != NULL && reply->text[0] != '\0';
    ticket->status = error_set(&ticket->err, frame->status, "%s",
                               has_text ? reply->text : error_text(frame->status));
}

static int take_message(struct memd_ticket *ticket, const struct receiver *receiver)
{
    const struct frame *frame = &receiver->frame;
    ProtobufCMessage *reply = message_unpack_reply(
        ticket->method, receiver->message, frame->message_bytes, &ticket->arena, &ticket->err);
    if (reply == NULL) return ticket->err.code;
    ticket->reply_bytes = frame->payload_bytes;
    ticket->segment_count = 0;
    ticket->segment_end = 0;
    return ticket->place(ticket, reply);
}

/* Lay out the payload, or throw it away when there is no use for it. */
static void end_message(struct receiver *receiver)
{
    struct memd_ticket *ticket = receiver->ticket;
    uint64_t payload_bytes = receiver->frame.payload_bytes;
    receiver->stage = RECEIVE_PAYLOAD;
    skip_stage(receiver, payload_bytes);
    if (ticket == NULL) return;
    if (receiver->frame.status < 0)
        take_error(ticket, receiver);
    else
        ticket->status = take_message(ticket, receiver);
    if (ticket->status < 0) return;
    assert(ticket->segment_end <= payload_bytes);
    if (ticket->segment_count == 0) return;
    ticket->status = ticket_skip(ticket, (size_t)(payload_bytes - ticket->segment_end));
    if (ticket->status < 0) return;
    receiver->segments = ticket->segments;
    receiver->segment_count = ticket->segment_count;
}

/* The daemon could not make sense of our bytes and closes; why, in its own words. */
static int end_last_words(struct receiver *receiver, struct error *err)
{
    int code = receiver->frame.status;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, WORDS_ARENA_BYTES);
    const Memd__ErrorReply *reply = NULL;
    if (receiver->frame.message_bytes <= sizeof receiver->words)
        reply = message_unpack_error(receiver->words, receiver->frame.message_bytes, &arena);
    return error_set(err, code, "the daemon closed the connection: %s",
                     reply != NULL ? reply->text : error_text(code));
}

static int end_stage(struct memd_client *client, struct error *err)
{
    struct receiver *receiver = &client->receiver;
    switch (receiver->stage) {
    case RECEIVE_HEADER: return end_header(client, err);
    case RECEIVE_MESSAGE:
        if (receiver->last_words) return end_last_words(receiver, err);
        end_message(receiver);
        return 0;
    case RECEIVE_PAYLOAD: break;
    }
    struct memd_ticket *ticket = receiver->ticket;
    receiver->ticket = NULL;
    expect_header(receiver);
    if (ticket != NULL) exchange_finish_locked(ticket, ticket->status);
    return 0;
}

/* ---- bytes ---- */

static void advance(struct receiver *receiver, size_t bytes)
{
    receiver->offset += bytes;
    while (receiver->segment_idx < receiver->segment_count &&
           receiver->offset >= receiver->segments[receiver->segment_idx].bytes) {
        receiver->offset -= receiver->segments[receiver->segment_idx].bytes;
        receiver->segment_idx++;
    }
}

/* Fill segments from the buffer; true when the stage is complete. */
static bool fill(struct receiver *receiver)
{
    advance(receiver, 0); /* empty segments */
    while (receiver->segment_idx < receiver->segment_count) {
        size_t have = receiver->end - receiver->begin;
        if (have == 0) return false;
        const struct segment *segment = &receiver->segments[receiver->segment_idx];
        size_t want = segment->bytes - receiver->offset;
        size_t take = want < have ? want : have;
        if (segment->at != NULL)
            memcpy(segment->at + receiver->offset, receiver->buffer + receiver->begin, take);
        receiver->begin += take;
        advance(receiver, take);
    }
    return true;
}

/* One read: the rest of a large segment first, what follows it into the buffer. */
static ssize_t read_once(int fd, struct receiver *receiver, size_t *ret_direct)
{
    assert(receiver->begin == receiver->end);
    const struct segment *segment = &receiver->segments[receiver->segment_idx];
    size_t want = segment->bytes - receiver->offset;
    bool direct = segment->at != NULL && want >= DIRECT_BYTES;
    struct iovec parts[2] = { { direct ? segment->at + receiver->offset : NULL, direct ? want : 0 },
                              { receiver->buffer, RECEIVE_BUFFER_BYTES } };
    struct msghdr message = { .msg_iov = direct ? parts : parts + 1, .msg_iovlen = direct ? 2 : 1 };
    *ret_direct = parts[0].iov_len;
    return recvmsg(fd, &message, MSG_DONTWAIT);
}

int receive_some(struct memd_client *client, struct error *err)
{
    struct receiver *receiver = &client->receiver;
    size_t direct = 0;
    ssize_t count = read_once(client->fd, receiver, &direct);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (count == 0) return error_set(err, MEMD_ECLOSED, "the daemon closed the connection");
    if (count < 0) return error_set(err, MEMD_ECLOSED, "connection: %s", strerror(errno));
    size_t bytes = (size_t)count, into_segment = bytes < direct ? bytes : direct;
    client->counters.bytes_received += bytes;
    advance(receiver, into_segment);
    receiver->begin = 0;
    receiver->end = bytes - into_segment;
    while (fill(receiver)) {
        int rc = end_stage(client, err);
        if (rc < 0) return rc;
    }
    return 0;
}
