/* SPDX-License-Identifier: Apache-2.0 */
/* admin.c — what an operator asks: hello, health, status, stats, verify, dump, recall, rebuild,
 * compact, drain. */
#include "clients/libmemd/client.h"
#include "clients/libmemd/wire.h"
#include "proto/limits.h"
#include "proto/method.h"

/* ---- hello and health ---- */

static int place_hello(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__HelloReply *reply = (const Memd__HelloReply *)message;
    struct memd_hello *hello = ticket_result(ticket, 1, sizeof *hello);
    if (hello == NULL) return MEMD_ENOMEM;
    *hello = (struct memd_hello){
        .version = reply->version,
        .build = reply->build,
        .role = reply->role,
        .features = (const char *const *)reply->features,
        .feature_count = reply->n_features,
        .methods = (const char *const *)reply->methods,
        .method_count = reply->n_methods,
        .message_bytes_max = reply->frame_message_max,
        .payload_bytes_max = reply->frame_payload_max,
        .requests_in_flight_max = reply->requests_in_flight_max,
    };
    return 0;
}

int memd_hello(struct memd_client *client, const struct memd_hello **ret_hello,
               struct memd_error *err)
{
    Memd__HelloRequest request = MEMD__HELLO_REQUEST__INIT;
    request.version = FRAME_VERSION;
    request.client = client->target.client_name;
    request.token = client->target.token;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_HELLO, true, &request.base, place_hello },
                        &result, err);
    if (rc == 0) *ret_hello = result;
    return rc;
}

static int place_health(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__HealthReply *reply = (const Memd__HealthReply *)message;
    struct memd_health *health = ticket_result(ticket, 1, sizeof *health);
    if (health == NULL) return MEMD_ENOMEM;
    *health = (struct memd_health){ .live = reply->live,
                                    .ready = reply->ready,
                                    .draining = reply->draining,
                                    .reason = reply->reason };
    return 0;
}

int memd_health(struct memd_client *client, const struct memd_health **ret_health,
                struct memd_error *err)
{
    Memd__HealthRequest request = MEMD__HEALTH_REQUEST__INIT;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_HEALTH, true, &request.base,
                                                   place_health },
                        &result, err);
    if (rc == 0) *ret_health = result;
    return rc;
}

/* ---- status and stats ---- */

static int place_status(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__StatusReply *reply = (const Memd__StatusReply *)message;
    struct memd_status *status = ticket_result(ticket, 1, sizeof *status);
    if (status == NULL) return MEMD_ENOMEM;
    *status = (struct memd_status){
        .build = reply->build,
        .pid = reply->pid,
        .uptime_ms = reply->uptime_ms,
        .data = reply->data,
        .listeners = (const char *const *)reply->listeners,
        .listener_count = reply->n_listeners,
        .sync = reply->sync,
        .simd = reply->simd,
        .workers = reply->workers,
        .connections = reply->connections,
        .contexts = reply->contexts,
        .stored_bytes = reply->stored_bytes,
        .budget_bytes = reply->budget_bytes,
        .map_bytes = reply->map_bytes,
        .map_used_bytes = reply->map_used_bytes,
        .file_bytes = reply->file_bytes,
        .backend = reply->backend,
        .backend_reason = reply->backend_reason,
        .draining = reply->draining,
        .shared_regions = reply->shared_regions,
        .shared_bytes = reply->shared_bytes,
        .shared_bytes_max = reply->shared_bytes_max,
        .damaged_drops = reply->damaged_drops,
        .damaged_pages = reply->damaged_pages,
    };
    return 0;
}

int memd_status(struct memd_client *client, const struct memd_status **ret_status,
                struct memd_error *err)
{
    Memd__StatusRequest request = MEMD__STATUS_REQUEST__INIT;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_STATUS, true, &request.base,
                                                   place_status },
                        &result, err);
    if (rc == 0) *ret_status = result;
    return rc;
}

