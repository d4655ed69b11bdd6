/* SPDX-License-Identifier: Apache-2.0 */
/* bench_daemon.c — what a request costs besides its arithmetic, and what bad neighbours add to it.
 *
 *     bench_daemon MEMD [REQUESTS]      MEMD: the daemon's program; prints JSON
 *
 * overhead    one client, attend on an empty context, one request at a time
 * busy        64 clients with one attend each under way
 * neighbours  the same, with 1,000 idle clients, one that asks for rows and never reads them, and
 *             one that sends a byte of its frame per second
 *
 * Raw frames and one thread, so that the client costs as little as it can; times include it.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/error.h"
#include "proto/frame.h"
#include "proto/message.h"
#include "proto/method.h"
#include "tests/whole.h"

enum { HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, BUSY = 64, IDLE = 1000 };
enum { REPLY_BYTES = 1 << 20, DEAF_TOKENS = 64 };
#define NS_PER_S UINT64_C(1000000000)

static char directory[] = "/tmp/memd-bench-XXXXXX";

static void must(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "bench_daemon: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

struct bytes {
    unsigned char *data;
    size_t count;
};

/* A whole request frame, on the heap. */
static struct bytes make_frame(unsigned method, const ProtobufCMessage *message,
                               const struct bytes *payload)
{
    struct arena arena;
    arena_init(&arena, 1 << 20);
    unsigned char *packed = NULL;
    size_t packed_bytes = 0;
    must(message_pack(message, &arena, &packed, &packed_bytes, NULL) == 0, "pack");
    struct bytes out = { .count = FRAME_HEADER_BYTES + packed_bytes + payload->count };
    out.data = malloc(out.count);
    must(out.data != NULL, "malloc");
    struct frame frame = { .kind = FRAME_REQUEST, .method = (uint16_t)method, .request_id = 1,
                           .message_bytes = (uint32_t)packed_bytes,
                           .payload_bytes = payload->count };
    frame_encode(&frame, out.data);
    memcpy(out.data + FRAME_HEADER_BYTES, packed, packed_bytes);
    if (payload->count > 0)
        memcpy(out.data + FRAME_HEADER_BYTES + packed_bytes, payload->data, payload->count);
    arena_fini(&arena);
    return out;
}

static struct bytes zeros(size_t count)
{
    struct bytes out = { .data = calloc(1, count), .count = count };
    must(out.data != NULL, "calloc");
    return out;
}

static Memd__Tensor tensor(uint64_t *shape, uint64_t offset)
{
    Memd__Tensor out = MEMD__TENSOR__INIT;
    out.dtype = MEMD__DTYPE__DTYPE_FP16;
    out.shape = shape;
    out.n_shape = 3;
    out.offset = offset;
    return out;
}

static struct bytes open_frame(void)
{
    Memd__Model model = MEMD__MODEL__INIT;
    model.layers = 2; /* layer 0 stays empty, layer 1 feeds the deaf client */
    model.query_heads = HEADS;
    model.kv_heads = KV_HEADS;
    model.head_dim = HEAD_DIM;
    model.dtype = MEMD__DTYPE__DTYPE_FP16;
    Memd__OpenRequest request = MEMD__OPEN_REQUEST__INIT;
    request.name = (char *)"bench";
    request.model = &model;
    request.create = true;
    return make_frame(METHOD_OPEN, &request.base, &(struct bytes){ 0 });
}

static struct bytes attend_frame(uint64_t context_id)
{
    uint64_t shape[3] = { 1, HEADS, HEAD_DIM }, position = 1;
    Memd__Tensor q = tensor(shape, 0);
    Memd__AttendItem item = MEMD__ATTEND_ITEM__INIT, *items = &item;
    item.context_id = context_id;
    item.q = &q;
    item.positions = &position;
    item.n_positions = 1;
    Memd__AttendRequest request = MEMD__ATTEND_REQUEST__INIT;
    request.items = &items;
    request.n_items = 1;
    struct bytes payload = zeros(HEADS * HEAD_DIM * 2);
    struct bytes out = make_frame(METHOD_ATTEND, &request.base, &payload);
    free(payload.data);
    return out;
}

