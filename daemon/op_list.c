/* SPDX-License-Identifier: Apache-2.0 */
/* op_list.c — contexts by name, a page at a time. */
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int run(struct request *req, struct error *err)
{
    const Memd__ListRequest *in = (const Memd__ListRequest *)req->in;
    if (strlen(in->prefix) > LIMIT_NAME_BYTES || strlen(in->after) > LIMIT_NAME_BYTES)
        return error_set(err, MEMD_ELIMIT, "prefix or after is longer than %u bytes",
                         LIMIT_NAME_BYTES);
    struct list_args args = { .prefix = in->prefix, .after = in->after, .limit = in->limit };
    struct list_page page = { 0 };
    int rc = catalog_list(req->server->catalog, &args, &req->arena, &page, err);
    if (rc < 0) return rc;
    Memd__ListReply reply = MEMD__LIST_REPLY__INIT;
    reply.more = page.more;
    reply.contexts = arena_calloc(&req->arena, page.count, sizeof(Memd__ContextInfo *));
    if (reply.contexts == NULL) return wire_no_memory(err);
    for (; reply.n_contexts < page.count; reply.n_contexts++) {
        Memd__ContextInfo *info = wire_encode_info(&page.infos[reply.n_contexts], &req->arena);
        if (info == NULL) return wire_no_memory(err);
        reply.contexts[reply.n_contexts] = info;
    }
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_list = { .run = run };
