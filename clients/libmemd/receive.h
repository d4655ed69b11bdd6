/* SPDX-License-Identifier: Apache-2.0 */
/* receive.h — bytes from the socket to the tickets they belong to.
 *
 * Small replies come in through one buffer; of large tensors all but the beginning is read straight
 * to where the caller wants it.
 *
 * Threads  under client->lock
 * Errors   MEMD_ECLOSED · MEMD_EIO · MEMD_EPROTO and other errors of frame_decode: the connection
 *          is lost
 */
#ifndef MEMD_LIBMEMD_RECEIVE_H
#define MEMD_LIBMEMD_RECEIVE_H

#include <stddef.h>

#include "clients/libmemd/ticket.h"

enum { RECEIVE_BUFFER_BYTES = 64 << 10, RECEIVE_WORDS_BYTES = 1024 };

enum receive_stage { RECEIVE_HEADER, RECEIVE_MESSAGE, RECEIVE_PAYLOAD };

struct receiver {
    enum receive_stage stage;
    struct frame frame;
    struct memd_ticket *ticket; /* of the frame; NULL = nobody wants it */
    bool last_words;            /* it is what a daemon says before it closes the connection */
    struct segment one;         /* header, message, or what is thrown away */
    const struct segment *segments;
    size_t segment_count;       /* of this stage */
    size_t segment_idx, offset; /* what comes next */
    unsigned char header[FRAME_HEADER_BYTES];
    unsigned char *message;                   /* in the ticket's arena */
    unsigned char words[RECEIVE_WORDS_BYTES]; /* message of last words */
    unsigned char *buffer;                    /* (RECEIVE_BUFFER_BYTES) */
    size_t begin, end;                        /* unread part of it */
};

/* Begin with a new connection. */
void receive_reset(struct receiver *receiver);

/* Read once and pass on what came; finished tickets are DONE. 0 also when there was nothing. */
int receive_some(struct memd_client *client, struct error *err);

/* The ticket goes away: throw the rest of its reply away. */
void receive_forget(struct receiver *receiver, const struct memd_ticket *ticket);

#endif
