/* SPDX-License-Identifier: Apache-2.0 */
/* region.c — a memfd is checked before it is mapped, and copied from, never worked on.
 *
 * What could hurt the daemon is a file that becomes shorter under its mapping (SIGBUS). Hence the
 * seal against shrinking, which cannot be taken back and is asked for before the size; hence no
 * huge pages, of which a hole that is punched later may find none left. A hole in ordinary memory
 * reads as zeros.
 *
 * One lock for all regions of a daemon: it is held for a walk over at most LIMIT_REGIONS entries,
 * never while bytes are copied.
 */
#include "daemon/region.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "attention/cuda/neighbour.h"
#include "base/error.h"
#include "daemon/connection.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

void region_table_init(struct region_table *table)
{
    *table = (struct region_table){ .count = 0 };
    pthread_mutex_init(&table->lock, NULL);
}

void region_table_fini(struct region_table *table)
{
    assert(table->count == 0 && table->copied_bytes == 0);
    map_fini(&table->by_memory);
    pthread_mutex_destroy(&table->lock);
}

void region_table_count(struct region_table *table, uint64_t *ret_count, uint64_t *ret_bytes)
{
    pthread_mutex_lock(&table->lock);
    *ret_count = table->count;
    *ret_bytes = table->bytes;
    pthread_mutex_unlock(&table->lock);
}

/* ---- the end ---- */

/* Unmapping takes time by the page, unpinning waits for the device: not for the loop. */
static void dispose(struct pool_job *job)
{
    struct region *region = LIST_ENTRY(job, struct region, job);
    struct region_table *table = region->table;
    if (region->pinned) neighbour_unpin(table->accelerator, region->at);
    if (region->imported) neighbour_release(table->accelerator, region->device);
    if (region->at != NULL) munmap(region->at, region->bytes);
    free(region);
}

/* With lock held: was it the last ref? Then nobody finds it any more, and it does not count: who
 * hears that a region is gone can map the next, whenever a worker comes to unmap this one. */
static bool drop_ref(struct region *region)
{
    assert(region->refs > 0);
    if (--region->refs > 0) return false;
    assert(region->users == 0 && !list_linked(&region->link));
    struct map *by_memory = &region->table->by_memory;
    if (map_get(by_memory, region->inode) != region) {
        /* another has it */
    } else if (region->previous != NULL) { /* not idle yet: who maps next has to wait for it too */
        map_put(by_memory, region->inode, region->previous);
    } else {
        map_remove(by_memory, region->inode);
    }
    region->table->bytes -= region->bytes;
    region->table->count--;
    return true;
}

void region_put(struct region *region)
{
    while (region != NULL) {
        struct region_table *table = region->table;
        pthread_mutex_lock(&table->lock);
        struct region *previous = region->previous;
        bool last = drop_ref(region);
        pthread_mutex_unlock(&table->lock);
        if (!last) return;
        region->job = (struct pool_job){ .run = dispose };
        pool_submit(table->pool, &region->job);
        region = previous;
    }
}

/* ---- the beginning ---- */

/* A file that stays as long as it is, of ordinary memory. */
static int check_memfd(int fd, uint64_t bytes, uint64_t *ret_inode, struct error *err)
{
    struct stat info;
    struct statfs system;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || fstat(fd, &info) < 0 || fstatfs(fd, &system) < 0 || !S_ISREG(info.st_mode))
        return error_set(err, MEMD_EINVAL, "the descriptor is no memfd");
    if ((seals & F_SEAL_SHRINK) == 0)
        return error_set(err, MEMD_EINVAL, "the memfd is not sealed against shrinking");
    if (system.f_type != TMPFS_MAGIC)
        return error_set(err, MEMD_EINVAL, "the memfd is not of ordinary pages");
    if ((uint64_t)info.st_size < bytes)
        return error_set(err, MEMD_EINVAL, "%" PRIu64 " bytes of a memfd of %lld", bytes,
                         (long long)info.st_size);
    *ret_inode = info.st_ino;
    return 0;
}

static int map_memfd(struct region *region, int fd, struct error *err)
{
    void *at = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return error_set(err, errno == ENOMEM ? MEMD_ENOMEM : MEMD_EINVAL,
                         "the memfd cannot be mapped for reading and writing: %s", strerror(errno));
    region->at = at;
    return 0;
}

/* Memory that is mapped anew counts twice until nobody uses the old region, but it does not stand
 * in its own way: a client that lost its connection gets its memory back. */