static int read_histogram(struct memd_ticket *ticket, const Memd__Histogram *wire,
                          struct memd_histogram *ret_histogram)
{
    if (wire->n_counts != wire->n_bounds + 1) {
        return error_set(&ticket->err, MEMD_EPROTO,
                         "histogram '%.60s' has %zu bounds and %zu counts", wire->name,
                         wire->n_bounds, wire->n_counts);
    }
    *ret_histogram = (struct memd_histogram){ .name = wire->name,
                                              .bounds = wire->bounds,
                                              .counts = wire->counts,
                                              .bound_count = wire->n_bounds,
                                              .sum = wire->sum };
    return 0;
}

static int place_stats(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__StatsReply *reply = (const Memd__StatsReply *)message;
    struct memd_stats *stats = ticket_result(ticket, 1, sizeof *stats);
    struct memd_counter *counters = ticket_alloc(ticket, reply->n_counters, sizeof *counters);
    struct memd_histogram *histograms = ticket_alloc(ticket, reply->n_histograms,
                                                     sizeof *histograms);
    if (stats == NULL || counters == NULL || histograms == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < reply->n_counters; i++) {
        counters[i] = (struct memd_counter){ .name = reply->counters[i]->name,
                                             .value = reply->counters[i]->value };
    }
    for (size_t i = 0; i < reply->n_histograms; i++) {
        int rc = read_histogram(ticket, reply->histograms[i], &histograms[i]);
        if (rc < 0) return rc;
    }
    *stats = (struct memd_stats){ .counters = counters,
                                  .counter_count = reply->n_counters,
                                  .histograms = histograms,
                                  .histogram_count = reply->n_histograms };
    return 0;
}

int memd_stats(struct memd_client *client, const struct memd_stats **ret_stats,
               struct memd_error *err)
{
    Memd__StatsRequest request = MEMD__STATS_REQUEST__INIT;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_STATS, true, &request.base, place_stats },
                        &result, err);
    if (rc == 0) *ret_stats = result;
    return rc;
}

/* ---- verify and dump: walks in steps ---- */

static int place_verify(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__VerifyReply *reply = (const Memd__VerifyReply *)message;
    struct memd_verify *verify = ticket_result(ticket, 1, sizeof *verify);
    if (verify == NULL) return MEMD_ENOMEM;
    *verify = (struct memd_verify){
        .next = { reply->cursor.data, reply->cursor.len },
        .values = reply->values,
        .bytes = reply->bytes,
        .values_total = reply->values_total,
        .findings = (const char *const *)reply->findings,
        .finding_count = reply->n_findings,
        .unchecked = (const char *const *)reply->unchecked,
        .unchecked_count = reply->n_unchecked,
    };
    return 0;
}

int memd_verify(struct memd_client *client, uint64_t context_id, struct memd_cursor cursor,
                const struct memd_verify **ret_verify, struct memd_error *err)
{
    Memd__VerifyRequest request = MEMD__VERIFY_REQUEST__INIT;
    request.context_id = context_id;
    request.cursor = (ProtobufCBinaryData){ .len = cursor.bytes, .data = (uint8_t *)cursor.data };
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_VERIFY, true, &request.base,
                                                   place_verify },
                        &result, err);
    if (rc == 0) *ret_verify = result;
    return rc;
}

static int place_dump(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__DumpReply *reply = (const Memd__DumpReply *)message;
    struct memd_dump *dump = ticket_result(ticket, 1, sizeof *dump);
    struct memd_record *records = ticket_alloc(ticket, reply->n_records, sizeof *records);
    if (dump == NULL || records == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < reply->n_records; i++) {
        const Memd__Record *wire = reply->records[i];
        records[i] = (struct memd_record){
            .table = wire->table, .key = wire->key, .summary = wire->summary, .bytes = wire->bytes
        };
    }
    *dump = (struct memd_dump){ .next = { reply->cursor.data, reply->cursor.len },
                                .records = records,
                                .count = reply->n_records };
    return 0;
}

