/* SPDX-License-Identifier: Apache-2.0 */
/* rights.h — bytes with a descriptor beside them (SCM_RIGHTS), for the two places that send one. */
#ifndef MEMD_LIBMEMD_RIGHTS_H
#define MEMD_LIBMEMD_RIGHTS_H

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* As sendmsg without waiting; fd < 0: the bytes alone. The daemon takes a descriptor for the frame
 * in which these bytes end, so they are of one frame. */
static inline ssize_t rights_send(int socket, struct iovec *parts, size_t count, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = { .bytes = { 0 } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

#endif
