/* SPDX-License-Identifier: Apache-2.0 */
/* bench_attend.c — exact attention over one layer of real shape, one query of all heads, beside
 * reading as many bytes from memory with plain loads, by as many threads as the daemon has workers.
 * With one worker both run on one core. Two yardsticks (probe.h): in order, and the most that can
 * be got.
 */
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/bench.h"

enum { CHUNK_TOKENS = 4096, ATTENDS = 10 };

struct work {
    struct bench *bench;
    struct memd_context context;
    unsigned char *rows; /* (CHUNK_TOKENS, G, D) fp16, K and V */
    uint16_t *q;         /* (1, H, D) fp16 */
    float *o;            /* (1, H, D) */
    float lse[BENCH_QUERY_HEADS];
};

static int fill_context(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    uint64_t tokens = work->bench->tokens;
    for (uint64_t position = 0; position < tokens;) {
        size_t step = tokens - position < CHUNK_TOKENS ? (size_t)(tokens - position) : CHUNK_TOKENS;
        const struct memd_append append = { .layer = 0, .position = position, .tokens = step,
                                            .k = work->rows, .v = work->rows };
        int rc = memd_append(&work->context, &append, 1, MEMD_ACK_COMMITTED, NULL, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "append");
        if (bench_interrupted()) return CTL_ERROR;
        position += step;
    }
    return CTL_OK;
}

/* The least of a few: what the kernels can do when nobody else takes the core. */
static int attend_seconds(struct work *work, double *ret_seconds)
{
    struct ctl *ctl = work->bench->ctl;
    const struct memd_query query = {
        .context = &work->context, .layer = 0, .queries = 1, .q = work->q, .q_dtype = MEMD_FP16,
        .positions = &work->bench->tokens, .o = work->o, .lse = work->lse,
    };
    double least = 0;
    for (int i = 0; i < ATTENDS; i++) {
        uint64_t begun_ns = clock_monotonic_ns();
        int rc = memd_attend(&query, NULL, &ctl->err);
        double seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
        if (rc < 0) return ctl_failed(ctl, rc, "attend");
        if (bench_interrupted()) return CTL_ERROR;
        if (i == 0 || seconds < least) least = seconds;
    }
    *ret_seconds = least;
    return CTL_OK;
}

static double stream_best(const struct bench *bench, const void *buffer, size_t bytes,
                          enum probe_order order)
{
    double best = 0;
    for (int i = 0; i < ATTENDS; i++) {
        double rate = probe_stream(buffer, bytes, bench->workers, order);
        if (rate > best) best = rate;
    }
    return best;
}

/* Medians: seconds of attend, bytes per second of the two streams. */
static void report(struct bench *bench, double seconds, double in_order, double most)
{
    double bytes = 2.0 * BENCH_ROW_BYTES * (double)bench->tokens;
    const struct bench_figure figures[] = {
        { "tokens", "attend tokens", "tokens", (double)bench->tokens,
          "one layer: 32 query heads, 8 KV heads of 128, float16" },
        { "workers", "attend, workers", "threads", (double)bench->workers, "of the streams too" },
        { "attend_ms", "attend", "ms", seconds * 1e3, NULL },
        { "attend_gb_per_s", "attend", "GB/s", bytes / seconds / 1e9, NULL },
        { "stream_gb_per_s", "stream from memory", "GB/s", in_order / 1e9,
          "plain loads of as many bytes, in order" },
        { "ratio", "attend / stream, time", "x", in_order * seconds / bytes, "aim 1.3" },
        { "stream_most_gb_per_s", "the most from memory", "GB/s", most / 1e9,
          "the same, at four places at a time" },
        { "ratio_most", "attend / most, time", "x", most * seconds / bytes, NULL },
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        bench_report(bench, &figures[i]);
    }
}

static int measure(struct work *work)
{
    struct bench *bench = work->bench;
    double seconds[BENCH_ROUNDS_MAX], in_order[BENCH_ROUNDS_MAX], most[BENCH_ROUNDS_MAX];
    size_t bytes = (size_t)bench->tokens * 2 * BENCH_ROW_BYTES; /* a multiple of 4096 */
    void *buffer = probe_buffer(bytes);
    if (buffer == NULL) return ctl_error(bench->ctl, "no memory for a stream of %zu bytes", bytes);
    int rc = CTL_OK;
    for (uint64_t r = 0; rc == CTL_OK && r < bench->rounds; r++) {
        in_order[r] = stream_best(bench, buffer, bytes, PROBE_IN_ORDER);
        most[r] = stream_best(bench, buffer, bytes, PROBE_AT_PLACES);
        rc = attend_seconds(work, &seconds[r]);
    }
    probe_buffer_free(buffer, bytes);
    if (rc != CTL_OK) return rc;
    report(bench, probe_quantile(seconds, bench->rounds, 0.5),
           probe_quantile(in_order, bench->rounds, 0.5), probe_quantile(most, bench->rounds, 0.5));
    return CTL_OK;
}

int bench_attend(struct bench *bench)
{
    enum { HEADS_VALUES = BENCH_QUERY_HEADS * BENCH_HEAD_DIM };
    CLEANUP(free_ptr) unsigned char *rows = malloc((size_t)CHUNK_TOKENS * BENCH_ROW_BYTES);
    CLEANUP(free_ptr) uint16_t *q = malloc(HEADS_VALUES * sizeof *q);
    CLEANUP(free_ptr) float *o = malloc(HEADS_VALUES * sizeof *o);
    if (rows == NULL || q == NULL || o == NULL) return ctl_error(bench->ctl, "out of memory");
    struct work work = { .bench = bench, .rows = rows, .q = q, .o = o };
    bench_fill(rows, (size_t)CHUNK_TOKENS * BENCH_ROW_BYTES);
    bench_fill(q, HEADS_VALUES * sizeof *q);
    int rc = bench_open(bench, "attend", &work.context);
    if (rc != CTL_OK) return rc;
    rc = fill_context(&work);
    if (rc == CTL_OK) rc = measure(&work);
    bench_drop(bench, &work.context);
    return rc;
}
