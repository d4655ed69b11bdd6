/* SPDX-License-Identifier: Apache-2.0 */
/* planes_device.h — planes of sealed segments, resident on a device: a cache by content, and the
 * memory that a query over them works in.
 *
 * An entry is the payload HI of one KV head of one segment. Its key is made of the checksums that
 * the payload carries (of its K, of its V, and of the LO that was coded with it), so that planes
 * which were coded anew, of a fork, of a segment that was cut and sealed again, are told apart or
 * found alike by what they are: nobody has to say that planes are gone. Planes without checksums
 * are not kept.
 *
 * Memory   slabs of equal slots, as many as planes_bytes of the accelerator allows; then the least
 *          recently used slot is taken
 * Threads  with the accelerator's lock held
 * Tests    tests/simt/test_progressive_device.c
 */
#ifndef MEMD_INDEX_PLANES_DEVICE_H
#define MEMD_INDEX_PLANES_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "base/map.h"

struct accelerator;
struct gather_run;
struct partial_run;
struct planes;
struct planes_layout;

enum { PLANES_SLAB_SLOTS = 32, PLANES_SLABS_MAX = 4096 };

struct planes_slot {
    struct list_link link; /* in lru, or in empty */
    uint64_t key;          /* while it is in use */
    uint64_t asking;       /* number of the latest query that reads it */
    unsigned char *at;     /* on the device */
};

struct planes_cache {
    size_t slot_bytes; /* 0: nothing was kept yet */
    struct map by_key;
    struct list_link lru;   /* slots in use, least recently used first */
    struct list_link empty; /* the others */
    struct {
        void *memory; /* on the device */
        struct planes_slot slots[PLANES_SLAB_SLOTS];
    } *slabs[PLANES_SLABS_MAX];
    size_t slab_count;
    uint64_t asking; /* number of the query under way */
};

void planes_cache_init(struct planes_cache *cache);
void planes_cache_fini(struct planes_cache *cache, struct accelerator *accelerator);

/* The planes' HI on the device, sent there if it was not: the copy is queued on the compute stream.
 * Slots of the query under way stay. NULL: there is no room, or nothing to know it by. */
const unsigned char *planes_cache_get(struct planes_cache *cache, struct accelerator *accelerator,
                                      const struct planes_layout *layout,
                                      const struct planes *planes);

/* What is kept on the device between queries: P runs, Q query rows of one. */
enum { PLANES_RUNS_MAX = 2048, PLANES_QUERY_ROWS_MAX = 256 };

struct planes_device {
    struct planes_cache cache;
    /* On the device. */
    float *scores, *square, *thresholds, *total_o, *total_lse;
    uint8_t *levels, *signs;
    unsigned long long *histogram;
    struct partial_run *lo_runs;
    /* Pinned. */
    uint32_t *picked, *exact_ids;
    uint64_t *exact_positions;
    float *left, *pool_lse;
    struct gather_run *listed, *runs; /* by the device; by the host, over rows that travelled */
};

/* accelerator->planes, made once. False: the accelerator cannot have planes now. With its lock
 * held. */
bool planes_device_open(struct accelerator *accelerator);

#endif