int memd_dump(struct memd_client *client, const struct memd_dump_args *args,
              const struct memd_dump **ret_dump, struct memd_error *err)
{
    Memd__DumpRequest request = MEMD__DUMP_REQUEST__INIT;
    request.context_id = args->context_id;
    request.cursor = (ProtobufCBinaryData){ .len = args->cursor.bytes,
                                            .data = (uint8_t *)args->cursor.data };
    request.limit = args->limit == 0 ? LIMIT_LIST : args->limit;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_DUMP, true, &request.base, place_dump },
                        &result, err);
    if (rc == 0) *ret_dump = result;
    return rc;
}

/* ---- recall and rebuild ---- */

static struct memd_summary read_summary(const Memd__ErrorSummary *wire)
{
    if (wire == NULL) return (struct memd_summary){ .mean = 0 };
    return (struct memd_summary){ .mean = wire->mean, .p50 = wire->p50, .p90 = wire->p90,
                                  .p99 = wire->p99, .max = wire->max };
}

static int check_levels(struct memd_ticket *ticket, const char *what, size_t count)
{
    if (count == 0 || count == MEMD_LEVELS) return 0;
    return error_set(&ticket->err, MEMD_EPROTO, "%zu values of %s, must be %d or none", count, what,
                     MEMD_LEVELS);
}

static int place_recall(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__RecallReply *reply = (const Memd__RecallReply *)message;
    int rc = check_levels(ticket, "level_mass", reply->n_level_mass);
    if (rc == 0) rc = check_levels(ticket, "level_bytes", reply->n_level_bytes);
    if (rc < 0) return rc;
    struct memd_recall *recall = ticket_result(ticket, 1, sizeof *recall);
    if (recall == NULL) return MEMD_ENOMEM;
    *recall = (struct memd_recall){
        .method = reply->method,
        .target_error = reply->target_error,
        .queries = reply->queries,
        .answers = reply->answers,
        .tokens = reply->tokens,
        .error = read_summary(reply->error),
        .lse_error_max = reply->lse_error_max,
        .predicted = reply->predicted,
        .predicted_mean = reply->predicted_mean,
        .ratio_median = reply->ratio_median,
        .within_twice = reply->within_twice,
        .bytes_read = reply->bytes_read,
        .bytes_exact = reply->bytes_exact,
    };
    for (size_t i = 0; i < reply->n_level_mass; i++) recall->level_mass[i] = reply->level_mass[i];
    for (size_t i = 0; i < reply->n_level_bytes; i++)
        recall->level_bytes[i] = reply->level_bytes[i];
    return 0;
}

int memd_recall(const struct memd_context *context, const struct memd_recall_args *args,
                const struct memd_recall **ret_recall, struct memd_error *err)
{
    Memd__RecallRequest request = MEMD__RECALL_REQUEST__INIT;
    request.context_id = context->id;
    request.layer = args->layer;
    if (wire_target_error(args->target_error, &request.target_error))
        request.target_case = MEMD__RECALL_REQUEST__TARGET_TARGET_ERROR;
    if (wire_max_bytes(args->max_bytes, &request.max_bytes))
        request.budget_case = MEMD__RECALL_REQUEST__BUDGET_MAX_BYTES;
    const void *result = NULL;
    int rc = ticket_ask(context->client,
                        &(struct ticket_question){ METHOD_RECALL, true, &request.base,
                                                   place_recall },
                        &result, err);
    if (rc == 0) *ret_recall = result;
    return rc;
}

