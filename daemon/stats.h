/* SPDX-License-Identifier: Apache-2.0 */
/* stats.h — counters and latency histograms per method; names ending in _total only grow.
 *
 * Latency counts from the last byte of the request to the moment its reply is handed to the socket.
 * Threads  loop
 */
#ifndef MEMD_DAEMON_STATS_H
#define MEMD_DAEMON_STATS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/method.h"

struct request;

enum stats_method {
#define X(NAME, number, snake, Message, role) STATS_##NAME,
    METHOD_MAP(X)
#undef X
    STATS_UNKNOWN,
    STATS_METHOD_COUNT,
};

enum stats_error {
#define X(name, value, text) STATS_##name,
    ERROR_MAP(X)
#undef X
    STATS_ERROR_COUNT,
};

enum { STATS_BOUNDS = 19 };
extern const double stats_bounds[STATS_BOUNDS]; /* seconds, ascending */

struct stats_latency {
    uint64_t counts[STATS_BOUNDS + 1];
    double sum; /* seconds */
};

struct stats {
    uint64_t connections_total, connections_refused_total;
    uint64_t received_bytes_total, sent_bytes_total;
    uint64_t inline_total;
    uint64_t requests[STATS_METHOD_COUNT];
    uint64_t errors[STATS_ERROR_COUNT];
    struct stats_latency latency[STATS_METHOD_COUNT];
};

/* The request has its answer. */
void stats_record(struct stats *stats, const struct request *req);

const char *stats_method_name(size_t method); /* "append", "unknown" */
const char *stats_error_name(size_t error);   /* "ebusy" */

#endif