static struct bytes append_frame(uint64_t context_id)
{
    uint64_t shape[3] = { DEAF_TOKENS, KV_HEADS, HEAD_DIM };
    size_t half = DEAF_TOKENS * KV_HEADS * HEAD_DIM * 2;
    Memd__Tensor k = tensor(shape, 0), v = tensor(shape, half);
    Memd__AppendLayer layer = MEMD__APPEND_LAYER__INIT, *layers = &layer;
    layer.layer = 1;
    layer.k = &k;
    layer.v = &v;
    Memd__AppendRequest request = MEMD__APPEND_REQUEST__INIT;
    request.context_id = context_id;
    request.layers = &layers;
    request.n_layers = 1;
    struct bytes payload = zeros(2 * half);
    struct bytes out = make_frame(METHOD_APPEND, &request.base, &payload);
    free(payload.data);
    return out;
}

static struct bytes fetch_frame(uint64_t context_id)
{
    uint64_t ids[DEAF_TOKENS];
    for (size_t i = 0; i < DEAF_TOKENS; i++) ids[i] = i;
    Memd__FetchRequest request = MEMD__FETCH_REQUEST__INIT;
    request.context_id = context_id;
    request.layer = 1;
    request.ids = ids;
    request.n_ids = DEAF_TOKENS;
    return make_frame(METHOD_FETCH, &request.base, &(struct bytes){ 0 });
}

static int dial(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", directory);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0, "socket");
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

static pid_t start(const char *program)
{
    char data[64], address[64];
    must(mkdtemp(directory) != NULL, "mkdtemp");
    snprintf(data, sizeof data, "%s/data", directory);
    snprintf(address, sizeof address, "%s/socket", directory);
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        execl(program, program, "--data", data, "--socket", address, "--log-level", "warn", NULL);
        _exit(127);
    }
    int fd = -1;
    while ((fd = dial()) < 0) must(waitpid(pid, NULL, WNOHANG) == 0, "start of the daemon");
    close(fd);
    return pid;
}

static void send_all(int fd, const struct bytes *frame)
{
    size_t sent = 0;
    while (sent < frame->count) {
        ssize_t n = write(fd, frame->data + sent, frame->count - sent);
        must(n > 0, "write");
        sent += (size_t)n;
    }
}

/* One reply, header first; message and payload into `body`. */
static struct frame receive(int fd, unsigned char *body)
{
    unsigned char header[FRAME_HEADER_BYTES];
    struct frame frame = { 0 };
    must(read_whole(fd, header, sizeof header), "read");
    must(frame_decode(header, &frame, NULL) == 0 && frame.status == 0, "reply");
    size_t bytes = frame.message_bytes + (size_t)frame.payload_bytes;
    must(bytes <= REPLY_BYTES, "size of a reply");
    must(read_whole(fd, body, bytes), "read");
    return frame;
}

