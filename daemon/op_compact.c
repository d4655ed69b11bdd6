/* SPDX-License-Identifier: Apache-2.0 */
/* op_compact.c — a compacted copy in a new directory on the daemon's host. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const Memd__CompactRequest *in = (const Memd__CompactRequest *)req->in;
    if (in->path[0] != '/')
        return error_set(err, MEMD_EINVAL,
                         "path must be absolute: the daemon's directory is not yours");
    Memd__CompactReply reply = MEMD__COMPACT_REPLY__INIT;
    int rc = catalog_compact(req->server->catalog, in->path, &reply.bytes_before,
                             &reply.bytes_after, err);
    return rc < 0 ? rc : request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_compact = { .run = run };
