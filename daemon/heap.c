/* SPDX-License-Identifier: Apache-2.0 */
/* heap.c — each commit takes and gives back some 32 MiB of dirty pages in pieces of a few hundred
 * KiB. By default the C library returns them to the kernel each time, and touching fresh ones costs
 * as much as all other work of an append (decisions/0010). One heap that keeps what it has does
 * not; but a daemon that has taken in a gigabyte once must not hold it for ever. So the heap is
 * trimmed when nothing has been asked for IDLE_MS, once per such pause, and on a worker, since
 * walking a large heap takes milliseconds.
 */
#include "daemon/heap.h"

#include <malloc.h>

#include "base/object.h"
#include "daemon/server.h"

enum { KEEP_BYTES = 256 << 20, MMAP_BYTES = 32 << 20, IDLE_MS = 2000 };
#define NS_PER_MS UINT64_C(1000000)

void heap_init(void)
{
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, MMAP_BYTES);
    mallopt(M_TRIM_THRESHOLD, KEEP_BYTES);
}

static void trim(struct pool_job *job)
{
    struct heap *heap = OBJECT_CAST(LIST_ENTRY(job, struct heap, job), HEAP_MAGIC);
    catalog_trim(heap->server->catalog);
    malloc_trim(0);
    atomic_store(&heap->trimming, false);
}

void heap_tick(struct heap *heap, struct server *server, uint64_t now_ns)
{
    uint64_t bytes = server->stats.received_bytes_total;
    if (server->requests_active > 0 || bytes != heap->seen_bytes) {
        heap->seen_bytes = bytes;
        heap->idle_since_ns = now_ns;
        heap->trimmed = false;
        return;
    }
    if (heap->trimmed || now_ns - heap->idle_since_ns < IDLE_MS * NS_PER_MS) return;
    if (atomic_exchange(&heap->trimming, true)) return;
    heap->magic = HEAP_MAGIC;
    heap->server = server;
    heap->job = (struct pool_job){ .run = trim };
    heap->trimmed = true;
    pool_submit(server->pool, &heap->job);
}