static int reserve(struct region_table *table, const struct region_wish *wish, uint64_t inode,
                   struct error *err)
{
    pthread_mutex_lock(&table->lock);
    const struct region *before = wish->on_device ? NULL : map_get(&table->by_memory, inode);
    uint64_t used = table->bytes, others = used - (before == NULL ? 0 : before->bytes);
    bool fits = others <= wish->bytes_max && wish->bytes <= wish->bytes_max - others;
    if (fits) {
        table->bytes += wish->bytes;
        table->count++;
    }
    pthread_mutex_unlock(&table->lock);
    if (fits) return 0;
    return error_set(err, MEMD_EFULL, "%" PRIu64 " bytes, clients share %" PRIu64 " of %" PRIu64,
                     wish->bytes, used, wish->bytes_max);
}

int region_new(struct region_table *table, const struct region_wish *wish,
               struct region **ret_region, struct error *err)
{
    uint64_t inode = 0;
    int rc = 0;
    if (wish->number == 0 || wish->bytes == 0)
        return error_set(err, MEMD_EINVAL, "region %" PRIu64 " of %" PRIu64 " bytes", wish->number,
                         wish->bytes);
    if (wish->bytes > wish->bytes_max)
        return error_set(err, MEMD_ELIMIT, "region of %" PRIu64 " bytes, limit %" PRIu64,
                         wish->bytes, wish->bytes_max);
    if (!wish->on_device) rc = check_memfd(wish->exported.descriptor, wish->bytes, &inode, err);
    if (rc == 0) rc = reserve(table, wish, inode, err);
    if (rc < 0) return rc;
    struct region *region = calloc(1, sizeof *region);
    if (region == NULL) {
        pthread_mutex_lock(&table->lock);
        table->bytes -= wish->bytes;
        table->count--;
        pthread_mutex_unlock(&table->lock);
        return error_set(err, MEMD_ENOMEM, "no memory for a region");
    }
    *region = (struct region){ .table = table,
                               .number = wish->number,
                               .inode = inode,
                               .refs = 1,
                               .bytes = (size_t)wish->bytes,
                               .exported = wish->exported };
    if (!wish->on_device) rc = map_memfd(region, wish->exported.descriptor, err);
    if (rc < 0)
        region_put(region);
    else
        *ret_region = region;
    return rc;
}

/* With lock held. */
static struct region *find(const struct connection *conn, uint64_t number)
{
    LIST_FOR(link, &conn->regions)
    {
        struct region *region = LIST_ENTRY(link, struct region, link);
        if (region->number == number) return region;
    }
    return NULL;
}

static size_t count_regions(const struct connection *conn)
{
    size_t count = 0;
    LIST_FOR(link, &conn->regions) count++;
    return count;
}

/* Whoever had the memory loses it. With lock held. */
static int take_over(struct region *region)
{
    struct map *by_memory = &region->table->by_memory;
    if (region->at == NULL) return 0; /* what others export of a device has no name */
    struct region *previous = map_get(by_memory, region->inode);
    int rc = map_put(by_memory, region->inode, region);
    if (rc < 0 || previous == NULL) return rc;
    previous->revoked = true;
    previous->refs++;
    region->previous = previous;
    return 0;
}

int region_enter(struct region *region, struct connection *conn, struct error *err)
{
    struct region_table *table = region->table;
    int rc = 0;
    pthread_mutex_lock(&table->lock);
    if (count_regions(conn) >= LIMIT_REGIONS)
        rc = error_set(err, MEMD_ELIMIT, "more than %u regions", LIMIT_REGIONS);
    else if (find(conn, region->number) != NULL)
        rc = error_set(err, MEMD_EEXIST, "region %" PRIu64 " is mapped already", region->number);
    else if (take_over(region) < 0)
        rc = error_set(err, MEMD_ENOMEM, "no memory for a region");
    if (rc == 0) {
        list_append(&conn->regions, &region->link);
        region->refs++;
    }
    pthread_mutex_unlock(&table->lock);
    return rc;
}

int region_register(struct region *region, struct error *err)
{
    struct accelerator *accelerator = region->table->accelerator;
    bool offered = accelerator != NULL && neighbour_is_offered(accelerator);
    if (region->at != NULL) {
        struct error why = { 0 };
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        size_t bytes = (region->bytes + page - 1) / page * page;
        region->pinned = offered && neighbour_pin(accelerator, region->at, bytes, &why) == 0;
        return 0;
    }
    if (!offered) return error_set(err, MEMD_EUNSUPPORTED, "the daemon uses no device");
    int rc = neighbour_import(accelerator, &region->exported, &region->device, err);
    region->imported = rc == 0;
    return rc;
}

