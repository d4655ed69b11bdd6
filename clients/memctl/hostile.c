/* SPDX-License-Identifier: Apache-2.0 */
/* hostile.c — raw sockets, because libmemd always reads what it is sent. The never-reading client
 * asks for Stats, a small question with a large answer, as fast as the socket takes it; the slow
 * one sends the header of an Append, whose length makes a daemon that reads frame by frame wait
 * for it. A connection that the daemon closes (as it may) is opened again. */
#include "clients/memctl/hostile.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "proto/frame.h"
#include "proto/method.h"

enum { SECOND_NS = 1000000000, TICK_MS = 10 };

struct hostile {
    struct sockaddr_un address;
    pthread_t thread;
    atomic_bool stop;
    int deaf, slow;     /* sockets, or -1 */
    uint64_t requests;  /* of the deaf one */
    size_t deaf_offset; /* bytes of the current frame that were sent */
    size_t slow_offset;
    uint64_t slow_due_ns;
};

/* HelloRequest { version: 1 } in protobuf. */
static const unsigned char hello_message[] = { 0x08, 0x01 };

static int dial(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    const struct frame hello = { .kind = FRAME_REQUEST, .method = METHOD_HELLO, .request_id = 1,
                                 .message_bytes = sizeof hello_message };
    unsigned char bytes[FRAME_HEADER_BYTES + sizeof hello_message];
    frame_encode(&hello, bytes);
    memcpy(bytes + FRAME_HEADER_BYTES, hello_message, sizeof hello_message);
    bool good = connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 &&
                send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) == (ssize_t)sizeof bytes;
    if (good) return fd;
    int error = errno;
    close(fd);
    return -error;
}

static bool would_block(ssize_t sent)
{
    return sent < 0 && (errno == EAGAIN || errno == EINTR);
}

static void drop_socket(int *fd)
{
    close(*fd);
    *fd = -1;
}

/* Ask until the socket is full. */
static void ask(struct hostile *hostile)
{
    if (hostile->deaf < 0) hostile->deaf = dial(&hostile->address);
    while (hostile->deaf >= 0 && !atomic_load(&hostile->stop)) {
        const struct frame stats = { .kind = FRAME_REQUEST, .method = METHOD_STATS,
                                     .request_id = 2 + hostile->requests };
        unsigned char bytes[FRAME_HEADER_BYTES];
        frame_encode(&stats, bytes);
        ssize_t sent = send(hostile->deaf, bytes + hostile->deaf_offset,
                            sizeof bytes - hostile->deaf_offset, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (would_block(sent)) return;
        if (sent < 0) {
            drop_socket(&hostile->deaf);
            hostile->deaf_offset = 0;
            return;
        }
        hostile->deaf_offset = (hostile->deaf_offset + (size_t)sent) % sizeof bytes;
        if (hostile->deaf_offset == 0) hostile->requests++;
    }
}

static void drip(struct hostile *hostile)
{
    uint64_t now_ns = clock_monotonic_ns();
    if (now_ns < hostile->slow_due_ns) return;
    hostile->slow_due_ns = now_ns + SECOND_NS;
    if (hostile->slow < 0) {
        hostile->slow = dial(&hostile->address);
        hostile->slow_offset = 0;
    }
    if (hostile->slow < 0) return;
    const struct frame append = { .kind = FRAME_REQUEST, .method = METHOD_APPEND, .request_id = 2,
                                  .message_bytes = 1 << 20, .payload_bytes = 1 << 20 };
    unsigned char bytes[FRAME_HEADER_BYTES];
    frame_encode(&append, bytes);
    unsigned char byte = hostile->slow_offset < sizeof bytes ? bytes[hostile->slow_offset] : 0;
    ssize_t sent = send(hostile->slow, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == 1) hostile->slow_offset++;
    if (sent < 0 && !would_block(sent)) drop_socket(&hostile->slow);
}

static void *run(void *arg)
{
    struct hostile *hostile = arg;
    while (!atomic_load(&hostile->stop)) {
        ask(hostile);
        drip(hostile);
        struct pollfd wait = { .fd = hostile->deaf, .events = POLLOUT };
        poll(&wait, 1, TICK_MS);
    }
    return NULL;
}

int hostile_open(const char *path, struct hostile **ret_hostile)
{
    struct hostile *hostile = calloc(1, sizeof *hostile);
    if (hostile == NULL) return -ENOMEM;
    hostile->address.sun_family = AF_UNIX;
    hostile->slow = -1;
    hostile->deaf = -ENAMETOOLONG;
    size_t bytes = strlen(path) + 1;
    if (bytes <= sizeof hostile->address.sun_path) {
        memcpy(hostile->address.sun_path, path, bytes);
        hostile->deaf = dial(&hostile->address);
    }
    int error = hostile->deaf < 0 ? -hostile->deaf
                                  : pthread_create(&hostile->thread, NULL, run, hostile);
    if (error != 0) {
        if (hostile->deaf >= 0) close(hostile->deaf);
        free(hostile);
        return -error;
    }
    *ret_hostile = hostile;
    return 0;
}

void hostile_close(struct hostile *hostile, uint64_t *ret_requests)
{
    if (hostile == NULL) return;
    atomic_store(&hostile->stop, true);
    pthread_join(hostile->thread, NULL);
    if (hostile->deaf >= 0) close(hostile->deaf);
    if (hostile->slow >= 0) close(hostile->slow);
    *ret_requests = hostile->requests;
    free(hostile);
}
