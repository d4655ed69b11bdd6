/* SPDX-License-Identifier: Apache-2.0 */
/* op_stats.c — every counter and histogram by name. Names ending in _total only grow; the others
 * are of this moment. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "daemon/answers.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

enum { COUNTERS_MAX = 192, NAME_BYTES = 64 };

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
    uint64_t regions = 0, bytes = 0;
    region_table_count(&server->regions, &regions, &bytes);
    put(out, (char *)"shared_regions", regions);
    put(out, (char *)"shared_bytes", bytes);
    put(out, (char *)"shared_read_bytes_total", atomic_load(&server->regions.read_bytes));
    put(out, (char *)"shared_written_bytes_total", atomic_load(&server->regions.written_bytes));
    for (size_t i = 0; i < STATS_METHOD_COUNT; i++)
        put(out, join(out->arena, "requests_", stats_method_name(i), "_total"), stats->requests[i]);
    for (size_t i = 0; i < STATS_ERROR_COUNT; i++)
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

/* Zeros without a device: who watches them need not know. */
static void put_device(struct writer *out, struct server *server)
{
    struct accelerator_stats device = { 0 };
    if (server->backend.accelerator != NULL)
        accelerator_get_stats(server->backend.accelerator, &device);
#define X(field) put(out, (char *)"device_" #field, device.field);
    ACCELERATOR_COUNTER_MAP(X)
#undef X
    put(out, (char *)"device_window_bytes", device.window_bytes);
    put(out, (char *)"device_windows", device.windows);
}

static void put_answers(struct writer *out, const struct answers *answers)
{
    static const char *const levels[INDEX_LEVELS] = {
#define X(NAME, text) [INDEX_##NAME] = (text),
        INDEX_LEVEL_MAP(X)
#undef X
    };
    put(out, (char *)"answers_limited_total", atomic_load(&answers->limited));
    put(out, (char *)"answers_unpredicted_total", atomic_load(&answers->unpredicted));
    for (size_t i = 0; i < INDEX_LEVELS; i++)
        put(out, join(out->arena, "attend_bytes_", levels[i], "_total"),
            atomic_load(&answers->level_bytes[i]));
}

/* With `bound_count` + 1 counts to be filled in; NULL without memory. */
static Memd__Histogram *make_histogram(struct arena *arena, char *name, const double *bounds,
                                       size_t bound_count)
{
    Memd__Histogram *histogram = arena_alloc(arena, sizeof *histogram);
    uint64_t *counts = arena_calloc(arena, bound_count + 1, sizeof *counts);
    if (histogram == NULL || name == NULL || counts == NULL) return NULL;
    *histogram = (Memd__Histogram)MEMD__HISTOGRAM__INIT;
    histogram->name = name;
    histogram->bounds = (double *)bounds;
    histogram->n_bounds = bound_count;
    histogram->counts = counts;
    histogram->n_counts = bound_count + 1;
    return histogram;
}

static int add_latencies(struct arena *arena, const struct stats *stats, Memd__StatsReply *reply)
{
    for (size_t method = 0; method < STATS_METHOD_COUNT; method++) {
        const struct stats_latency *latency = &stats->latency[method];
        char *name = join(arena, "request_seconds_", stats_method_name(method), "");
        Memd__Histogram *histogram = make_histogram(arena, name, stats_bounds, STATS_BOUNDS);
        if (histogram == NULL) return MEMD_ENOMEM;
        memcpy(histogram->counts, latency->counts, sizeof latency->counts);
        histogram->sum = latency->sum;
        reply->histograms[reply->n_histograms++] = histogram;
    }
    return 0;
}

/* One of a layer: "attend_bytes_share_layer_7". Layers that nobody asked have none. */
static int add_answers(struct arena *arena, const struct answers *answers, size_t layer,
                       Memd__StatsReply *reply)
{
    char suffix[32];
    snprintf(suffix, sizeof suffix, "_layer_%zu", layer);
    for (enum answers_kind kind = 0; kind < ANSWERS_KINDS; kind++) {
        const struct answers_histogram *from = &answers->layers[layer][kind];
        char *name = join(arena, "attend_", answers_kind_name(kind), suffix);
        Memd__Histogram *histogram =
            make_histogram(arena, name, answers_bounds(kind), ANSWERS_BOUNDS);
        if (histogram == NULL) return MEMD_ENOMEM;
        uint64_t total = 0;
        for (size_t i = 0; i <= ANSWERS_BOUNDS; i++)
            total += histogram->counts[i] = atomic_load(&from->counts[i]);
        histogram->sum = (double)atomic_load(&from->sum_ppb) * 1e-9;
        if (total > 0) reply->histograms[reply->n_histograms++] = histogram;
    }
    return 0;
}

static int run(struct request *req, struct error *err)
{
    struct server *server = req->server;
    Memd__StatsReply reply = MEMD__STATS_REPLY__INIT;
    struct writer out = { .arena = &req->arena };
    out.counters = arena_calloc(&req->arena, COUNTERS_MAX, sizeof(Memd__Counter *));
    size_t layers = (size_t)atomic_load(&server->answers->layer_limit);
    reply.histograms = arena_calloc(&req->arena, STATS_METHOD_COUNT + layers * ANSWERS_KINDS,
                                    sizeof(Memd__Histogram *));
    if (out.counters == NULL || reply.histograms == NULL) return wire_no_memory(err);
    put_server(&out, server);
    put_catalog(&out, server);
    put_device(&out, server);
    put_answers(&out, server->answers);
    if (out.failed) return wire_no_memory(err);
    reply.counters = out.counters;
    reply.n_counters = out.count;
    int rc = add_latencies(&req->arena, &server->stats, &reply);
    for (size_t i = 0; rc == 0 && i < layers; i++)
        rc = add_answers(&req->arena, server->answers, i, &reply);
    if (rc < 0) return wire_no_memory(err);
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_stats = { .run = run,
                                           .is_tiny = dispatch_always_tiny,
                                           .while_draining = true };