/* ---- leaving ---- */

int region_leave(struct connection *conn, uint64_t number, struct region **ret_region,
                 struct error *err)
{
    struct region_table *table = &conn->server->regions;
    pthread_mutex_lock(&table->lock);
    struct region *region = find(conn, number);
    if (region != NULL) list_remove(&region->link);
    pthread_mutex_unlock(&table->lock);
    if (region == NULL) return error_set(err, MEMD_EINVAL, "there is no region %" PRIu64, number);
    *ret_region = region;
    return 0;
}

void region_forget(struct region *region)
{
    pthread_mutex_lock(&region->table->lock);
    bool known = !region->told && list_linked(&region->link);
    if (known) list_remove(&region->link);
    pthread_mutex_unlock(&region->table->lock);
    if (known) region_put(region);
}

bool region_is_idle(struct region *region, bool all)
{
    struct region_table *table = region->table;
    bool idle = true;
    pthread_mutex_lock(&table->lock);
    for (struct region *at = all ? region : region->previous; at != NULL; at = at->previous)
        idle = idle && at->users == 0;
    struct region *previous = idle ? region->previous : NULL;
    if (idle) region->previous = NULL;
    pthread_mutex_unlock(&table->lock);
    region_put(previous);
    return idle;
}

void region_drop_all(struct region_table *table, struct list_link *regions)
{
    for (;;) {
        pthread_mutex_lock(&table->lock);
        struct list_link *link = list_take_first(regions);
        pthread_mutex_unlock(&table->lock);
        if (link == NULL) return;
        region_put(LIST_ENTRY(link, struct region, link));
    }
}

/* ---- use ---- */

/* What memcpy promises ends where others write meanwhile: the client, or our own threads where a
 * client let places overlap. Words that are loaded and stored one by one are something else each
 * time, but always something; compilers make of it what they make of any loop. */
static void copy_from(const unsigned char *shared, size_t bytes, unsigned char *to)
{
    size_t at = 0;
    for (uint64_t word; bytes - at >= sizeof word; at += sizeof word) {
        word = __atomic_load_n((const uint64_t *)(const void *)(shared + at), __ATOMIC_RELAXED);
        memcpy(to + at, &word, sizeof word);
    }
    for (; at < bytes; at++) to[at] = __atomic_load_n(shared + at, __ATOMIC_RELAXED);
}

static void copy_to(const unsigned char *from, size_t bytes, unsigned char *shared)
{
    size_t at = 0;
    for (uint64_t word; bytes - at >= sizeof word; at += sizeof word) {
        memcpy(&word, from + at, sizeof word);
        __atomic_store_n((uint64_t *)(void *)(shared + at), word, __ATOMIC_RELAXED);
    }
    for (; at < bytes; at++) __atomic_store_n(shared + at, from[at], __ATOMIC_RELAXED);
}

static void release(void *object)
{
    struct region *region = object;
    pthread_mutex_lock(&region->table->lock);
    assert(region->users > 0);
    region->users--;
    pthread_mutex_unlock(&region->table->lock);
    region_put(region);
}

/* Until the request's arena is released. */
static int pin(struct request *req, uint64_t number, struct region **ret_region, struct error *err)
{
    struct region_table *table = &req->server->regions;
    pthread_mutex_lock(&table->lock);
    struct region *region = find(req->connection, number);
    bool revoked = region != NULL && region->revoked;
    bool found = region != NULL && !revoked;
    if (found) region->users++;
    if (found) region->refs++;
    pthread_mutex_unlock(&table->lock);
    if (revoked)
        return error_set(err, MEMD_EINVAL, "the memory of region %" PRIu64 " was mapped anew since",
                         number);
    if (!found) return error_set(err, MEMD_EINVAL, "there is no region %" PRIu64, number);
    if (arena_on_reset(&req->arena, release, region) < 0) return wire_no_memory(err);
    *ret_region = region;
    return 0;
}

/* A copy may stay for as long as an append waits for room, and nobody has counted it yet. */
static int count_copy(struct request *req, size_t bytes, struct error *err)
{
    struct region_table *table = &req->server->regions;
    uint64_t most = atomic_load_explicit(&table->copied_max, memory_order_relaxed);
    pthread_mutex_lock(&table->lock);
    uint64_t others = table->copied_bytes - req->copied_bytes;
    bool fits = others == 0 || (bytes <= most && table->copied_bytes <= most - bytes);
    if (fits) table->copied_bytes += bytes;
    pthread_mutex_unlock(&table->lock);
    if (!fits)
        return error_set(err, MEMD_EBUSY, "%" PRIu64 " bytes of shared memory are in flight",
                         others);
    req->copied_bytes += bytes;
    return 0;
}

