/* SPDX-License-Identifier: Apache-2.0 */
/* heap.h — memory that the C library holds: kept while there is work, given back afterwards.
 *
 * Threads  loop, but for the job itself, which runs on a worker
 * Tests    tests/daemon/test_bounds.py
 */
#ifndef MEMD_DAEMON_HEAP_H
#define MEMD_DAEMON_HEAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"

struct server;

#define HEAP_MAGIC UINT32_C(0x50414548)

struct heap {
    uint32_t magic;
    struct pool_job job;    /* worker while `trimming` */
    struct server *server;  /* immutable */
    atomic_bool trimming;   /* the job is queued or running */
    uint64_t seen_bytes;    /* loop: received_bytes_total at the last tick */
    uint64_t idle_since_ns; /* loop */
    bool trimmed;           /* loop: nothing was asked since */
};

/* Tune the allocator. First thing in main. */
void heap_init(void);

/* Now and then: give back when nothing has been done for a while. */
void heap_tick(struct heap *heap, struct server *server, uint64_t now_ns);

#endif
