/* SPDX-License-Identifier: Apache-2.0 */
/* listener.h — listening sockets: Unix with a mode, TCP, or handed over by systemd.
 *
 * A socket file that nobody listens on any more is replaced; one that answers, or a file of another
 * kind, is an error. The file is made with its final mode: there is no moment at which it is wider.
 *
 * Threads  loop
 * Errors   MEMD_EIO with path or address and the system's reason · MEMD_EINVAL bad address
 */
#ifndef MEMD_DAEMON_LISTENER_H
#define MEMD_DAEMON_LISTENER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct config;
struct error;
struct server;

#define LISTENER_MAGIC UINT32_C(0x4E53494C)

enum { LISTENERS_MAX = 8, LISTENER_NAME_BYTES = 256 };

struct listener {
    uint32_t magic;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } uv;
    struct server *server;
    bool is_tcp;
    bool open;
    char name[LISTENER_NAME_BYTES]; /* "unix:/run/…", "tcp:127.0.0.1:7777" */
    char unlink_path[LISTENER_NAME_BYTES]; /* "" when systemd owns the file */
};

/* All listeners that the configuration or systemd asks for, in server->listeners. */
int listener_open_all(struct server *server, struct error *err);

/* Stop accepting and remove our socket files. May be called again. */
void listener_close_all(struct server *server);

#endif