void region_copies_done(struct request *req)
{
    struct region_table *table = &req->server->regions;
    if (req->copied_bytes == 0) return;
    pthread_mutex_lock(&table->lock);
    assert(table->copied_bytes >= req->copied_bytes);
    table->copied_bytes -= req->copied_bytes;
    pthread_mutex_unlock(&table->lock);
    req->copied_bytes = 0;
}

int region_tensor(struct request *req, const Memd__Tensor *wire, const struct message_shape *shape,
                  struct tensor *ret_tensor, struct error *err)
{
    if (wire == NULL || wire->region == 0)
        return message_tensor(wire, req->payload, (size_t)req->frame.payload_bytes, shape,
                              ret_tensor, err);
    struct region *region = NULL;
    struct tensor tensor;
    int rc = pin(req, wire->region, &region, err);
    if (rc == 0) rc = message_region_tensor(wire, region->bytes, shape, &tensor, err);
    if (rc < 0) return rc;
    size_t bytes = tensor_bytes(&tensor);
    rc = count_copy(req, bytes, err);
    if (rc < 0) return rc;
    void *copy = arena_alloc_aligned(&req->arena, bytes, LIMIT_PAYLOAD_ALIGN);
    if (copy == NULL) return wire_no_memory(err);
    if (region->at != NULL)
        copy_from(region->at + wire->offset, bytes, copy);
    else
        rc = neighbour_read(region->table->accelerator,
                            (const unsigned char *)region->device + wire->offset, bytes, copy, err);
    if (rc < 0) return rc;
    atomic_fetch_add_explicit(&region->table->read_bytes, bytes, memory_order_relaxed);
    tensor.data = copy;
    *ret_tensor = tensor;
    return 0;
}

int region_place(struct request *req, const Memd__Tensor *wire, const struct message_shape *shape,
                 struct region_place *ret_place, struct error *err)
{
    if (wire == NULL) return 0;
    if (wire->region == 0) return error_set(err, MEMD_ESHAPE, "%s names no region", shape->what);
    struct region *region = NULL;
    struct tensor tensor;
    int rc = pin(req, wire->region, &region, err);
    if (rc == 0) rc = message_region_tensor(wire, region->bytes, shape, &tensor, err);
    if (rc == 0) *ret_place = (struct region_place){ .region = region, .offset = wire->offset };
    return rc;
}

uint64_t region_lay(struct region_answer *answer, const struct region_place *place, size_t bytes)
{
    return message_place(place->region == NULL ? &answer->payload_bytes : &answer->aside_bytes,
                         bytes);
}

int region_make_room(struct region_answer *answer, struct arena *arena, struct error *err)
{
    if (answer->payload_bytes > LIMIT_FRAME_PAYLOAD_BYTES)
        return error_set(err, MEMD_ELIMIT, "answer of %" PRIu64 " bytes exceeds a frame",
                         answer->payload_bytes);
    answer->payload = arena_alloc_aligned(arena, (size_t)answer->payload_bytes,
                                          LIMIT_PAYLOAD_ALIGN);
    answer->aside = arena_alloc_aligned(arena, (size_t)answer->aside_bytes, LIMIT_PAYLOAD_ALIGN);
    if (answer->payload == NULL || answer->aside == NULL) return wire_no_memory(err);
    memset(answer->payload, 0, (size_t)answer->payload_bytes);
    return 0;
}

void *region_memory(const struct region_answer *answer, const struct region_place *place,
                    uint64_t offset)
{
    return (place->region == NULL ? answer->payload : answer->aside) + offset;
}

int region_write(const struct region_place *place, const void *from, size_t bytes,
                 struct error *err)
{
    struct region *region = place->region;
    if (region == NULL) return 0;
    assert(place->offset <= region->bytes && bytes <= region->bytes - place->offset);
    int rc = 0;
    if (region->at != NULL)
        copy_to(from, bytes, region->at + place->offset);
    else
        rc = neighbour_write(region->table->accelerator, from, bytes,
                             (unsigned char *)region->device + place->offset, err);
    if (rc == 0)
        atomic_fetch_add_explicit(&region->table->written_bytes, bytes, memory_order_relaxed);
    return rc;
}

Memd__Tensor *region_name(const struct region_place *place, Memd__Tensor *wire)
{
    if (wire == NULL || place->region == NULL) return wire;
    wire->region = place->region->number;
    wire->offset = place->offset;
    return wire;
}
