/* SPDX-License-Identifier: Apache-2.0 */
/* ticket.h — one request on its way: what is sent, where the reply goes, what came of it.
 *
 *     ticket_new → (fill, ticket_pack, ticket_tensor) → exchange_submit → … DONE → ticket_free
 *
 * A ticket owns one arena with everything of the request and its result. The tensors that it sends
 * and the arrays that it fills belong to the caller. Failures of building a request are kept in
 * `err` like those of the request itself, so that every call ends in one way (ticket_call,
 * ticket_start).
 *
 * Tickets are recycled with the first block of their arena: a small attend into the caller's arrays
 * allocates nothing.
 *
 * Threads  fields marked "lock" under client->lock; all others belong to whoever holds the ticket
 *          until it is submitted, to the exchange (under the lock) until it is DONE, and to its
 *          holder again
 * Errors   MEMD_ENOMEM · MEMD_ELIMIT
 * Tests    tests/client
 */
#ifndef MEMD_LIBMEMD_TICKET_H
#define MEMD_LIBMEMD_TICKET_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/list.h"
#include "proto/frame.h"
#include "proto/message.h"

struct memd_client;
struct memd_error;
struct memd_ticket;

#define TICKET_MAGIC UINT32_C(0x544B4354)
#define RESULT_MAGIC UINT32_C(0x544C5352)

enum { TICKET_NAMED = 4 };
enum ticket_state { TICKET_BUILDING, TICKET_QUEUED, TICKET_SENT, TICKET_DONE };

/* Where the next bytes of a payload go; at == NULL: nowhere. */
struct segment {
    unsigned char *at;
    size_t bytes;
};

/* Turn a reply's message into the ticket's result and say where the tensors of its payload go.
 * Called under the lock, so it only converts. 0 or a code with ticket->err filled. */
typedef int ticket_place_fn(struct memd_ticket *ticket, ProtobufCMessage *reply);

struct memd_ticket {
    pthread_cond_t changed; /* it is DONE, or its holder is to lead */
    struct arena arena;
    uint32_t magic; /* from here on all zero when it is recycled */
    struct memd_client *client;
    struct list_link link;   /* lock: client->queue, ->flight or ->spare */
    enum ticket_state state; /* lock */
    bool waiting;            /* lock: its holder sleeps in exchange_wait */
    uint64_t deadline_ns;    /* UINT64_MAX = none */
    unsigned method;
    bool repeatable; /* doing it twice is the same as doing it once */
    unsigned sends;  /* lock: times it was sent whole */
    uint64_t request_id;

    unsigned char header[FRAME_HEADER_BYTES];
    struct iovec *parts; /* header, message, tensors and the padding between them */
    size_t part_count, part_limit;
    size_t part_idx, part_offset; /* lock: what is sent next */
    uint64_t payload_bytes;
    uint64_t named[TICKET_NAMED]; /* regions; the first ones, 0 = no more */
    bool has_fd; /* a descriptor goes beside the first bytes: */
    int send_fd; /* the caller's */

    ticket_place_fn *place;
    const void *plan; /* what place wants to know about the request */
    size_t plan_count;
    uint64_t reply_bytes; /* of the payload */
    struct segment *segments;
    size_t segment_count, segment_limit;
    uint64_t segment_end; /* payload bytes that have a segment */
    void *result;
    size_t result_count;
    int status; /* 0, or the code of err */
    struct error err;
};

/* A ticket with an empty arena; NULL without memory. `parts` = tensors it will send at most. */
struct memd_ticket *ticket_new(struct memd_client *client, unsigned method, size_t tensors);
void ticket_destroy(struct memd_ticket *ticket); /* really free it */

/* Pack the message. After the tensors: their offsets stand in it. */
int ticket_pack(struct memd_ticket *ticket, const ProtobufCMessage *message);

/* Send `data` (dense, of this shape) after what is in the payload already, or not at all where it
 * lies in a region of the client; *ret_wire describes it. */
struct ticket_array {
    const char *what; /* for the error text */
    const void *data;
    uint32_t dtype, dims;
    size_t shape[TENSOR_DIMS_MAX];
};
int ticket_tensor(struct memd_ticket *ticket, const struct ticket_array *array,
                  Memd__Tensor **ret_wire);

/* Describe the caller's array `array` for an answer to be written into, where it lies in a region
 * of the client: *ret_wire, or NULL. It may be of a device and in no such place: MEMD_EINVAL. */
int ticket_into(struct memd_ticket *ticket, const struct ticket_array *array,
                Memd__Tensor **ret_wire);

/* In place: the tensor `wire` of the reply, of shape `expect`, goes to `to`, or (NULL) to memory of
 * the ticket; *ret_data says where. Tensors come in the order in which they lie in the payload. */
int ticket_receive(struct memd_ticket *ticket, const Memd__Tensor *wire,
                   const struct message_shape *expect, void *to, void **ret_data);

/* The next `bytes` of the reply's payload are of no interest. */
int ticket_skip(struct memd_ticket *ticket, size_t bytes);

/* In place: memory of the ticket for the result, findable by memd_free. Zeroed; NULL without
 * memory. */
void *ticket_result(struct memd_ticket *ticket, size_t count, size_t bytes);
struct memd_ticket *ticket_of_result(const void *result);

/* Memory of the ticket, zeroed; NULL (and err filled) without. */
void *ticket_alloc(struct memd_ticket *ticket, size_t count, size_t bytes);

/* Submit unless `rc`, what building it returned, is an error, and wait. On failure the ticket is
 * freed. A NULL ticket is MEMD_ENOMEM. */
int ticket_call(struct memd_ticket *ticket, int rc, struct memd_error *err);
/* A call without tensors: a request, a function that reads the reply, a result. */
struct ticket_question {
    unsigned method;
    bool repeatable;
    const ProtobufCMessage *request;
    ticket_place_fn *place;
};
int ticket_ask(struct memd_client *client, const struct ticket_question *question,
               const void **ret_result, struct memd_error *err);

/* Submit unless rc is an error; then *ret_ticket is the ticket. */
int ticket_start(struct memd_ticket *ticket, int rc, struct memd_ticket **ret_ticket,
                 struct memd_error *err);

/* Copy the detail of a failure to the caller; returns code. */
int ticket_report(int code, const struct error *from, struct memd_error *err);

#endif
