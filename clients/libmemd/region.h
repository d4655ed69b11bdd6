/* SPDX-License-Identifier: Apache-2.0 */
/* region.h — memory that a client shares: which arrays lie in it, and sharing it again.
 *
 * Numbers of regions are never used twice by a client, so that a request that was packed before a
 * connection was lost means the same on the next one. A region that the daemon does not take again
 * is tried with every connection; meanwhile its arrays travel, and those of a device cannot.
 *
 * Threads  any; _locked under client->lock
 * Tests    tests/client/test_region.c, test_daemon.c
 */
#ifndef MEMD_LIBMEMD_REGION_H
#define MEMD_LIBMEMD_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/libmemd/dial.h"

struct error;
struct memd_client;

/* A place in a region; number 0: it is in none. */
struct region_at {
    uint64_t number, offset;
};

/* Where `bytes` at `data` are. MEMD_EINVAL: in memory of a device, but not so that they can be
 * named, and nobody here can read them; or what the daemon refused that memory with. */
int region_locate(struct memd_client *client, const void *data, size_t bytes,
                  struct region_at *ret_at, struct error *err);

/* All regions, for a new connection. Freed with dial_shares_fini. MEMD_ENOMEM, MEMD_EIO */
int region_snapshot_locked(struct memd_client *client, struct dial_shares *ret_shares,
                           struct error *err);

/* What the daemon said to them there. False: somebody took a region back meanwhile, so that daemon
 * has memory on that connection that is not to be shared any more, and it cannot be used. */
bool region_settle_locked(struct memd_client *client, const struct dial_shares *shares);

/* The client is closed: unmap what is left. */
void region_free_all(struct memd_client *client);

#endif
