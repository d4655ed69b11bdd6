/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor.c — through the pipes of libuv that are made for passing handles.
 *
 * On Unix such a pipe has no framing of its own: it reads with recvmsg instead of read, and keeps
 * descriptors until somebody accepts them into a handle. Handle and kind do not matter to it, so a
 * handle that is closed again at once carries a copy to us. Without that flag libuv calls read, and
 * the kernel closes the descriptors that came.
 *
 * Rejected: recvmsg of our own in the allocation callback (a connection that is closed there is
 * called back through a pointer that libuv has cleared), or with uv_poll on a copy of the socket (a
 * second descriptor for each connection, and writing would still be libuv's).
 */
#include "daemon/descriptor.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"

static void on_closed(uv_handle_t *handle)
{
    free(handle);
}

int descriptors_take(uv_pipe_t *pipe, struct descriptors *descriptors)
{
    while (uv_pipe_pending_count(pipe) > 0) {
        uv_pipe_t *carrier = malloc(sizeof *carrier);
        if (carrier == NULL) return MEMD_ENOMEM;
        if (uv_pipe_init(pipe->loop, carrier, 0) < 0) {
            free(carrier);
            return MEMD_ENOMEM;
        }
        uv_os_fd_t fd = -1;
        if (uv_accept((uv_stream_t *)pipe, (uv_stream_t *)carrier) == 0 &&
            uv_fileno((uv_handle_t *)carrier, &fd) == 0 && descriptors->fd < 0)
            descriptors->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        descriptors->count++;
        uv_close((uv_handle_t *)carrier, on_closed);
    }
    return 0;
}

void descriptors_move(struct descriptors *to, struct descriptors *from)
{
    to->count += from->count;
    if (to->fd < 0) {
        to->fd = from->fd;
        from->fd = -1;
    }
    descriptors_close(from);
}

void descriptors_close(struct descriptors *descriptors)
{
    if (descriptors->fd >= 0) close(descriptors->fd);
    *descriptors = DESCRIPTORS_NONE;
}
