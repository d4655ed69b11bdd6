/* SPDX-License-Identifier: Apache-2.0 */
/* region.c — a memfd, sealed and mapped here, its descriptor sent beside a request.
 *
 * That an array lies in a region is seen by its address: calls and structs are those without shared
 * memory, and whoever places arrays elsewhere gets the socket, not an error. Memory of a device is
 * the exception, since nobody here could send it.
 */
#include "clients/libmemd/region.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "clients/libmemd/client.h"
#include "proto/limits.h"
#include "proto/method.h"

struct memd_region {
    uint32_t magic;
    struct memd_client *client;
    uint64_t number;
    Memd__MemoryKind kind;
    unsigned char *at; /* mapped here, or the device's */
    size_t bytes;
    int fd; /* -1: a handle */
    unsigned char handle[MEMD_HANDLE_BYTES];
    /* locked by client->lock */
    struct list_link link; /* client->regions, from the daemon's answer on */
    struct error refused;  /* of the connection that there is; code 0: it has it */
    bool registered;
};

#define REGION_MAGIC UINT32_C(0x4E474552)

static bool is_host(const struct memd_region *region)
{
    return region->kind == MEMD__MEMORY_KIND__MEMORY_HOST;
}

static void destroy(struct memd_region *region)
{
    if (is_host(region) && region->at != NULL) munmap(region->at, region->bytes);
    close_fd(&region->fd);
    region->magic = 0;
    free(region);
}

/* ---- finding ---- */

/* With lock held: the region that the first byte lies in, or that the array reaches into. */
static struct memd_region *find(struct memd_client *client, uintptr_t at, size_t bytes)
{
    LIST_FOR(link, &client->regions)
    {
        struct memd_region *region = LIST_ENTRY(link, struct memd_region, link);
        uintptr_t begin = (uintptr_t)region->at;
        if (at < begin + region->bytes && begin < at + bytes) return region;
    }
    return NULL;
}

int region_locate(struct memd_client *client, const void *data, size_t bytes,
                  struct region_at *ret_at, struct error *err)
{
    *ret_at = (struct region_at){ .number = 0 };
    if (atomic_load_explicit(&client->region_count, memory_order_relaxed) == 0) return 0;
    uintptr_t at = (uintptr_t)data;
    pthread_mutex_lock(&client->lock);
    const struct memd_region *region = find(client, at, bytes);
    bool host = region == NULL || is_host(region);
    uint64_t begin = region == NULL ? 0 : (uint64_t)(uintptr_t)region->at;
    bool inside = region != NULL && at >= begin && bytes <= region->bytes - (at - begin);
    struct error refused = region == NULL ? (struct error){ 0 } : region->refused;
    if (inside && refused.code == 0 && (at - begin) % LIMIT_PAYLOAD_ALIGN == 0)
        *ret_at = (struct region_at){ .number = region->number, .offset = at - begin };
    pthread_mutex_unlock(&client->lock);
    if (host || ret_at->number != 0) return 0;
    if (refused.code != 0)
        return error_set(err, refused.code, "memory of a device was not taken again: %.120s",
                         refused.text);
    return error_set(err, MEMD_EINVAL,
                     "%zu bytes in shared memory of a device that do not begin at "
                     "a multiple of %u of it, or end behind it",
                     bytes, LIMIT_PAYLOAD_ALIGN);
}

int region_snapshot_locked(struct memd_client *client, struct dial_shares *ret_shares,
                           struct error *err)
{
    struct dial_shares shares = { .count = 0 };
    size_t count = atomic_load(&client->region_count);
    if (count > 0) shares.items = calloc(count, sizeof *shares.items);
    int rc = count > 0 && shares.items == NULL ? MEMD_ENOMEM : 0;
    LIST_FOR(link, &client->regions)
    {
        const struct memd_region *region = LIST_ENTRY(link, struct memd_region, link);
        if (rc < 0) break;
        struct dial_share *share = &shares.items[shares.count++];
        *share = (struct dial_share){
            .number = region->number, .kind = (int)region->kind, .bytes = region->bytes, .fd = -1
        };
        memcpy(share->handle, region->handle, sizeof share->handle);
        if (region->fd < 0) continue;
        share->fd = fcntl(region->fd, F_DUPFD_CLOEXEC, 0);
        if (share->fd < 0) rc = MEMD_EIO;
    }
    if (rc < 0) {
        dial_shares_fini(&shares);
        return error_set(err, rc, "regions cannot be shared again: %s", strerror(errno));
    }
    *ret_shares = shares;
    return 0;
}

