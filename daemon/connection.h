/* SPDX-License-Identifier: Apache-2.0 */
/* connection.h — one client: reading frames, bounded, and giving everything back when it goes.
 *
 * Small reads go through one staging buffer of the server; large tensors are read straight into the
 * buffer they are used from. A connection stops being read while it has too many requests
 * unanswered, too many bytes of replies unread, or while the daemon has no memory for its next
 * large frame: the kernel's buffers then push back on the client, and nobody else notices.
 *
 * Threads  loop
 */
#ifndef MEMD_DAEMON_CONNECTION_H
#define MEMD_DAEMON_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/list.h"
#include "daemon/descriptor.h"
#include "proto/frame.h"
#include "proto/method.h"

struct request;
struct server;

#define CONNECTION_MAGIC UINT32_C(0x4E4E4F43)

/* What a client said in Hello that it is going to use, as bits. */
enum { CONNECTION_SHARED_MEMORY = 1, CONNECTION_DEVICE_MEMORY = 2 };
enum { CONNECTION_FLOWS = 16 };

struct connection {
    uint32_t magic;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } uv;
    struct server *server;
    struct list_link link;         /* server->connections */
    struct list_link waiting_link; /* server->memory_waiters */
    struct list_link resume_link;  /* server->resumable */

    enum role role;
    bool greeted; /* may ask: always on a Unix socket, after a valid Hello on TCP */
    bool is_tcp;
    unsigned features;             /* of the latest Hello */
    uint64_t number;               /* for the log */

    unsigned char header[FRAME_HEADER_BYTES];
    size_t header_bytes;
    struct request *incoming;      /* header complete, body arriving */
    unsigned char *leftover;       /* read but not consumed when reading stopped */
    size_t leftover_bytes, leftover_used;
    uint64_t frame_begun_ns;       /* 0 = between frames */
    /* A descriptor belongs to the frame in which the read that brought it ends: the kernel ends a
     * read where bytes end that were sent with one. */
    struct descriptors came;     /* with what is being consumed */
    struct descriptors of_frame; /* of the frame that is arriving */
    struct list_link regions;    /* locked by server->regions.lock */

    struct list_link requests;     /* all, in any state */
    size_t requests_count;
    struct list_link ordered;      /* REQUEST_WAITING: changes, after ordered_running */
    struct request *ordered_running;
    /* REQUEST_WAITING: others, for a share of the pool, by flow (dispatch.h) */
    struct list_link held[CONNECTION_FLOWS];
    size_t pooled_in[CONNECTION_FLOWS]; /* of its requests in the pool */
    size_t held_next;                   /* the flow whose turn it is */
    size_t unsent_bytes;

    uint64_t active_ns;            /* something was read or written */
    size_t write_seen_bytes;       /* write queue at the last look, and when it last moved */
    uint64_t write_moved_ns;

    bool reading;                  /* uv_read_start is in force */
    bool consuming;                /* inside consume: no need to schedule a resume */
    bool last;                     /* a protocol error: answer what is there, then close */
    bool closing, closed;
};

/* Take over an accepted or given handle that is already initialised in conn->uv. */
int connection_new(struct server *server, bool is_tcp, struct connection **ret_conn);
void connection_start(struct connection *conn, enum role role, bool greeted);

/* Cancel everything it asked for and close the socket. It is freed with its last request. */
void connection_close(struct connection *conn, const char *reason);

/* The reply has left (or nobody wants it): free the request, read on if that was what reading
 * waited for. */
void connection_release(struct request *req);

/* Read on, from the loop's next turn: never from within another connection's callback. */
void connection_resume(struct connection *conn);

/* The loop's next turn has come: take the frame that was held back, then read. */
void connection_continue(struct connection *conn);

/* Close it when it is too slow or idle for too long. */
void connection_check_time(struct connection *conn, uint64_t now_ns);

#endif
