/* SPDX-License-Identifier: Apache-2.0 */
/* op_pin.c — keep a context from eviction for a while; never for ever, so that a dead client cannot
 * wedge the budget.
 */
#include <inttypes.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"

static int run(struct request *req, struct error *err)
{
    const Memd__PinRequest *in = (const Memd__PinRequest *)req->in;
    if (in->seconds > LIMIT_PIN_SECONDS)
        return error_set(err, MEMD_ELIMIT, "%" PRIu64 " seconds, limit %" PRIu64, in->seconds,
                         (uint64_t)LIMIT_PIN_SECONDS);
    Memd__PinReply reply = MEMD__PIN_REPLY__INIT;
    int rc = catalog_retain(req->server->catalog, in->context_id, in->seconds, &reply.until_unix_ms,
                            err);
    return rc < 0 ? rc : request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_pin = { .run = run, .ordered = true };
