/* SPDX-License-Identifier: Apache-2.0 */
/* op_rebuild.c — one bounded step of deleting what can be made again, or a look at how far it is.
 *
 * Rejected: one long request that ends when everything is built. It would hold a worker for
 * minutes, and who asks wants to see progress anyway.
 */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int decode(const struct request *req, const Memd__RebuildRequest *in,
                  struct walk_args *ret_args, struct error *err)
{
    if (!in->ask && req->role < ROLE_ADMIN)
        return error_set(err, MEMD_EPERM, "deleting derived data needs role admin");
    int rc = wire_decode_walk(in->context_id, &in->cursor, ret_args, err);
    if (rc < 0) return rc;
    if (in->ask && in->context_id == 0)
        return error_set(err, MEMD_EINVAL, "asking how far it is needs a context id");
    if (in->ask && in->cursor.len > 0)
        return error_set(err, MEMD_EINVAL, "asking how far it is takes no cursor");
    return 0;
}

static int run(struct request *req, struct error *err)
{
    const Memd__RebuildRequest *in = (const Memd__RebuildRequest *)req->in;
    struct catalog *catalog = req->server->catalog;
    struct rebuild_step step = { .context_id = in->context_id };
    struct walk_args args;
    int rc = decode(req, in, &args, err);
    if (rc == 0 && !in->ask) rc = catalog_rebuild(catalog, &args, &req->arena, &step, err);
    struct build_progress progress = { 0 };
    if (rc == 0 && step.context_id != 0)
        rc = catalog_built(catalog, step.context_id, &progress, err);
    if (rc < 0) return rc;

    Memd__RebuildReply reply = MEMD__REBUILD_REPLY__INIT;
    reply.cursor.data = (uint8_t *)step.cursor;
    reply.cursor.len = step.cursor_bytes;
    reply.context_id = step.context_id;
    reply.deleted_segments = step.segments;
    reply.deleted_bytes = step.bytes;
    reply.segments = progress.segments;
    reply.built_segments = progress.built;
    reply.indexes = progress.indexes;
    reply.built_indexes = progress.built_indexes;
    reply.failures = progress.failures;
    if (progress.last_failure != 0) reply.failure = (char *)error_text(progress.last_failure);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_rebuild = { .run = run };
