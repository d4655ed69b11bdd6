/* SPDX-License-Identifier: Apache-2.0 */
/* op_verify.c — one bounded step of checking everything that is stored. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const Memd__VerifyRequest *in = (const Memd__VerifyRequest *)req->in;
    if (in->cursor.len > LIMIT_CURSOR_BYTES)
        return error_set(err, MEMD_ELIMIT, "cursor of %zu bytes, limit %u", in->cursor.len,
                         LIMIT_CURSOR_BYTES);
    struct verify_step step = { 0 };
    struct walk_args args = { .context_id = in->context_id,
                              .cursor = in->cursor.data,
                              .cursor_bytes = in->cursor.len };
    int rc = catalog_verify(req->server->catalog, &args, &req->arena, &step, err);
    if (rc < 0) return rc;
    Memd__VerifyReply reply = MEMD__VERIFY_REPLY__INIT;
    reply.cursor.data = (uint8_t *)step.cursor;
    reply.cursor.len = step.cursor_bytes;
    reply.values = step.values;
    reply.bytes = step.bytes;
    reply.values_total = step.values_total;
    reply.findings = step.findings;
    reply.n_findings = step.finding_count;
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_verify = { .run = run };
