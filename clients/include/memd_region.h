/* SPDX-License-Identifier: Apache-2.0 */
/* memd_region.h — the part of memd.h about memory that a client shares with a daemon on its host.
 *
 *     struct memd_region *region;
 *     memd_share(client, 64 << 20, &region, &err);
 *     void *q = memd_region_data(region);       … as memd_query.q, its o and lse behind it
 *
 * Arrays that lie in a region, from a multiple of 64 bytes on, do not travel: a request names their
 * place, and the daemon reads them there; `o` and `lse` of an attend, rows of a fetch it writes
 * there. Nothing else changes, and all other arrays go by the socket.
 *
 * WHOSE BYTES  From submitting a request until its answer, what it reads and where it writes are
 *           the daemon's. A request that was given up (its time was over, its ticket was freed) may
 *           still write to its answer's place, until memd_unshare returns. After a lost connection
 *           the library shares its regions anew, which the daemon answers when nothing that was
 *           asked before it writes any more, and only then repeats requests. Not so memory of a
 *           device (memd_share_device), which the daemon cannot recognise: what was asked for on
 *           the lost connection may still be written there for a while.
 * WHAT IS NOT TAKEN AGAIN  A daemon that was started anew may refuse a region (its shared_memory is
 *           less now, others have it). What names it already then fails with what the daemon said.
 *           Later calls send its arrays over the socket, until there is a connection on which it
 *           is taken; those with memory of a device fail.
 * ONE CLIENT  A memory belongs to one connection at a time. Clients that do not want to share one
 *           connection share a region each.
 *
 * A part of memd.h, which includes it; the rules of that header (errors, memory, threads) hold.
 */
#ifndef MEMD_REGION_H
#define MEMD_REGION_H

#include "memd.h"

#ifdef __cplusplus
extern "C" {
#endif

struct memd_region;

/* Make memory and share it. It is allocated when this returns, zeroed, aligned to the page; it goes
 * with memd_unshare, or with the client. ret_region is required.
 * Errors   MEMD_EUNSUPPORTED not over TCP, not with this daemon · MEMD_EFULL, MEMD_ELIMIT the
 *          daemon takes no more (shared_memory) · MEMD_ENOMEM */
MEMD_API int memd_share(struct memd_client *client, size_t bytes, struct memd_region **ret_region,
                        struct memd_error *err);

enum { MEMD_HANDLE_BYTES = 64 };

/* Memory of the daemon's GPU that the caller allocated: pointers into it are then as good as those
 * into a region of the host. What the caller's streams write must be finished before a request
 * names it. */
struct memd_device_memory {
    void *address; /* where it is in this process */
    size_t bytes;
    int descriptor;     /* of cuMemExportToShareableHandle; stays the caller's. Below 0: */
    const void *handle; /* (MEMD_HANDLE_BYTES) a cudaIpcMemHandle_t; needs the role "admin" */
};

/* Errors   MEMD_EUNSUPPORTED the daemon uses no device · MEMD_EINVAL it is no memory of that device
 *          · MEMD_EPERM · MEMD_EFULL, MEMD_ELIMIT · MEMD_EDEVICE */
MEMD_API int memd_share_device(struct memd_client *client, const struct memd_device_memory *memory,
                               struct memd_region **ret_region, struct memd_error *err);

MEMD_API void *memd_region_data(const struct memd_region *region);
MEMD_API size_t memd_region_bytes(const struct memd_region *region);
/* The daemon's device can reach it without the CPU. */
MEMD_API bool memd_region_is_registered(const struct memd_region *region);

/* Take it back: the daemon does not touch it any more. No request that names it may be under way.
 * It is gone whatever this returns. NULL is fine. */
MEMD_API int memd_unshare(struct memd_region *region, struct memd_error *err);

#ifdef __cplusplus
}
#endif

#endif
