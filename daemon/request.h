/* SPDX-License-Identifier: Apache-2.0 */
/* request.h — one frame from its first header byte until the last byte of its reply.
 *
 * A request belongs to the loop, except while RUNNING on a worker: then only `stop_code` may be
 * touched by the loop. Everything decoded or computed for it lives in its arena; the pins of
 * contexts hang there as hooks and are released as soon as the answer is packed, not when it has
 * been sent.
 *
 *     READING → (WAITING →) RUNNING → (PARKED →) ANSWERING → back to the free list
 *
 * Memory   recycled by the server (server_request_new); the arena keeps its first block
 * Threads  see above
 */
#ifndef MEMD_DAEMON_REQUEST_H
#define MEMD_DAEMON_REQUEST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/list.h"
#include "base/pool.h"
#include "daemon/descriptor.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/method.h"

struct connection;
struct operation;
struct region;
struct server;

#define REQUEST_MAGIC UINT32_C(0x51455152)

enum request_state {
    REQUEST_READING,   /* its frame is arriving */
    REQUEST_WAITING,   /* for its turn: in conn->ordered or conn->held */
    REQUEST_RUNNING,   /* in the pool's queue, on a worker, or inline on the loop */
    REQUEST_PARKED,    /* waits for the writer thread: the answer, or (again) its next run */
    REQUEST_ANSWERING, /* reply packed, perhaps not written yet */
};

/* What an operation that waits for durability has to remember. */
struct request_wait {
    struct context *context; /* pinned in the arena */
    uint64_t sequence;
    uint64_t tokens;
    int level;               /* enum durability */
    void *decoded;           /* of a run that found no room, for the next */
};

struct request {
    uint32_t magic;
    enum request_state state;          /* loop */
    struct server *server;             /* immutable */
    struct connection *connection;     /* loop */
    struct list_link connection_link;  /* loop: connection->requests */
    struct list_link
        queue_link; /* loop: waiting, parked or free list; lock of worker.h: finished */
    struct pool_job job;

    struct frame frame;
    const struct operation *operation; /* NULL until dispatched */
    enum role role;                    /* of the connection when dispatched */
    bool active;                       /* loop: counted in server->requests_active */
    uint64_t flow;                     /* whose share of the pool it takes; 0 = not known yet */
    bool pooled;                       /* loop: counted in connection->pooled_in */
    bool on_loop;                      /* run was called there: it must not wait for a lock */
    bool again;                        /* loop: parked because there was no room */
    uint64_t again_since_ns;           /* loop: first time that there was none, 0 = never */
    uint64_t begun_ns;                 /* header complete */
    uint64_t complete_ns;              /* frame complete: latency counts from here */
    uint64_t deadline_ns;              /* 0 = none */
    atomic_int stop_code;              /* 0, or why to give up */

    struct arena arena;
    unsigned char *message;            /* (frame.message_bytes) */
    unsigned char *payload;            /* (frame.payload_bytes), aligned to LIMIT_PAYLOAD_ALIGN */
    uint64_t filled_bytes;             /* of message and payload together */
    uint64_t charged_bytes;            /* of server->memory_bytes */
    struct descriptors descriptors;    /* that came beside the frame */
    uint64_t copied_bytes;             /* of tensors in regions, as counted there */
    struct region *region;             /* of MapMemory and UnmapMemory; its ref is in the arena */
    ProtobufCMessage *in;              /* NULL until unpacked */

    int status;                        /* what run returned */
    int item_failure;                  /* of one item of a request that succeeded; for stats */
    struct error err;
    struct request_wait wait;

    unsigned char reply_header[FRAME_HEADER_BYTES];
    unsigned char *reply_message;
    size_t reply_message_bytes;
    const unsigned char *reply_payload;
    size_t reply_payload_bytes;
    size_t unsent_bytes;
    uv_write_t write;
};

/* 0, or the code to give up with: for `stop` callbacks, `arg` is the request. Any thread. */
int request_stop(void *arg);

/* Unpack (unless it was) and run the operation; what it returned. The request's owner. */
int request_run(struct request *req);

/* Run the operation's first half: `in` is filled afterwards, or an error returned. */
int request_unpack(struct request *req, struct error *err);

/* Pack `message` and remember `payload` (arena memory, or NULL) as the answer. Any thread, the
 * owner. */
int request_reply(struct request *req, const ProtobufCMessage *message, const void *payload,
                  size_t payload_bytes, struct error *err);

#endif