static uint64_t open_context(int fd, unsigned char *body)
{
    struct bytes request = open_frame();
    send_all(fd, &request);
    struct frame reply = receive(fd, body);
    struct arena arena;
    arena_init(&arena, 1 << 20);
    const Memd__OpenReply *message = (const Memd__OpenReply *)message_unpack_reply(
        METHOD_OPEN, body, reply.message_bytes, &arena, NULL);
    must(message != NULL, "open");
    uint64_t id = message->context_id;
    arena_fini(&arena);
    free(request.data);
    return id;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void report(const char *name, uint64_t *ns, size_t count, bool last)
{
    qsort(ns, count, sizeof *ns, compare);
    size_t p99 = count * 99 / 100, p999 = count * 999 / 1000, p50 = count / 2;
    printf("  {\"name\": \"%s\", \"requests\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"p999_us\": %.1f}%s\n",
           name, count, (double)ns[p50] / 1e3, (double)ns[p99] / 1e3, (double)ns[p999] / 1e3,
           last ? "" : ",");
    fflush(stdout);
}

static void run_overhead(const struct bytes *frame, uint64_t *ns, size_t count, unsigned char *body)
{
    int fd = dial();
    must(fd >= 0, "connect");
    for (size_t i = 0; i < count; i++) {
        uint64_t begin = clock_monotonic_ns();
        send_all(fd, frame);
        receive(fd, body);
        ns[i] = clock_monotonic_ns() - begin;
    }
    close(fd);
}

/* One byte of an append's frame each second; a new connection when the daemon has had enough. */
struct trickle {
    int fd;
    size_t sent;
    uint64_t next_ns;
};

static void trickle_step(struct trickle *trickle, const struct bytes *frame)
{
    uint64_t now_ns = clock_monotonic_ns();
    if (now_ns < trickle->next_ns) return;
    trickle->next_ns = now_ns + NS_PER_S;
    if (trickle->fd >= 0 && send(trickle->fd, frame->data + trickle->sent++, 1, MSG_NOSIGNAL) == 1)
        return;
    if (trickle->fd >= 0) close(trickle->fd);
    *trickle = (struct trickle){ .fd = dial(), .next_ns = trickle->next_ns };
}

static void run_busy(const struct bytes *frame, uint64_t *ns, size_t count, unsigned char *body,
                     const struct bytes *slow)
{
    struct pollfd polls[BUSY];
    uint64_t begun[BUSY];
    struct trickle trickle = { .fd = -1 };
    for (size_t i = 0; i < BUSY; i++) {
        polls[i] = (struct pollfd){ .fd = dial(), .events = POLLIN };
        must(polls[i].fd >= 0, "connect");
        begun[i] = clock_monotonic_ns();
        send_all(polls[i].fd, frame);
    }
    size_t done = 0;
    while (done < count) {
        if (slow != NULL) trickle_step(&trickle, slow);
        must(poll(polls, BUSY, 1000) > 0, "poll");
        for (size_t i = 0; i < BUSY && done < count; i++) {
            if (polls[i].revents == 0) continue;
            receive(polls[i].fd, body);
            ns[done++] = clock_monotonic_ns() - begun[i];
            begun[i] = clock_monotonic_ns();
            send_all(polls[i].fd, frame);
        }
    }
    for (size_t i = 0; i < BUSY; i++) close(polls[i].fd);
    if (trickle.fd >= 0) close(trickle.fd);
}

/* Ask until the daemon stops reading. */
static int open_deaf(const struct bytes *fetch)
{
    int fd = dial();
    must(fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "connect");
    size_t at = 0;
    for (struct pollfd one = { .fd = fd, .events = POLLOUT }; poll(&one, 1, 200) == 1;) {
        ssize_t n = write(fd, fetch->data + at, fetch->count - at);
        if (n > 0) at = (at + (size_t)n) % fetch->count;
    }
    return fd;
}

static void run_neighbours(uint64_t context_id, const struct bytes *frame, uint64_t *ns,
                           size_t count, unsigned char *body)
{
    static int idle[IDLE];
    struct bytes append = append_frame(context_id), fetch = fetch_frame(context_id);
    for (size_t i = 0; i < IDLE; i++) {
        idle[i] = dial();
        must(idle[i] >= 0, "connect");
    }
    send_all(idle[0], &append);
    receive(idle[0], body);
    int deaf = open_deaf(&fetch);
    run_busy(frame, ns, count, body, &append);
    close(deaf);
    for (size_t i = 0; i < IDLE; i++) close(idle[i]);
    free(append.data);
    free(fetch.data);
}

int main(int argc, char **argv)
{
    must(argc >= 2, "usage: bench_daemon MEMD [REQUESTS]");
    size_t count = argc > 2 ? strtoul(argv[2], NULL, 10) : 50000;
    must(count >= 1000, "REQUESTS, at least 1000");
    struct rlimit limit = { .rlim_cur = 4096, .rlim_max = 4096 };
    setrlimit(RLIMIT_NOFILE, &limit);
    pid_t pid = start(argv[1]);
    unsigned char *body = malloc(REPLY_BYTES);
    uint64_t *ns = calloc(count, sizeof *ns);
    must(body != NULL && ns != NULL, "malloc");
    int fd = dial();
    must(fd >= 0, "connect");
    uint64_t context_id = open_context(fd, body);
    struct bytes frame = attend_frame(context_id);

    printf("[\n");
    run_overhead(&frame, ns, count, body);
    report("overhead", ns, count, false);
    run_busy(&frame, ns, count, body, NULL);
    report("busy", ns, count, false);
    run_neighbours(context_id, &frame, ns, count, body);
    report("neighbours", ns, count, true);
    printf("]\n");

    free(frame.data);
    free(body);
    free(ns);
    close(fd);
    kill(pid, SIGTERM);
    int status = 0;
    must(waitpid(pid, &status, 0) == pid && status == 0, "end of the daemon");
    return EXIT_SUCCESS;
}
