/* SPDX-License-Identifier: Apache-2.0 */
/* dial.c — plain, linear, bounded by one deadline.
 *
 * Hello is asked on every new connection, also where a Unix socket would not need it: its answer
 * carries the limits of the daemon, and it shows that somebody answers, so a socket whose daemon
 * hangs is not taken for a connection.
 */
#include "clients/libmemd/dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "clients/libmemd/rights.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/method.h"

enum {
    HELLO_ARENA_BYTES = 1 << 20,
    NS_PER_MS = 1000000,
    FLIGHT_DEFAULT = 64,
    PEER_GONE_MS = 30000
};

/* ---- addresses ---- */

static int bad_address(const char *address, struct error *err)
{
    return error_set(err, MEMD_EINVAL, "address '%.200s' is neither unix:/path nor tcp:host:port",
                     address);
}

static int parse_tcp(const char *address, struct dial_target *target, struct error *err)
{
    const char *host = address + strlen("tcp:");
    const char *colon = strrchr(host, ':');
    if (colon == NULL || colon == host || colon[1] == '\0') return bad_address(address, err);
    if (strspn(colon + 1, "0123456789") != strlen(colon + 1)) return bad_address(address, err);
    if (strtoull(colon + 1, NULL, 10) > UINT16_MAX)
        return bad_address(address, err); /* it would wrap */
    size_t bytes = (size_t)(colon - host);
    if (host[0] == '[' && colon[-1] == ']') {
        host++;
        bytes -= 2;
    }
    if (bytes == 0) return bad_address(address, err);
    target->host = strndup(host, bytes);
    target->port = strdup(colon + 1);
    if (target->host == NULL || target->port == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for an address");
    return 0;
}

int dial_parse(const char *address, struct dial_target *ret_target, struct error *err)
{
    if (strncmp(address, "tcp:", strlen("tcp:")) == 0) return parse_tcp(address, ret_target, err);
    if (strncmp(address, "unix:", strlen("unix:")) != 0) return bad_address(address, err);
    const char *path = address + strlen("unix:");
    if (path[0] == '\0') return bad_address(address, err);
    if (strlen(path) >= sizeof((struct sockaddr_un){ 0 }.sun_path)) {
        return error_set(err, MEMD_EINVAL, "path of %zu bytes, a Unix socket has at most %zu",
                         strlen(path), sizeof((struct sockaddr_un){ 0 }.sun_path) - 1);
    }
    ret_target->is_unix = true;
    ret_target->path = strdup(path);
    return ret_target->path != NULL ? 0 : error_set(err, MEMD_ENOMEM, "no memory for a path");
}

void dial_fini(struct dial_target *target)
{
    free(target->path);
    free(target->host);
    free(target->port);
    free(target->token);
    free(target->client_name);
    *target = (struct dial_target){ 0 };
}

/* ---- the socket ---- */

/* Wait for `events`; 0, MEMD_EDEADLINE or MEMD_EIO. */
static int wait_for(int fd, short events, uint64_t deadline_ns, struct error *err)
{
    for (;;) {
        uint64_t now_ns = clock_monotonic_ns();
        if (now_ns >= deadline_ns) {
            return error_set(err, MEMD_EDEADLINE, "no connection to the daemon within the timeout");
        }
        uint64_t left_ms = (deadline_ns - now_ns) / NS_PER_MS + 1;
        struct pollfd polled = { .fd = fd, .events = events };
        int count = poll(&polled, 1, left_ms > 60000 ? 60000 : (int)left_ms);
        if (count > 0) return 0;
        if (count < 0 && errno != EINTR)
            return error_set(err, MEMD_EIO, "poll: %s", strerror(errno));
    }
}

struct endpoint {
    const struct sockaddr *address;
    socklen_t bytes;
    const char *name; /* for the error text */
};

/* Small requests leave at once, and a peer that is gone without a word is noticed. These are
 * wishes: a kernel that refuses one still has a connection to offer. */
static void tune_tcp(int fd)
{
    int one = 1, timeout_ms = PEER_GONE_MS;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
}

static int connect_to(const struct endpoint *to, uint64_t deadline_ns, int *ret_fd,
                      struct error *err)
{
    CLEANUP(close_fd)
    int fd = socket(to->address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return error_set(err, MEMD_EIO, "socket: %s", strerror(errno));
    int failure = connect(fd, to->address, to->bytes) < 0 ? errno : 0;
    if (failure == EINPROGRESS) {
        int rc = wait_for(fd, POLLOUT, deadline_ns, err);
        if (rc < 0) return rc;
        socklen_t bytes = sizeof failure;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &bytes) < 0) failure = errno;
    }
    if (failure != 0) {
        return error_set(err, failure == EACCES || failure == EPERM ? MEMD_EPERM : MEMD_ECLOSED,
                         "cannot connect to %s: %s", to->name, strerror(failure));
    }
    if (to->address->sa_family != AF_UNIX) tune_tcp(fd);
    *ret_fd = fd;
    fd = -1;
    return 0;
}

