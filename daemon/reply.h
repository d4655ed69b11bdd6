/* SPDX-License-Identifier: Apache-2.0 */
/* reply.h — a finished request becomes bytes on its connection, without copying its tensors.
 *
 * Threads  loop
 */
#ifndef MEMD_DAEMON_REPLY_H
#define MEMD_DAEMON_REPLY_H

struct request;
struct error;

/* Send the packed answer, or the error when req->status is negative, then connection_release. */
void reply_send(struct request *req);

#endif
