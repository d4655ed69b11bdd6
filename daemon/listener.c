/* SPDX-License-Identifier: Apache-2.0 */
/* listener.c — sockets are made by hand and given to libuv: it can neither set a mode before the
 * file is visible nor tell a stale file from a live one.
 *
 * When systemd hands sockets over, they are the only ones: the unit file then decides, not the
 * configuration. A TCP socket from systemd still needs a token file.
 */
#include "daemon/listener.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/object.h"
#include "daemon/notify.h"
#include "daemon/server.h"

enum { BACKLOG = 1024 };

static void on_connection(uv_stream_t *stream, int status)
{
    struct listener *listener = OBJECT_CAST(stream->data, LISTENER_MAGIC);
    if (status < 0) {
        log_event(LOG_WARN, "accept-failed", "listener=%s reason='%s'", listener->name,
                  uv_strerror(status));
        return;
    }
    server_accept(listener->server, listener);
}

/* Give a bound (or listening) socket to the loop. Takes the descriptor over in every case. */
static int add(struct server *server, int fd, bool is_tcp, const char *name, struct error *err)
{
    CLEANUP(close_fd) int owned = fd;
    if (server->listener_count == LISTENERS_MAX)
        return error_set(err, MEMD_ELIMIT, "more than %d listeners", LISTENERS_MAX);
    struct listener *listener = &server->listeners[server->listener_count];
    *listener = (struct listener){ .magic = LISTENER_MAGIC, .server = server, .is_tcp = is_tcp };
    snprintf(listener->name, sizeof listener->name, "%s", name);
    int rc = is_tcp ? uv_tcp_init(&server->loop, &listener->uv.tcp)
                    : uv_pipe_init(&server->loop, &listener->uv.pipe, 0);
    if (rc < 0) return error_set(err, MEMD_EIO, "%s: %s", name, uv_strerror(rc));
    listener->uv.handle.data = listener;
    listener->open = true;
    server->listener_count++;
    rc = is_tcp ? uv_tcp_open(&listener->uv.tcp, fd) : uv_pipe_open(&listener->uv.pipe, fd);
    if (rc < 0) return error_set(err, MEMD_EIO, "%s: %s", name, uv_strerror(rc));
    owned = -1;
    rc = uv_listen(&listener->uv.stream, BACKLOG, on_connection);
    if (rc < 0) return error_set(err, MEMD_EIO, "%s: %s", name, uv_strerror(rc));
    return 0;
}

/* Remove a socket file that nobody listens on. */
static int remove_stale(const struct sockaddr_un *address, struct error *err)
{
    const char *path = address->sun_path;
    struct stat info;
    if (lstat(path, &info) < 0)
        return errno == ENOENT ? 0 : error_set(err, MEMD_EIO, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(info.st_mode))
        return error_set(err, MEMD_EIO, "%s exists and is not a socket", path);
    CLEANUP(close_fd) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return error_set(err, MEMD_EIO, "socket: %s", strerror(errno));
    /* EAGAIN: it listens, and its queue is full. */
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno == EAGAIN)
        return error_set(err, MEMD_EIO, "%s: another process listens there", path);
    if (errno != ECONNREFUSED) return error_set(err, MEMD_EIO, "%s: %s", path, strerror(errno));
    if (unlink(path) < 0) return error_set(err, MEMD_EIO, "%s: %s", path, strerror(errno));
    return 0;
}