static int connect_unix(const char *path, uint64_t deadline_ns, int *ret_fd, struct error *err)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    memcpy(address.sun_path, path, strlen(path) + 1);
    struct endpoint to = { (const struct sockaddr *)&address, sizeof address, path };
    return connect_to(&to, deadline_ns, ret_fd, err);
}

static void free_addresses(struct addrinfo **list)
{
    if (*list != NULL) freeaddrinfo(*list);
}

static int connect_tcp(const struct dial_target *target, uint64_t deadline_ns, int *ret_fd,
                       struct error *err)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
    CLEANUP(free_addresses) struct addrinfo *list = NULL;
    int failure = getaddrinfo(target->host, target->port, &hints, &list);
    if (failure != 0) {
        return error_set(err, MEMD_ECLOSED, "no address of host '%.100s': %s", target->host,
                         gai_strerror(failure));
    }
    int rc = MEMD_ECLOSED;
    for (const struct addrinfo *info = list; info != NULL; info = info->ai_next) {
        struct endpoint to = { info->ai_addr, info->ai_addrlen, target->host };
        rc = connect_to(&to, deadline_ns, ret_fd, err);
        if (rc == 0 || rc == MEMD_EDEADLINE) break;
    }
    return rc;
}

/* ---- hello ---- */

static int send_all(int fd, const unsigned char *data, size_t bytes, uint64_t deadline_ns,
                    struct error *err)
{
    while (bytes > 0) {
        ssize_t count = send(fd, data, bytes, MSG_NOSIGNAL);
        if (count < 0 && errno == EAGAIN) {
            int rc = wait_for(fd, POLLOUT, deadline_ns, err);
            if (rc < 0) return rc;
            continue;
        }
        if (count < 0 && errno == EINTR) continue;
        if (count < 0)
            return error_set(err, MEMD_ECLOSED, "the daemon hung up: %s", strerror(errno));
        data += count;
        bytes -= (size_t)count;
    }
    return 0;
}

static int receive_all(int fd, unsigned char *data, size_t bytes, uint64_t deadline_ns,
                       struct error *err)
{
    while (bytes > 0) {
        ssize_t count = recv(fd, data, bytes, 0);
        if (count < 0 && errno == EAGAIN) {
            int rc = wait_for(fd, POLLIN, deadline_ns, err);
            if (rc < 0) return rc;
            continue;
        }
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            return error_set(err, MEMD_ECLOSED, "the daemon hung up: %s",
                             count == 0 ? "end of stream" : strerror(errno));
        }
        data += count;
        bytes -= (size_t)count;
    }
    return 0;
}

static const char shared_memory[] = "shared-memory", device_memory[] = "device-memory";