static int place_rebuild(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__RebuildReply *reply = (const Memd__RebuildReply *)message;
    struct memd_rebuild *rebuild = ticket_result(ticket, 1, sizeof *rebuild);
    if (rebuild == NULL) return MEMD_ENOMEM;
    *rebuild = (struct memd_rebuild){
        .next = { reply->cursor.data, reply->cursor.len },
        .context_id = reply->context_id,
        .deleted_segments = reply->deleted_segments,
        .deleted_bytes = reply->deleted_bytes,
        .segments = reply->segments,
        .built_segments = reply->built_segments,
        .indexes = reply->indexes,
        .built_indexes = reply->built_indexes,
        .failures = reply->failures,
        .failure = reply->failure,
    };
    return 0;
}

/* Both repeatable: deleting what is deleted changes nothing. */
static int rebuild_request(struct memd_client *client, const Memd__RebuildRequest *request,
                           const struct memd_rebuild **ret_rebuild, struct memd_error *err)
{
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_REBUILD, true, &request->base,
                                                   place_rebuild },
                        &result, err);
    if (rc == 0) *ret_rebuild = result;
    return rc;
}

int memd_rebuild(struct memd_client *client, uint64_t context_id, struct memd_cursor cursor,
                 const struct memd_rebuild **ret_rebuild, struct memd_error *err)
{
    Memd__RebuildRequest request = MEMD__REBUILD_REQUEST__INIT;
    request.context_id = context_id;
    request.cursor = (ProtobufCBinaryData){ .len = cursor.bytes, .data = (uint8_t *)cursor.data };
    return rebuild_request(client, &request, ret_rebuild, err);
}

int memd_built(struct memd_client *client, uint64_t context_id,
               const struct memd_rebuild **ret_rebuild, struct memd_error *err)
{
    Memd__RebuildRequest request = MEMD__REBUILD_REQUEST__INIT;
    request.context_id = context_id;
    request.ask = true;
    return rebuild_request(client, &request, ret_rebuild, err);
}

/* ---- compact and drain ---- */

struct two_numbers {
    uint64_t first, second;
};

static int place_compact(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__CompactReply *reply = (const Memd__CompactReply *)message;
    struct two_numbers *numbers = ticket_result(ticket, 1, sizeof *numbers);
    if (numbers == NULL) return MEMD_ENOMEM;
    *numbers = (struct two_numbers){ reply->bytes_before, reply->bytes_after };
    return 0;
}

int memd_compact(struct memd_client *client, const char *path, uint64_t *ret_bytes_before,
                 uint64_t *ret_bytes_after, struct memd_error *err)
{
    Memd__CompactRequest request = MEMD__COMPACT_REQUEST__INIT;
    request.path = (char *)path;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_COMPACT, false, &request.base,
                                                   place_compact },
                        &result, err);
    if (rc < 0) return rc;
    const struct two_numbers *numbers = result;
    if (ret_bytes_before != NULL) *ret_bytes_before = numbers->first;
    if (ret_bytes_after != NULL) *ret_bytes_after = numbers->second;
    memd_free(result);
    return 0;
}

static int place_drain(struct memd_ticket *ticket, ProtobufCMessage *message)
{
    const Memd__DrainReply *reply = (const Memd__DrainReply *)message;
    struct two_numbers *numbers = ticket_result(ticket, 1, sizeof *numbers);
    if (numbers == NULL) return MEMD_ENOMEM;
    *numbers = (struct two_numbers){ reply->requests_left, 0 };
    return 0;
}

int memd_drain(struct memd_client *client, uint32_t deadline_ms, uint64_t *ret_requests_left,
               struct memd_error *err)
{
    Memd__DrainRequest request = MEMD__DRAIN_REQUEST__INIT;
    request.deadline_ms = deadline_ms;
    const void *result = NULL;
    int rc = ticket_ask(client,
                        &(struct ticket_question){ METHOD_DRAIN, false, &request.base,
                                                   place_drain },
                        &result, err);
    if (rc < 0) return rc;
    const struct two_numbers *numbers = result;
    if (ret_requests_left != NULL) *ret_requests_left = numbers->first;
    memd_free(result);
    return 0;
}
