/* SPDX-License-Identifier: Apache-2.0 */
/* bench_append.c — how fast one local client gets KV into the daemon, by how safe it is when it
 * is done.
 *
 * Requests carry 128 tokens of all 32 layers (16 MiB) from buffers that are larger than a cache,
 * and a few are under way at a time. "memory" and "committed" are times to the last reply of that
 * level; "synced" is the time until everything is on the disk, and stands beside the disk's own
 * sequential write of as many bytes, measured in the same round. When the daemon says MEMD_EBUSY
 * (its writer is behind), the client waits for what is under way and goes on from the count that
 * the daemon has, as a real client would.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/bench.h"

enum { STEP_TOKENS = 128, WINDOW = 4 };
#define STEP_BYTES ((size_t)STEP_TOKENS * BENCH_LAYERS * BENCH_ROW_BYTES) /* of K, and of V */

struct stream {
    struct bench *bench;
    struct memd_context context;
    const unsigned char *k, *v; /* (L, STEP_TOKENS, G, D) fp16 */
    uint64_t tokens;            /* to send, a multiple of STEP_TOKENS */
    uint64_t sent;
    uint64_t busy;              /* times the daemon was */
    struct memd_ticket *tickets[WINDOW];
    size_t first, count;        /* ring of those under way */
};

static int submit(struct stream *stream, enum memd_ack ack)
{
    struct memd_append layers[BENCH_LAYERS];
    size_t layer_bytes = STEP_BYTES / BENCH_LAYERS;
    for (uint32_t l = 0; l < BENCH_LAYERS; l++) {
        layers[l] = (struct memd_append){ .layer = l, .position = stream->sent,
                                          .tokens = STEP_TOKENS, .k = stream->k + l * layer_bytes,
                                          .v = stream->v + l * layer_bytes };
    }
    struct memd_ticket **ticket = &stream->tickets[(stream->first + stream->count) % WINDOW];
    int rc = memd_submit_append(&stream->context, layers, BENCH_LAYERS, ack, ticket,
                                &stream->bench->ctl->err);
    if (rc < 0) return rc;
    stream->sent += STEP_TOKENS;
    stream->count++;
    return 0;
}

static int wait_first(struct stream *stream)
{
    struct memd_ticket *ticket = stream->tickets[stream->first];
    int rc = memd_wait(ticket, &stream->bench->ctl->err);
    memd_ticket_free(ticket);
    stream->first = (stream->first + 1) % WINDOW;
    stream->count--;
    return rc;
}

/* The daemon refused one append, and so those behind it. */
static int resume(struct stream *stream)
{
    stream->busy++;
    while (stream->count > 0) wait_first(stream);
    bench_wait(1e-3);
    CLEANUP(ctl_result_free) const struct memd_info *info = NULL;
    int rc = memd_stat(&stream->context, &info, &stream->bench->ctl->err);
    if (rc == 0) stream->sent = info->tokens;
    return rc;
}

/* Send everything; the last append asks for `last_ack`, the others for `ack`. */
static int run_stream(struct stream *stream, enum memd_ack ack, enum memd_ack last_ack)
{
    int rc = 0;
    while (rc == 0 && (stream->sent < stream->tokens || stream->count > 0)) {
        if (bench_interrupted()) return MEMD_ECANCELLED;
        bool last = stream->sent + STEP_TOKENS == stream->tokens;
        if (stream->count < WINDOW && stream->sent < stream->tokens) {
            rc = submit(stream, last ? last_ack : ack);
        } else {
            rc = wait_first(stream);
        }
        if (rc == MEMD_EBUSY) rc = resume(stream);
    }
    return rc;
}

