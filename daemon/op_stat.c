/* SPDX-License-Identifier: Apache-2.0 */
/* op_stat.c — one context, by number or by name. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int find(struct request *req, const Memd__StatRequest *in, uint64_t *ret_id,
                struct error *err)
{
    bool named = in->name[0] != '\0';
    if (named == (in->context_id != 0))
        return error_set(err, MEMD_EINVAL, "stat needs either a context id or a name");
    if (!named) {
        *ret_id = in->context_id;
        return 0;
    }
    if (!message_name_ok(in->name))
        return error_set(err, MEMD_EINVAL, "not a context name");
    return catalog_find(req->server->catalog, in->name, ret_id, err);
}

static int run(struct request *req, struct error *err)
{
    uint64_t id = 0;
    int rc = find(req, (const Memd__StatRequest *)req->in, &id, err);
    struct context_info info;
    if (rc == 0) rc = catalog_stat(req->server->catalog, id, &req->arena, &info, err);
    if (rc < 0) return rc;
    Memd__StatReply reply = MEMD__STAT_REPLY__INIT;
    reply.context = wire_encode_info(&info, &req->arena);
    if (reply.context == NULL) return wire_no_memory(err);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_stat = { .run = run };
