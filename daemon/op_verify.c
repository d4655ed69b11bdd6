/* SPDX-License-Identifier: Apache-2.0 */
/* op_verify.c — one bounded step of checking everything that is stored. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int run(struct request *req, struct error *err)
{
    const Memd__VerifyRequest *in = (const Memd__VerifyRequest *)req->in;
    struct verify_step step = { 0 };
    struct walk_args args;
    int rc = wire_decode_walk(in->context_id, &in->cursor, &args, err);
    if (rc == 0) rc = catalog_verify(req->server->catalog, &args, &req->arena, &step, err);
    if (rc < 0) return rc;
    Memd__VerifyReply reply = MEMD__VERIFY_REPLY__INIT;
    reply.cursor.data = (uint8_t *)step.cursor;
    reply.cursor.len = step.cursor_bytes;
    reply.values = step.values;
    reply.bytes = step.bytes;
    reply.values_total = step.values_total;
    reply.findings = step.findings;
    reply.n_findings = step.finding_count;
    reply.unchecked = step.unchecked;
    reply.n_unchecked = step.unchecked_count;
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_verify = { .run = run };
