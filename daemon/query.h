/* SPDX-License-Identifier: Apache-2.0 */
/* query.h — what Attend items and Search requests have in common: a context, a layer, queries,
 * positions, and how good the answer has to be.
 *
 * Errors   MEMD_EINVAL layer, target_error · MEMD_ESHAPE q, counts · MEMD_ELIMIT queries, positions
 * Threads  any
 */
#ifndef MEMD_DAEMON_QUERY_H
#define MEMD_DAEMON_QUERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory/context.h"
#include "proto/message.h"

struct error;
struct request;

#define QUERY_TARGET_ERROR_MAX 1.0

/* What a request wants instead of what its context's parameters say. */
struct query_wish {
    bool has_target_error, has_max_bytes;
    double target_error;
    uint64_t max_bytes; /* 0 = no bound */
};
#define QUERY_WISH(message, PREFIX)                                                         \
    (struct query_wish)                                                                     \
    {                                                                                       \
        .has_target_error = (message)->target_case == PREFIX##__TARGET_TARGET_ERROR,        \
        .has_max_bytes = (message)->budget_case == PREFIX##__BUDGET_MAX_BYTES,              \
        .target_error = (message)->target_error, .max_bytes = (message)->max_bytes          \
    }

/* In the terms of struct query, where below 0, and 0 bytes, mean the context's parameters. */
int query_decode_wish(const struct query_wish *wish, double *ret_target_error,
                      uint64_t *ret_max_bytes, struct error *err);

struct query_message {
    uint32_t layer;
    const Memd__Tensor *q;
    const uint64_t *positions, *limits;
    size_t position_count, limit_count;
    struct query_wish wish;
    const Memd__Tensor *states; /* or NULL */
};

/* Check against the context's model; `stop` of the query asks the request. */
int query_decode(struct request *req, const struct query_message *message, struct context *context,
                 struct query *ret_query, struct error *err);

#endif