static int send_hello(int fd, const struct dial_target *target, uint64_t deadline_ns,
                      struct arena *arena, struct error *err)
{
    Memd__HelloRequest hello = MEMD__HELLO_REQUEST__INIT;
    hello.version = FRAME_VERSION;
    hello.client = target->client_name;
    hello.token = target->token;
    char *features[] = { (char *)shared_memory, (char *)device_memory };
    if (target->is_unix) hello.features = features;
    if (target->is_unix) hello.n_features = sizeof features / sizeof features[0];
    unsigned char *message = NULL;
    size_t bytes = 0;
    int rc = message_pack(&hello.base, arena, &message, &bytes, err);
    if (rc < 0) return rc;
    struct frame frame = { .kind = FRAME_REQUEST,
                           .method = METHOD_HELLO,
                           .request_id = DIAL_REQUEST_ID,
                           .message_bytes = (uint32_t)bytes };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    rc = send_all(fd, header, sizeof header, deadline_ns, err);
    return rc < 0 ? rc : send_all(fd, message, bytes, deadline_ns, err);
}

/* The limits a daemon states are its own; those of the protocol stay in force. */
static void take_limits(const Memd__HelloReply *reply, struct dial_hello *ret_hello)
{
    uint64_t message = reply->frame_message_max, payload = reply->frame_payload_max;
    if (message == 0 || message > LIMIT_FRAME_MESSAGE_BYTES) message = LIMIT_FRAME_MESSAGE_BYTES;
    if (payload == 0 || payload > LIMIT_FRAME_PAYLOAD_BYTES) payload = LIMIT_FRAME_PAYLOAD_BYTES;
    uint64_t flight = reply->requests_in_flight_max;
    *ret_hello = (struct dial_hello){
        .message_bytes_max = message,
        .payload_bytes_max = payload,
        .requests_in_flight_max = flight == 0 ? FLIGHT_DEFAULT : (size_t)flight,
    };
    ret_hello->region_bytes_max = reply->region_bytes_max;
    for (size_t i = 0; i < reply->n_features; i++) {
        if (strcmp(reply->features[i], shared_memory) == 0) ret_hello->shared_memory = true;
        if (strcmp(reply->features[i], device_memory) == 0) ret_hello->device_memory = true;
    }
}

static int receive_hello(int fd, uint64_t deadline_ns, struct arena *arena,
                         struct dial_hello *ret_hello, struct error *err)
{
    unsigned char header[FRAME_HEADER_BYTES];
    struct frame frame;
    int rc = receive_all(fd, header, sizeof header, deadline_ns, err);
    if (rc == 0) rc = frame_decode(header, &frame, err);
    if (rc < 0) return rc;
    bool last_words = frame.request_id == 0 && frame.status < 0;
    if (frame.kind != FRAME_REPLY || frame.payload_bytes != 0 ||
        (frame.request_id != DIAL_REQUEST_ID && !last_words))
        return error_set(err, MEMD_EPROTO, "the first reply is not that to Hello");
    unsigned char *message = arena_alloc(arena, frame.message_bytes);
    if (message == NULL)
        return error_set(err, MEMD_EPROTO, "Hello of %u bytes", (unsigned)frame.message_bytes);
    rc = receive_all(fd, message, frame.message_bytes, deadline_ns, err);
    if (rc < 0) return rc;
    if (frame.status < 0) {
        const Memd__ErrorReply *reply = message_unpack_error(message, frame.message_bytes, arena);
        return error_set(err, frame.status, "%s",
                         reply != NULL ? reply->text : error_text(frame.status));
    }
    const Memd__HelloReply *reply = (const Memd__HelloReply *)message_unpack_reply(
        METHOD_HELLO, message, frame.message_bytes, arena, err);
    if (reply == NULL) return MEMD_EPROTO;
    if (reply->version != FRAME_VERSION) {
        return error_set(err, MEMD_EVERSION,
                         "the daemon chose protocol version %u, this client "
                         "speaks %d",
                         (unsigned)reply->version, FRAME_VERSION);
    }
    take_limits(reply, ret_hello);
    return 0;
}

/* ---- shared memory ---- */

void dial_shares_fini(struct dial_shares *shares)
{
    for (size_t i = 0; i < shares->count; i++) close_fd(&shares->items[i].fd);
    free(shares->items);
    *shares = (struct dial_shares){ .count = 0 };
}

