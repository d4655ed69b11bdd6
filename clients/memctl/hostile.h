/* SPDX-License-Identifier: Apache-2.0 */
/* hostile.h — two clients that a daemon has to survive: one that asks without end and never reads
 * an answer, one that sends a frame at a byte a second. Both speak the protocol correctly
 * otherwise.
 *
 * Threads  hostile_open starts one thread for both; hostile_close stops it.
 */
#ifndef MEMD_CLIENTS_MEMCTL_HOSTILE_H
#define MEMD_CLIENTS_MEMCTL_HOSTILE_H

#include <stdint.h>

struct hostile;

/* `path` of the daemon's Unix socket. 0 or -errno. */
int hostile_open(const char *path, struct hostile **ret_hostile);
/* NULL is fine. *ret_requests = requests that were sent and never read the answers of. */
void hostile_close(struct hostile *hostile, uint64_t *ret_requests);

#endif