static int open_unix(struct server *server, struct error *err)
{
    const char *path = server->config.socket;
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(err, MEMD_EINVAL, "socket path of %zu bytes, limit %zu", strlen(path),
                         sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int rc = remove_stale(&address, err);
    if (rc < 0) return rc;
    mode_t mode = (mode_t)server->config.socket_mode;
    CLEANUP(close_fd) int fd =
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* Linux makes the file with the mode of the socket's own inode, cut by the umask; chmod widens.
     */
    bool ok = fd >= 0 && fchmod(fd, mode) == 0 &&
              bind(fd, (const struct sockaddr *)&address, sizeof address) == 0 &&
              chmod(path, mode) == 0;
    if (!ok) return error_set(err, MEMD_EIO, "socket = %s: %s", path, strerror(errno));
    char name[LISTENER_NAME_BYTES];
    snprintf(name, sizeof name, "unix:%.107s", address.sun_path);
    int given = fd;
    fd = -1;
    rc = add(server, given, false, name, err);
    if (rc < 0) return rc;
    struct listener *listener = &server->listeners[server->listener_count - 1];
    snprintf(listener->unlink_path, sizeof listener->unlink_path, "%.107s", address.sun_path);
    return 0;
}

static int open_address(struct server *server, const struct addrinfo *info, struct error *err)
{
    char host[INET6_ADDRSTRLEN + 8] = "", port[8] = "", name[LISTENER_NAME_BYTES];
    CLEANUP(close_fd) int fd =
        socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    bool ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0;
    if (ok && info->ai_family == AF_INET6)
        ok = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0;
    ok = ok && bind(fd, info->ai_addr, info->ai_addrlen) == 0;
    if (!ok)
        return error_set(err, MEMD_EIO, "listen = %s: %s", server->config.listen, strerror(errno));
    struct sockaddr_storage bound; /* port 0 becomes a real one */
    socklen_t bytes = sizeof bound;
    if (getsockname(fd, (struct sockaddr *)&bound, &bytes) < 0)
        return error_set(err, MEMD_EIO, "listen = %s: %s", server->config.listen, strerror(errno));
    getnameinfo((const struct sockaddr *)&bound, bytes, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(name, sizeof name, strchr(host, ':') != NULL ? "tcp:[%s]:%s" : "tcp:%s:%s", host,
             port);
    int given = fd;
    fd = -1;
    return add(server, given, true, name, err);
}

static void free_addresses(struct addrinfo **list)
{
    if (*list != NULL) freeaddrinfo(*list);
}

static int open_tcp(struct server *server, struct error *err)
{
    char host[CONFIG_TEXT_BYTES];
    snprintf(host, sizeof host, "%s", server->config.listen);
    char *colon = strrchr(host, ':');
    assert(colon != NULL); /* config_load checked */
    *colon = '\0';
    char *name = host;
    size_t length = strlen(host);
    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') { /* [::1]:7777 */
        host[length - 1] = '\0';
        name = host + 1;
    }
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
    CLEANUP(free_addresses) struct addrinfo *list = NULL;
    int failed = getaddrinfo(name[0] == '\0' ? NULL : name, colon + 1, &hints, &list);
    if (failed != 0)
        return error_set(err, MEMD_EINVAL, "listen = %s: %s", server->config.listen,
                         gai_strerror(failed));
    int rc = 0;
    for (const struct addrinfo *info = list; info != NULL && rc == 0; info = info->ai_next)
        rc = open_address(server, info, err);
    return rc;
}

static int open_given(struct server *server, int fd, struct error *err)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) < 0)
        return error_set(err, MEMD_EIO, "socket %d from systemd: %s", fd, strerror(errno));
    bool is_tcp = address.ss_family != AF_UNIX;
    if (is_tcp && server->config.token_file[0] == '\0')
        return error_set(err, MEMD_EINVAL,
                         "systemd hands over a TCP socket, but there is no token_file");
    char name[LISTENER_NAME_BYTES];
    if (is_tcp)
        snprintf(name, sizeof name, "tcp:systemd-%d", fd);
    else
        snprintf(name, sizeof name, "unix:%.200s", ((struct sockaddr_un *)&address)->sun_path);
    return add(server, fd, is_tcp, name, err);
}

int listener_open_all(struct server *server, struct error *err)
{
    int first = 0;
    int given = notify_listen_fds(&first);
    int rc = 0;
    for (int i = 0; i < given && rc == 0; i++) rc = open_given(server, first + i, err);
    if (given == 0 && server->config.socket[0] != '\0') rc = open_unix(server, err);
    if (given == 0 && rc == 0 && server->config.listen[0] != '\0') rc = open_tcp(server, err);
    for (size_t i = 0; rc == 0 && i < server->listener_count; i++)
        log_event(LOG_INFO, "listening", "on=%s%s", server->listeners[i].name,
                  given > 0 ? " from=systemd" : "");
    return rc;
}

void listener_close_all(struct server *server)
{
    for (size_t i = 0; i < server->listener_count; i++) {
        struct listener *listener = &server->listeners[i];
        if (!listener->open) continue;
        listener->open = false;
        if (listener->unlink_path[0] != '\0') unlink(listener->unlink_path);
        uv_close(&listener->uv.handle, NULL);
    }
}
