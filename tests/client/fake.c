/* SPDX-License-Identifier: Apache-2.0 */
/* fake.c — blocking reads and writes, since a script says what happens next. */
#include "tests/client/fake.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tests/whole.h"

static _Atomic uint64_t waited_ns;

/* By the linker in front of base/clock.c's. */
uint64_t __real_clock_monotonic_ns(void);
uint64_t __wrap_clock_monotonic_ns(void);

uint64_t __wrap_clock_monotonic_ns(void)
{
    return __real_clock_monotonic_ns() + atomic_load(&waited_ns);
}

void fake_wait(uint64_t ms)
{
    atomic_fetch_add(&waited_ns, ms * 1000000);
}

static void *serve(void *arg)
{
    struct fake *fake = arg;
    while (!atomic_load(&fake->stop)) {
        int fd = accept(fake->listen_fd, NULL, NULL);
        if (fd < 0) break; /* shut down by fake_close */
        fake->script(fake, fd, atomic_fetch_add(&fake->connections, 1));
        close(fd);
        sem_post(&fake->closed);
    }
    return NULL;
}

static void listen_unix(struct fake *fake)
{
    char folder[] = "/tmp/memd-fake-XXXXXX";
    if (mkdtemp(folder) == NULL) perror(folder);
    snprintf(fake->path, sizeof fake->path, "%s/socket", folder);
    snprintf(fake->address, sizeof fake->address, "unix:%s", fake->path);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    memcpy(address.sun_path, fake->path, strlen(fake->path) + 1);
    fake->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int rc = bind(fake->listen_fd, (struct sockaddr *)&address, sizeof address);
    assert(rc == 0);
}

static void listen_tcp(struct fake *fake)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t bytes = sizeof address;
    fake->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int rc = bind(fake->listen_fd, (struct sockaddr *)&address, sizeof address);
    assert(rc == 0);
    rc = getsockname(fake->listen_fd, (struct sockaddr *)&address, &bytes);
    assert(rc == 0);
    snprintf(fake->address, sizeof fake->address, "tcp:127.0.0.1:%u", ntohs(address.sin_port));
}

void fake_open(struct fake *fake, fake_script *script, void *arg)
{
    fake->script = script;
    fake->arg = arg;
    sem_init(&fake->closed, 0, 0);
    if (fake->tcp)
        listen_tcp(fake);
    else
        listen_unix(fake);
    int rc = listen(fake->listen_fd, 8);
    assert(rc == 0);
    rc = pthread_create(&fake->thread, NULL, serve, fake);
    assert(rc == 0);
}

void fake_close(struct fake *fake)
{
    atomic_store(&fake->stop, true);
    shutdown(fake->listen_fd, SHUT_RDWR);
    pthread_join(fake->thread, NULL);
    close(fake->listen_fd);
    sem_destroy(&fake->closed);
    if (fake->tcp) return;
    unlink(fake->path);
    *strrchr(fake->path, '/') = '\0';
    rmdir(fake->path);
}

bool fake_receive(int fd, struct fake_request *request)
{
    if (request->arena.limit_bytes == 0)
        arena_init(&request->arena, FAKE_ARENA_BYTES);
    else
        arena_reset(&request->arena);
    unsigned char header[FRAME_HEADER_BYTES];
    if (!read_whole(fd, header, sizeof header)) return false;
    struct error err = { 0 };
    int rc = frame_decode(header, &request->frame, &err);
    if (rc < 0) fprintf(stderr, "fake: %s\n", err.text);
    assert(rc == 0 && request->frame.kind == FRAME_REQUEST);
    size_t message_bytes = request->frame.message_bytes;
    size_t payload_bytes = (size_t)request->frame.payload_bytes;
    void *message = arena_alloc(&request->arena, message_bytes);
    void *payload = arena_alloc_aligned(&request->arena, payload_bytes, LIMIT_PAYLOAD_ALIGN);
    assert(message != NULL && payload != NULL);
    if (!read_whole(fd, message, message_bytes) || !read_whole(fd, payload, payload_bytes))
        return false;
    request->message = message_unpack_request(request->frame.method, message, message_bytes,
                                              &request->arena, &err);
    if (request->message == NULL) fprintf(stderr, "fake: %s\n", err.text);
    assert(request->message != NULL);
    request->payload = payload;
    return true;
}

