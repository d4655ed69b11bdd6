/* SPDX-License-Identifier: Apache-2.0 */
/* op_stats.c — every counter by name. Names ending in _total only grow; the others are of this
 * moment. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

enum { COUNTERS_MAX = 128, NAME_BYTES = 64 };

/* The first failure empties the list for good: the caller looks once. */
struct writer {
    struct arena *arena;
    Memd__Counter **counters;
    size_t count;
    bool failed;
};

/* In small letters: error codes are written in capitals, counters are not. */
static char *join(struct arena *arena, const char *prefix, const char *name, const char *suffix)
{
    char text[NAME_BYTES];
    int bytes = snprintf(text, sizeof text, "%s%s%s", prefix, name, suffix);
    for (int i = 0; i < bytes; i++) text[i] = (char)tolower((unsigned char)text[i]);
    return arena_strndup(arena, text, (size_t)bytes);
}

static void put(struct writer *out, char *name, uint64_t value)
{
    Memd__Counter *counter = arena_alloc(out->arena, sizeof *counter);
    if (name == NULL || counter == NULL || out->count == COUNTERS_MAX) {
        out->failed = true;
        return;
    }
    *counter = (Memd__Counter)MEMD__COUNTER__INIT;
    counter->name = name;
    counter->value = value;
    out->counters[out->count++] = counter;
}

static void put_server(struct writer *out, struct server *server)
{
    const struct stats *stats = &server->stats;
    put(out, (char *)"connections", server->connection_count);
    put(out, (char *)"connections_total", stats->connections_total);
    put(out, (char *)"connections_refused_total", stats->connections_refused_total);
    put(out, (char *)"received_bytes_total", stats->received_bytes_total);
    put(out, (char *)"sent_bytes_total", stats->sent_bytes_total);
    put(out, (char *)"requests_active", server->requests_active);
    put(out, (char *)"requests_inline_total", stats->inline_total);
    put(out, (char *)"queue_depth", pool_queued(server->pool));
    put(out, (char *)"memory_in_flight_bytes", server->memory_bytes);
    for (size_t i = 0; i < STATS_METHODS; i++)
        put(out, join(out->arena, "requests_", stats_method_name(i), "_total"), stats->requests[i]);
    for (size_t i = 0; i < STATS_ERRORS; i++)
        put(out, join(out->arena, "errors_", stats_error_name(i), "_total"), stats->errors[i]);
}

static void put_catalog(struct writer *out, struct server *server)
{
    struct catalog_stats catalog;
    catalog_get_stats(server->catalog, &catalog);
#define X(field) put(out, (char *)#field, catalog.field);
    CATALOG_GAUGE_MAP(X)
    CATALOG_COUNTER_MAP(X)
#undef X
}

static Memd__Histogram *make_histogram(struct arena *arena, const char *method,
                                       const struct stats_latency *latency)
{
    Memd__Histogram *histogram = arena_alloc(arena, sizeof *histogram);
    char *name = join(arena, "request_seconds_", method, "");
    uint64_t *counts = arena_calloc(arena, STATS_BOUNDS + 1, sizeof *counts);
    if (histogram == NULL || name == NULL || counts == NULL) return NULL;
    memcpy(counts, latency->counts, sizeof latency->counts);
    *histogram = (Memd__Histogram)MEMD__HISTOGRAM__INIT;
    histogram->name = name;
    histogram->bounds = (double *)stats_bounds;
    histogram->n_bounds = STATS_BOUNDS;
    histogram->counts = counts;
    histogram->n_counts = STATS_BOUNDS + 1;
    histogram->sum = latency->sum;
    return histogram;
}

static int run(struct request *req, struct error *err)
{
    struct server *server = req->server;
    Memd__StatsReply reply = MEMD__STATS_REPLY__INIT;
    struct writer out = { .arena = &req->arena };
    out.counters = arena_calloc(&req->arena, COUNTERS_MAX, sizeof(Memd__Counter *));
    reply.histograms = arena_calloc(&req->arena, STATS_METHODS, sizeof(Memd__Histogram *));
    if (out.counters == NULL || reply.histograms == NULL) return wire_no_memory(err);
    put_server(&out, server);
    put_catalog(&out, server);
    if (out.failed) return wire_no_memory(err);
    reply.counters = out.counters;
    reply.n_counters = out.count;
    for (; reply.n_histograms < STATS_METHODS; reply.n_histograms++) {
        size_t method = reply.n_histograms;
        reply.histograms[method] = make_histogram(&req->arena, stats_method_name(method),
                                                  &server->stats.latency[method]);
        if (reply.histograms[method] == NULL) return wire_no_memory(err);
    }
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_stats = { .run = run,
                                           .is_tiny = dispatch_always_tiny,
                                           .while_draining = true };
