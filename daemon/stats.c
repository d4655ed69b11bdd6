/* SPDX-License-Identifier: Apache-2.0 */
/* stats.c — plain counters: one thread writes and reads them. */
#include "daemon/stats.h"

#include "base/clock.h"
#include "daemon/request.h"

const double stats_bounds[STATS_BOUNDS] = { 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3,
                                            2e-3,  5e-3,  10e-3, 20e-3,  50e-3,  0.1,    0.2,
                                            0.5,   1.0,   2.0,   5.0,    10.0 };

static enum stats_method method_slot(unsigned method)
{
    switch (method) {
#define X(NAME, number, snake, Message, role) \
    case number: return STATS_##NAME;
        METHOD_MAP(X)
#undef X
    default: return STATS_UNKNOWN;
    }
}

const char *stats_method_name(size_t method)
{
    static const char *const names[STATS_METHOD_COUNT] = {
#define X(NAME, number, snake, Message, role) [STATS_##NAME] = #snake,
        METHOD_MAP(X)
#undef X
        [STATS_UNKNOWN] = "unknown",
    };
    return names[method];
}

static enum stats_error error_slot(int code)
{
    switch (code) {
#define X(name, value, text) \
    case value: return STATS_##name;
        ERROR_MAP(X)
#undef X
    default: return STATS_ERROR_COUNT;
    }
}

const char *stats_error_name(size_t error)
{
    static const char *const names[STATS_ERROR_COUNT] = {
#define X(name, value, text) [STATS_##name] = #name,
        ERROR_MAP(X)
#undef X
    };
    return names[error];
}

void stats_record(struct stats *stats, const struct request *req)
{
    enum stats_method method = method_slot(req->frame.method);
    stats->requests[method]++;
    int failure = req->status < 0 ? req->status : req->item_failure;
    enum stats_error error = error_slot(failure);
    if (error < STATS_ERROR_COUNT) stats->errors[error]++;
    double seconds = (double)(clock_monotonic_ns() - req->complete_ns) * 1e-9;
    size_t bucket = 0;
    while (bucket < STATS_BOUNDS && seconds > stats_bounds[bucket]) bucket++;
    stats->latency[method].counts[bucket]++;
    stats->latency[method].sum += seconds;
}