void fake_expect(int fd, struct fake_request *request, unsigned method)
{
    bool received = fake_receive(fd, request);
    if (!received || request->frame.method != method)
        fprintf(stderr, "fake: expected %s, got %s\n", method_name(method),
                received ? method_name(request->frame.method) : "the end");
    assert(received && request->frame.method == method);
}

void fake_send(int fd, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    while (bytes > 0) {
        ssize_t count = send(fd, at, bytes, MSG_NOSIGNAL);
        if (count <= 0)
            return; /* the client has gone: it is a test of that, or it fails by itself */
        at += count;
        bytes -= (size_t)count;
    }
}

static void send_frame(int fd, const struct fake_request *request, int status,
                       const ProtobufCMessage *reply, const void *payload, size_t payload_bytes)
{
    struct arena arena;
    arena_init(&arena, FAKE_ARENA_BYTES);
    unsigned char *message = NULL;
    size_t bytes = 0;
    int rc = message_pack(reply, &arena, &message, &bytes, NULL);
    assert(rc == 0);
    struct frame frame = { .kind = FRAME_REPLY,
                           .method = request->frame.method,
                           .request_id = request->frame.request_id,
                           .status = status,
                           .message_bytes = (uint32_t)bytes,
                           .payload_bytes = payload_bytes };
    unsigned char header[FRAME_HEADER_BYTES];
    frame_encode(&frame, header);
    fake_send(fd, header, sizeof header);
    fake_send(fd, message, bytes);
    fake_send(fd, payload, payload_bytes);
    arena_fini(&arena);
}

void fake_reply(int fd, const struct fake_request *request, const ProtobufCMessage *reply,
                const void *payload, size_t payload_bytes)
{
    send_frame(fd, request, 0, reply, payload, payload_bytes);
}

void fake_error(int fd, const struct fake_request *request, int code, const char *text)
{
    Memd__ErrorReply reply = MEMD__ERROR_REPLY__INIT;
    reply.code = code;
    reply.text = (char *)text;
    send_frame(fd, request, code, &reply.base, NULL, 0);
}

bool fake_hello(struct fake *fake, int fd)
{
    struct fake_request request = { 0 };
    if (!fake_receive(fd, &request)) {
        arena_fini(&request.arena);
        return false;
    }
    assert(request.frame.method == METHOD_HELLO);
    Memd__HelloReply reply = MEMD__HELLO_REPLY__INIT;
    reply.version = FRAME_VERSION;
    reply.build = (char *)"memd fake";
    reply.role = (char *)"admin";
    reply.requests_in_flight_max = fake->flight_max != 0 ? fake->flight_max : 64;
    reply.frame_payload_max = fake->payload_max != 0 ? fake->payload_max
                                                     : LIMIT_FRAME_PAYLOAD_BYTES;
    reply.frame_message_max = LIMIT_FRAME_MESSAGE_BYTES;
    fake_reply(fd, &request, &reply.base, NULL, 0);
    arena_fini(&request.arena);
    return true;
}

struct memd_context fake_context(struct memd_client *client)
{
    return (struct memd_context){ .client = client,
                                  .id = 7,
                                  .layers = 2,
                                  .query_heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 8,
                                  .dtype = MEMD_FP32 };
}

struct memd_client *fake_client(const struct fake *fake)
{
    struct memd_client *client = NULL;
    struct memd_error err = { 0 };
    struct memd_options options = { .timeout_ms = FAKE_PATIENT_MS };
    int rc = memd_connect(fake->address, &options, &client, &err);
    if (rc < 0) fprintf(stderr, "connect: %s\n", err.text);
    assert(rc == 0);
    return client;
}