bool region_settle_locked(struct memd_client *client, const struct dial_shares *shares)
{
    size_t found = 0;
    LIST_FOR(link, &client->regions)
    {
        struct memd_region *region = LIST_ENTRY(link, struct memd_region, link);
        for (size_t i = 0; i < shares->count; i++) {
            const struct dial_share *share = &shares->items[i];
            if (share->number != region->number) continue;
            region->refused = share->refused;
            region->registered = share->registered;
            found++;
        }
    }
    return found == shares->count;
}

void region_free_all(struct memd_client *client)
{
    for (struct list_link *link; (link = list_take_first(&client->regions)) != NULL;)
        destroy(LIST_ENTRY(link, struct memd_region, link));
}

/* ---- sharing ---- */

/* Memory of our own that cannot shrink, all of it there. */
static int make_memory(struct memd_region *region, struct error *err)
{
    long page = sysconf(_SC_PAGESIZE);
    size_t rest = region->bytes % (size_t)page;
    off_t bytes = (off_t)(region->bytes + (rest == 0 ? 0 : (size_t)page - rest));
    region->fd = memfd_create("memd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (region->fd < 0) return error_set(err, MEMD_EIO, "memfd_create: %s", strerror(errno));
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int failed = posix_fallocate(region->fd, 0, bytes);
    if (failed != 0)
        return error_set(err, MEMD_ENOMEM, "%zu bytes to share: %s", region->bytes,
                         strerror(failed));
    if (fcntl(region->fd, F_ADD_SEALS, seals) < 0)
        return error_set(err, MEMD_EIO, "sealing a memfd: %s", strerror(errno));
    void *at = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
    if (at == MAP_FAILED)
        return error_set(err, MEMD_ENOMEM, "%zu bytes to share: %s", region->bytes,
                         strerror(errno));
    region->at = at;
    return 0;
}

/* With lock held. It is one of the client's from here on, so that a connection that is made before
 * whoever shares it has heard of the answer has it, too. */
static int place_map(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    struct memd_region *region = *(struct memd_region *const *)ticket->plan;
    region->registered = ((const Memd__MapMemoryReply *)message)->registered;
    if (list_linked(&region->link)) return 0;
    list_append(&ticket->client->regions, &region->link);
    atomic_fetch_add(&ticket->client->region_count, 1);
    return 0;
}

static void take_out(struct memd_region *region)
{
    if (list_linked(&region->link)) atomic_fetch_sub(&region->client->region_count, 1);
    list_remove(&region->link);
}

static int map(struct memd_region *region, struct memd_error *err)
{
    struct memd_client *client = region->client;
    struct memd_ticket *ticket = ticket_new(client, METHOD_MAP_MEMORY, 0);
    int rc = 0;
    if (ticket != NULL) {
        Memd__MapMemoryRequest request = MEMD__MAP_MEMORY_REQUEST__INIT;
        request.region = region->number;
        request.kind = region->kind;
        request.bytes = region->bytes;
        if (region->fd < 0)
            request.handle = (ProtobufCBinaryData){ MEMD_HANDLE_BYTES, region->handle };
        ticket->place = place_map;
        ticket->plan = &region;
        ticket->send_fd = region->fd;
        ticket->has_fd = region->fd >= 0;
        rc = ticket_pack(ticket, &request.base);
    }
    rc = ticket_call(ticket, rc, err);
    if (rc == 0) memd_ticket_free(ticket);
    return rc;
}

/* Before anything is allocated: a size that the daemon does not take may be more than there is. */
static int check_daemon(struct memd_client *client, bool device, size_t bytes, struct error *err)
{
    pthread_mutex_lock(&client->lock);
    bool offered = device ? client->hello.device_memory : client->hello.shared_memory;
    uint64_t most = client->hello.region_bytes_max;
    pthread_mutex_unlock(&client->lock);
    if (!client->target.is_unix)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "memory is shared with a daemon on this host, over "
                         "its Unix socket");
    if (!offered)
        return error_set(err, MEMD_EUNSUPPORTED, "this daemon does not offer %s memory",
                         device ? "device" : "shared");
    if (bytes == 0) return error_set(err, MEMD_EINVAL, "a region of 0 bytes");
    if (bytes <= most) return 0;
    return error_set(err, MEMD_ELIMIT, "a region of %zu bytes, this daemon takes %" PRIu64, bytes,
                     most);
}