/* GB/s of one context of `bytes`, from the first request to the last reply. */
static int time_append(struct bench *bench, const unsigned char *rows, enum memd_ack acks[2],
                       double *ret_rate, uint64_t *busy)
{
    struct stream stream = { .bench = bench, .k = rows, .v = rows + STEP_BYTES };
    uint64_t steps = bench->append_bytes / (2 * STEP_BYTES);
    if (steps == 0) steps = 1;
    stream.tokens = steps * STEP_TOKENS;
    int rc = bench_open(bench, "append", &stream.context);
    if (rc != CTL_OK) return rc;
    uint64_t begun_ns = clock_monotonic_ns();
    rc = run_stream(&stream, acks[0], acks[1]);
    double seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
    struct memd_error first = bench->ctl->err;
    while (stream.count > 0) wait_first(&stream);
    bench->ctl->err = first;
    int code = rc < 0 ? ctl_failed(bench->ctl, rc, "append") : CTL_OK;
    bench_drop(bench, &stream.context);
    if (code != CTL_OK) return code;
    double bytes = 2.0 * STEP_BYTES * (double)steps;
    *ret_rate = bytes / seconds / 1e9;
    *busy += stream.busy;
    return CTL_OK;
}

enum { IN_MEMORY, COMMITTED, SYNCED, DISK, RATES };

static int run_round(struct bench *bench, const unsigned char *rows, double rates[RATES],
                     uint64_t *busy)
{
    enum memd_ack levels[][2] = {
        [IN_MEMORY] = { MEMD_ACK_MEMORY, MEMD_ACK_MEMORY },
        [COMMITTED] = { MEMD_ACK_COMMITTED, MEMD_ACK_COMMITTED },
        [SYNCED] = { MEMD_ACK_MEMORY, MEMD_ACK_SYNCED },
    };
    for (size_t i = 0; i <= SYNCED; i++) {
        int rc = time_append(bench, rows, levels[i], &rates[i], busy);
        if (rc != CTL_OK) return rc;
    }
    if (bench->disk == NULL) return CTL_OK;
    double rate = probe_disk(bench->disk, bench->append_bytes);
    if (rate < 0) return ctl_error(bench->ctl, "%s: %s", bench->disk, strerror((int)-rate));
    rates[DISK] = rate / 1e9;
    return CTL_OK;
}

static void report(struct bench *bench, const double rates[RATES], uint64_t busy)
{
    const struct bench_figure figures[] = {
        { "bytes", "append size", "MiB", (double)(bench->append_bytes >> 20),
          "128 KiB per token, 32 layers, float16" },
        { "memory_gb_per_s", "append, acknowledged in memory", "GB/s", rates[IN_MEMORY],
          "aim 1.0" },
        { "committed_gb_per_s", "append, committed", "GB/s", rates[COMMITTED], NULL },
        { "synced_gb_per_s", "append, until all is synced", "GB/s", rates[SYNCED], NULL },
        { "busy", "append, daemon busy", "times", (double)busy, "appends refused and sent again" },
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        struct bench_figure figure = figures[i];
        if (i == 0 && bench->ctl->json) figure.value = (double)bench->append_bytes;
        bench_report(bench, &figure);
    }
    if (bench->disk == NULL) return;
    const struct bench_figure disk = { "disk_gb_per_s", "disk, sequential write", "GB/s",
                                       rates[DISK], bench->disk };
    const struct bench_figure ratio = { "disk_ratio", "append synced / disk", "x",
                                        rates[SYNCED] / rates[DISK], "aim 0.70" };
    bench_report(bench, &disk);
    bench_report(bench, &ratio);
}

int bench_append(struct bench *bench)
{
    CLEANUP(free_ptr) unsigned char *rows = malloc(2 * STEP_BYTES);
    if (rows == NULL) return ctl_error(bench->ctl, "out of memory");
    bench_fill(rows, 2 * STEP_BYTES);
    double rounds[RATES][BENCH_ROUNDS_MAX] = { { 0 } };
    double rates[RATES] = { 0 };
    uint64_t busy = 0;
    for (uint64_t r = 0; r < bench->rounds; r++) {
        int rc = run_round(bench, rows, rates, &busy);
        if (rc != CTL_OK) return rc;
        for (size_t i = 0; i < RATES; i++) rounds[i][r] = rates[i];
    }
    for (size_t i = 0; i < RATES; i++) rates[i] = probe_quantile(rounds[i], bench->rounds, 0.5);
    report(bench, rates, busy);
    return CTL_OK;
}
