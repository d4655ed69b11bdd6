/* SPDX-License-Identifier: Apache-2.0 */
/* query.h — what Attend items and Search requests have in common: a context, a layer, queries,
 * positions.
 *
 * Errors   MEMD_EINVAL layer, counts · MEMD_ESHAPE q · MEMD_ELIMIT queries, positions
 * Threads  any
 */
#ifndef MEMD_DAEMON_QUERY_H
#define MEMD_DAEMON_QUERY_H

#include <stddef.h>
#include <stdint.h>

#include "memory/context.h"
#include "proto/message.h"

struct error;
struct request;

struct query_message {
    uint32_t layer;
    const Memd__Tensor *q;
    const uint64_t *positions, *limits;
    size_t position_count, limit_count;
};

/* Check against the context's model; `stop` of the query asks the request. */
int query_decode(struct request *req, const struct query_message *message, struct context *context,
                 struct query *ret_query, struct error *err);

#endif
