/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor.h — descriptors that come beside the bytes of a Unix socket (SCM_RIGHTS).
 *
 * A frame has room for one. What comes besides is counted and closed at once, so that a client can
 * make the daemon hold one descriptor for each frame that is under way, and no more.
 *
 * Threads  loop
 * Tests    tests/daemon/test_shared.py
 */
#ifndef MEMD_DAEMON_DESCRIPTOR_H
#define MEMD_DAEMON_DESCRIPTOR_H

#include <uv.h>

/* What came beside some bytes. */
struct descriptors {
    int fd;         /* the first, or -1; owned */
    unsigned count; /* that came */
};
#define DESCRIPTORS_NONE ((struct descriptors){ .fd = -1 })

/* Those that came with the read that the pipe just reported, behind what is there. MEMD_ENOMEM: it
 * is unknown which bytes the rest will be taken for. */
int descriptors_take(uv_pipe_t *pipe, struct descriptors *descriptors);

/* `from` behind `to`; nothing is left in `from`. */
void descriptors_move(struct descriptors *to, struct descriptors *from);

void descriptors_close(struct descriptors *descriptors);

#endif