/* One request, whose first byte takes the descriptor along, and its answer. */
static int send_share(int fd, const struct dial_share *share, uint64_t deadline_ns,
                      struct arena *arena, struct error *err)
{
    Memd__MapMemoryRequest request = MEMD__MAP_MEMORY_REQUEST__INIT;
    request.region = share->number;
    request.kind = (Memd__MemoryKind)share->kind;
    request.bytes = share->bytes;
    if (share->fd < 0)
        request.handle = (ProtobufCBinaryData){ sizeof share->handle, (uint8_t *)share->handle };
    unsigned char *message = NULL, header[FRAME_HEADER_BYTES];
    size_t bytes = 0;
    int rc = message_pack(&request.base, arena, &message, &bytes, err);
    if (rc < 0) return rc;
    struct frame frame = { .kind = FRAME_REQUEST,
                           .method = METHOD_MAP_MEMORY,
                           .request_id = DIAL_REQUEST_ID,
                           .message_bytes = (uint32_t)bytes };
    frame_encode(&frame, header);
    struct iovec first = { header, 1 };
    ssize_t sent = rights_send(fd, &first, 1, share->fd);
    if (sent != 1) return error_set(err, MEMD_ECLOSED, "the daemon hung up: %s", strerror(errno));
    rc = send_all(fd, header + 1, sizeof header - 1, deadline_ns, err);
    return rc < 0 ? rc : send_all(fd, message, bytes, deadline_ns, err);
}

static int take_answer(struct dial_share *share, const struct frame *frame,
                       const unsigned char *message, struct arena *arena, struct error *err)
{
    if (frame->status < 0) {
        const Memd__ErrorReply *why = message_unpack_error(message, frame->message_bytes, arena);
        error_set(&share->refused, frame->status, "%s",
                  why != NULL ? why->text : error_text(frame->status));
        return 0;
    }
    const Memd__MapMemoryReply *reply = (const Memd__MapMemoryReply *)message_unpack_reply(
        METHOD_MAP_MEMORY, message, frame->message_bytes, arena, err);
    if (reply == NULL) return MEMD_EPROTO;
    share->registered = reply->registered;
    return 0;
}

static int share_one(int fd, struct dial_share *share, uint64_t deadline_ns, struct arena *arena,
                     struct error *err)
{
    unsigned char header[FRAME_HEADER_BYTES];
    struct frame frame;
    int rc = send_share(fd, share, deadline_ns, arena, err);
    if (rc == 0) rc = receive_all(fd, header, sizeof header, deadline_ns, err);
    if (rc == 0) rc = frame_decode(header, &frame, err);
    if (rc < 0) return rc;
    if (frame.kind != FRAME_REPLY || frame.request_id != DIAL_REQUEST_ID ||
        frame.payload_bytes != 0)
        return error_set(err, MEMD_EPROTO, "that is no reply to MapMemory");
    unsigned char *message = arena_alloc(arena, frame.message_bytes);
    if (message == NULL)
        return error_set(err, MEMD_EPROTO, "reply of %u bytes", (unsigned)frame.message_bytes);
    rc = receive_all(fd, message, frame.message_bytes, deadline_ns, err);
    return rc < 0 ? rc : take_answer(share, &frame, message, arena, err);
}

int dial(const struct dial_target *target, struct dial_shares *shares, uint64_t deadline_ns,
         int *ret_fd, struct dial_hello *ret_hello, struct error *err)
{
    CLEANUP(close_fd) int fd = -1;
    int rc = target->is_unix ? connect_unix(target->path, deadline_ns, &fd, err)
                             : connect_tcp(target, deadline_ns, &fd, err);
    if (rc < 0) return rc;
    CLEANUP(arena_fini) struct arena arena;
    arena_init(&arena, HELLO_ARENA_BYTES);
    rc = send_hello(fd, target, deadline_ns, &arena, err);
    if (rc == 0) rc = receive_hello(fd, deadline_ns, &arena, ret_hello, err);
    for (size_t i = 0; rc == 0 && shares != NULL && i < shares->count; i++)
        rc = share_one(fd, &shares->items[i], deadline_ns, &arena, err);
    if (rc < 0) return rc;
    *ret_fd = fd;
    fd = -1;
    return 0;
}
