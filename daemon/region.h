/* SPDX-License-Identifier: Apache-2.0 */
/* region.h — memory that clients share: what is mapped, who uses it, and how bytes get in and out.
 *
 * A region is known to its connection by a number of the client's. Its bytes may change at any
 * time, so nobody works on them: tensors are copied out of it once, before anything is checked, and
 * answers are computed in memory of ours and copied in. What a client does to its bytes meanwhile
 * spoils its own numbers and nothing else.
 *
 * One memory, one connection: who maps a memory takes it from the connection that had it, and is
 * answered when no request of that one uses it any more. So a client that lost its connection knows
 * when nothing is written any more that it asked for there.
 *
 *     region_new → region_enter (→ region_register) … region_leave → region_is_idle → region_put
 *
 * Memory   counted against the option shared_memory from region_new to the last region_put; the
 *          unmapping, which takes time, is a job of the pool's
 * Threads  loop: new, leave, drop_all; any: the others
 * Errors   MEMD_EINVAL what was handed over, the number · MEMD_ELIMIT · MEMD_EFULL · MEMD_EEXIST ·
 *          MEMD_ESHAPE · MEMD_ENOMEM · MEMD_EDEVICE
 * Tests    tests/daemon/test_shared.py, tests/daemon/test_shared_device.py
 */
#ifndef MEMD_DAEMON_REGION_H
#define MEMD_DAEMON_REGION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/cuda/device.h"
#include "base/list.h"
#include "base/map.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "proto/message.h"

struct accelerator;
struct arena;
struct connection;
struct error;
struct request;

/* What all regions of a daemon have in common. */
struct region_table {
    pthread_mutex_t lock;
    struct map by_memory;            /* locked by lock: the region that has a memory, by inode */
    uint64_t bytes, count;           /* locked by lock, as is: */
    uint64_t copied_bytes;           /* of tensors, for requests that are not answered yet */
    _Atomic uint64_t copied_max;
    struct pool *pool;               /* immutable after open, as is: */
    struct accelerator *accelerator; /* or NULL */
    _Atomic uint64_t read_bytes, written_bytes;
};

struct region {
    struct list_link link;   /* connection->regions; locked by table->lock, as all up to `refs` */
    struct region *previous; /* who had the memory before, until it is idle */
    bool revoked;
    bool told;                  /* MapMemory was answered with success */
    unsigned users;             /* requests that may touch its bytes */
    unsigned refs;              /* its connection's, its successor's, those of requests */
    struct region_table *table; /* immutable after region_enter, as the rest */
    uint64_t number, inode;
    size_t bytes;
    unsigned char *at; /* of the host, or NULL */
    bool pinned;
    bool imported;
    struct device_export exported; /* of the device; what is left of it: nothing */
    void *device;                  /* where it is there */
    struct pool_job job;
};

/* What a client wants mapped. */
struct region_wish {
    uint64_t number;
    uint64_t bytes, bytes_max; /* bytes_max: of all regions */
    bool on_device;
    struct device_export exported; /* of the device; else its descriptor is a memfd */
};

/* `pool` and `accelerator` are set before the first region. */
void region_table_init(struct region_table *table);
void region_table_fini(struct region_table *table);
void region_table_count(struct region_table *table, uint64_t *ret_count, uint64_t *ret_bytes);

/* A region that nobody knows yet, with one ref. The descriptor stays the caller's, and is needed
 * until region_register where the memory is the device's. */
int region_new(struct region_table *table, const struct region_wish *wish,
               struct region **ret_region, struct error *err);
/* From now on the connection's requests may name it. */
int region_enter(struct region *region, struct connection *conn, struct error *err);
/* Pin memory of the host for the device (failing is no error: `pinned` says so), or import the
 * device's. May take long. */
int region_register(struct region *region, struct error *err);
/* Take it from the connection: no request finds it any more. *ret_region: with the ref. */
int region_leave(struct connection *conn, uint64_t number, struct region **ret_region,
                 struct error *err);
/* Take it from its connection unless the client was told that it is there: it would never say that
 * it does not need it any more. */
void region_forget(struct region *region);
/* No request touches the memory that began before it was mapped anew, or (all) at all. */
bool region_is_idle(struct region *region, bool all);
void region_put(struct region *region);
/* The connection is gone. */
void region_drop_all(struct region_table *table, struct list_link *regions);

/* A tensor of the request: of its payload as it is, of a region as a copy in its arena. MEMD_EBUSY:
 * as much as may be is copied for others; frames are admitted by their size, these are not. */
int region_tensor(struct request *req, const Memd__Tensor *wire, const struct message_shape *shape,
                  struct tensor *ret_tensor, struct error *err);

/* The request is answered, or forgotten: its copies do not count any more. */
void region_copies_done(struct request *req);

/* A place in a region for a tensor that is yet to be computed. */
struct region_place {
    struct region *region; /* pinned by the request; NULL: the answer goes into the frame */
    uint64_t offset;
};
/* NULL `wire`: into the frame. */
int region_place(struct request *req, const Memd__Tensor *wire, const struct message_shape *shape,
                 struct region_place *ret_place, struct error *err);
/* An answer that is laid out: what leaves with the frame, and what goes into regions. */
struct region_answer {
    unsigned char *payload, *aside;
    uint64_t payload_bytes, aside_bytes;
};
/* Room for a tensor of `bytes`; its offset among those of its kind. */
uint64_t region_lay(struct region_answer *answer, const struct region_place *place, size_t bytes);
/* Allocate both; the payload is zeros, since padding leaves the process too. MEMD_ELIMIT a frame
 * cannot hold it · MEMD_ENOMEM */
int region_make_room(struct region_answer *answer, struct arena *arena, struct error *err);
/* Where the tensor at that offset is computed. */
void *region_memory(const struct region_answer *answer, const struct region_place *place,
                    uint64_t offset);

/* Copy what was computed to its place. Does nothing where the answer goes into the frame. */
int region_write(const struct region_place *place, const void *from, size_t bytes,
                 struct error *err);
/* The tensor `wire` of a reply is there. NULL is passed on. */
Memd__Tensor *region_name(const struct region_place *place, Memd__Tensor *wire);

#endif
