/* SPDX-License-Identifier: Apache-2.0 */
/* client.h — the object behind the public handle.
 *
 * Threads  fields are locked by `lock` unless marked; the socket is closed by the leader only,
 *          because it polls the socket without the lock
 */
#ifndef MEMD_LIBMEMD_CLIENT_H
#define MEMD_LIBMEMD_CLIENT_H

#include <stdatomic.h>

#include "clients/include/memd.h"

#include "base/error.h"
#include "base/list.h"
#include "clients/libmemd/dial.h"
#include "clients/libmemd/receive.h"

#define CLIENT_MAGIC UINT32_C(0x544E4C43)

struct memd_client {
    uint32_t magic;
    struct dial_target target; /* immutable after open */
    uint32_t timeout_ms;       /* immutable after open */

    pthread_mutex_t lock;
    int fd;              /* -1 = not connected */
    int wake_fd;         /* immutable after open: ends the leader's poll */
    bool led;            /* a thread is sending, receiving or dialling for everybody */
    bool leader_sends;   /* its poll ends when the socket takes bytes */
    bool answers_soon;   /* leader: the last wait was short */
    size_t waiters;      /* threads in exchange_wait */
    struct error broken; /* code != 0: the connection is of no use, the leader shall close it */
    uint64_t dial_not_before_ns;
    uint32_t dial_pause_ms;
    struct error dial_error; /* of the last attempt, for error texts */
    struct dial_hello hello; /* limits of the daemon */

    struct list_link queue;  /* not (wholly) sent, in the order of submission */
    struct list_link flight; /* sent, in the order of submission */
    size_t flight_count;
    struct list_link spare; /* tickets to be used again */
    size_t spare_count;
    struct list_link regions;    /* that the daemon has, or will have again */
    _Atomic size_t region_count; /* of those; looked at without lock */
    uint64_t region_numbers;     /* given out */
    uint64_t next_id; /* of requests; from 1, 0 is the daemon's own */
    struct receiver receiver;
    struct memd_counters counters;
};

#endif
