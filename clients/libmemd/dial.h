/* SPDX-License-Identifier: Apache-2.0 */
/* dial.h — from an address to a connected socket on which Hello has been answered.
 *
 * Threads  any; blocks until the deadline at most
 * Errors   MEMD_EINVAL address · MEMD_ECLOSED nobody there, or gone in the middle · MEMD_EDEADLINE
 *          · MEMD_EPERM token · MEMD_EVERSION, MEMD_EPROTO the other side is not a memd of this
 *          protocol · MEMD_ENOMEM
 * Tests    tests/client/test_connect.c
 */
#ifndef MEMD_LIBMEMD_DIAL_H
#define MEMD_LIBMEMD_DIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/limits.h"

struct dial_target {
    bool is_unix;
    char *path;        /* of a Unix socket */
    char *host, *port; /* of TCP */
    char *token;       /* "" = none */
    char *client_name;
};

/* What of the daemon's Hello the client acts on. */
struct dial_hello {
    uint64_t message_bytes_max, payload_bytes_max;
    size_t requests_in_flight_max;
    bool shared_memory, device_memory; /* it offers to take them */
    uint64_t region_bytes_max;
};

/* Memory to be shared on the new connection (region.h), and what the daemon said to that. */
struct dial_share {
    uint64_t number, bytes;
    int kind; /* Memd__MemoryKind */
    int fd;   /* owned, or -1: */
    unsigned char handle[LIMIT_HANDLE_BYTES];
    struct error refused; /* code 0: it has it, */
    bool registered;      /* and its device can reach it */
};
struct dial_shares {
    struct dial_share *items; /* (count), owned */
    size_t count;
};
void dial_shares_fini(struct dial_shares *shares);

int dial_parse(const char *address, struct dial_target *ret_target, struct error *err);
void dial_fini(struct dial_target *target);

/* The id of the Hello; those of other requests are larger. */
enum { DIAL_REQUEST_ID = 1 };

/* A non-blocking socket, on which the daemon has answered all `shares` as well (NULL: there are
 * none), whatever it said. deadline_ns by clock_monotonic_ns. */
int dial(const struct dial_target *target, struct dial_shares *shares, uint64_t deadline_ns,
         int *ret_fd, struct dial_hello *ret_hello, struct error *err);

#endif