/* The rest is the same for all kinds. Takes the region over. */
static int share(struct memd_region *region, struct memd_region **ret_region,
                 struct memd_error *err)
{
    struct memd_client *client = region->client;
    pthread_mutex_lock(&client->lock);
    region->number = ++client->region_numbers;
    pthread_mutex_unlock(&client->lock);
    int rc = map(region, err);
    if (rc == 0) {
        *ret_region = region;
        return 0;
    }
    pthread_mutex_lock(&client->lock);
    take_out(region);
    pthread_mutex_unlock(&client->lock);
    destroy(region);
    return rc;
}

static struct memd_region *make(struct memd_client *client, Memd__MemoryKind kind, size_t bytes)
{
    struct memd_region *region = calloc(1, sizeof *region);
    if (region == NULL) return NULL;
    *region = (struct memd_region){
        .magic = REGION_MAGIC, .client = client, .kind = kind, .bytes = bytes, .fd = -1
    };
    return region;
}

int memd_share(struct memd_client *client, size_t bytes, struct memd_region **ret_region,
               struct memd_error *err)
{
    struct error detail = { 0 };
    int rc = check_daemon(client, false, bytes, &detail);
    struct memd_region *region = NULL;
    if (rc == 0) region = make(client, MEMD__MEMORY_KIND__MEMORY_HOST, bytes);
    if (rc == 0) rc = region == NULL ? MEMD_ENOMEM : make_memory(region, &detail);
    if (rc == 0) return share(region, ret_region, err);
    if (region != NULL) destroy(region);
    return ticket_report(rc, &detail, err);
}

int memd_share_device(struct memd_client *client, const struct memd_device_memory *memory,
                      struct memd_region **ret_region, struct memd_error *err)
{
    struct error detail = { 0 };
    const void *handle = memory->descriptor < 0 ? memory->handle : NULL;
    int rc = check_daemon(client, true, memory->bytes, &detail);
    if (rc == 0 && (memory->address == NULL || (memory->descriptor < 0 && handle == NULL)))
        rc = error_set(&detail, MEMD_EINVAL, "no address, or nothing that exports the memory");
    if (rc < 0) return ticket_report(rc, &detail, err);
    Memd__MemoryKind kind = handle != NULL ? MEMD__MEMORY_KIND__MEMORY_DEVICE_HANDLE
                                           : MEMD__MEMORY_KIND__MEMORY_DEVICE;
    struct memd_region *region = make(client, kind, memory->bytes);
    if (region == NULL) return ticket_report(MEMD_ENOMEM, &detail, err);
    region->at = memory->address;
    if (handle != NULL) memcpy(region->handle, handle, sizeof region->handle);
    if (handle == NULL) region->fd = fcntl(memory->descriptor, F_DUPFD_CLOEXEC, 0);
    if (handle != NULL || region->fd >= 0) return share(region, ret_region, err);
    rc = error_set(&detail, MEMD_EINVAL, "descriptor %d: %s", memory->descriptor, strerror(errno));
    destroy(region);
    return ticket_report(rc, &detail, err);
}

void *memd_region_data(const struct memd_region *region)
{
    assert(region->magic == REGION_MAGIC);
    return region->at;
}

size_t memd_region_bytes(const struct memd_region *region)
{
    assert(region->magic == REGION_MAGIC);
    return region->bytes;
}

bool memd_region_is_registered(const struct memd_region *region)
{
    assert(region->magic == REGION_MAGIC);
    pthread_mutex_lock(&region->client->lock);
    bool registered = region->registered;
    pthread_mutex_unlock(&region->client->lock);
    return registered;
}

/* ---- the end ---- */

static int place_nothing(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    ticket->result = message;
    return 0;
}

int memd_unshare(struct memd_region *region, struct memd_error *err)
{
    if (region == NULL) return 0;
    assert(region->magic == REGION_MAGIC);
    struct memd_client *client = region->client;
    pthread_mutex_lock(&client->lock);
    take_out(region);
    bool connected = client->fd >= 0 && region->refused.code == 0;
    pthread_mutex_unlock(&client->lock);
    Memd__UnmapMemoryRequest request = MEMD__UNMAP_MEMORY_REQUEST__INIT;
    request.region = region->number;
    struct memd_ticket *ticket = NULL;
    int rc = 0;
    if (connected) { /* otherwise no daemon has it, or none that will be talked to */
        ticket = ticket_new(client, METHOD_UNMAP_MEMORY, 0);
        if (ticket != NULL) {
            ticket->place = place_nothing;
            rc = ticket_pack(ticket, &request.base);
        }
        rc = ticket_call(ticket, rc, err);
        if (rc == 0) memd_ticket_free(ticket);
        if (rc == MEMD_EINVAL)
            rc = 0; /* the connection is another one, where it was never shared */
    }
    destroy(region);
    return rc;
}
