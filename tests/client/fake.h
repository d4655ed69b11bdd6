/* SPDX-License-Identifier: Apache-2.0 */
/* fake.h — a daemon made of one thread and a script, to see what libmemd really sends.
 *
 * The script is a function that is called once per connection, with a blocking socket, and does in
 * plain order what this daemon is to do: receive, check, answer, or misbehave. What goes wrong in
 * it is an assert, not a failed cmocka test: it does not run on cmocka's thread.
 *
 * The client's clock goes ahead when a test says so (fake_wait). Calls have more time than a test
 * may take, so that it does not matter how quickly threads get a core; where a deadline is the
 * subject, it is over when what should come before it has been seen.
 */
#ifndef MEMD_TEST_FAKE_H
#define MEMD_TEST_FAKE_H

#include "clients/include/memd.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stddef.h>

#include "base/arena.h"
#include "base/error.h"
#include "proto/frame.h"
#include "proto/message.h"
#include "proto/method.h"

enum {
    FAKE_PATH_BYTES = 64,
    FAKE_ARENA_BYTES = 600 << 20,
    FAKE_PATIENT_MS = 3600 * 1000, /* of every call */
};

/* What came in, in `arena` until the next fake_receive with the same object. */
struct fake_request {
    struct arena arena;
    struct frame frame;
    const ProtobufCMessage *message;
    const unsigned char *payload;
};

struct fake;
/* `number` of the connection, from 0; returning closes it. */
typedef void fake_script(struct fake *fake, int fd, int number);

struct fake {
    char path[FAKE_PATH_BYTES];
    char address[FAKE_PATH_BYTES + 8];
    bool tcp; /* listen on a port of 127.0.0.1 instead of a path */
    int listen_fd;
    pthread_t thread;
    fake_script *script;
    atomic_int connections;
    sem_t closed;         /* posted when a connection has been closed */
    void *arg;            /* of the script */
    uint64_t flight_max;  /* stated in Hello, 0 = 64 */
    uint64_t payload_max; /* stated in Hello, 0 = the protocol's */
    atomic_bool stop;
};

/* Listen on a path of its own and run the script in a thread. */
void fake_open(struct fake *fake, fake_script *script, void *arg);
/* Joins the thread: the script must have come to its end, or end when the client is closed. */
void fake_close(struct fake *fake);

/* The next request; false at the end of the stream. */
bool fake_receive(int fd, struct fake_request *request);
/* Receive one that must be of `method`. */
void fake_expect(int fd, struct fake_request *request, unsigned method);

void fake_send(int fd, const void *data, size_t bytes);
void fake_reply(int fd, const struct fake_request *request, const ProtobufCMessage *reply,
                const void *payload, size_t payload_bytes);
void fake_error(int fd, const struct fake_request *request, int code, const char *text);
/* Receive a Hello and answer it; false when the client hangs up instead. */
bool fake_hello(struct fake *fake, int fd);

/* A context as memd_open would have given it: id 7, L=2, H=4, G=2, D=8, fp32. */
struct memd_context fake_context(struct memd_client *client);

/* Connect or fail the test; a call takes FAKE_PATIENT_MS at most. */
struct memd_client *fake_client(const struct fake *fake);

/* Let so much time go by for the client. */
void fake_wait(uint64_t ms);

#endif
