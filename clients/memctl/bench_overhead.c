/* SPDX-License-Identifier: Apache-2.0 */
/* bench_overhead.c — what one request costs before any memory is read: attend on an empty
 * context, one query of real shape (8 KiB there, 16 KiB back), one at a time. */
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/bench.h"

enum { VALUES = BENCH_QUERY_HEADS * BENCH_HEAD_DIM, SHARES = 3 };

struct buffers {
    uint16_t q[VALUES];         /* (1, H, D) fp16 */
    float o[VALUES];            /* (1, H, D) */
    float lse[BENCH_QUERY_HEADS]; /* (1, H) */
};

static int run_round(struct bench *bench, const struct memd_query *query, double *latencies)
{
    struct ctl *ctl = bench->ctl;
    for (uint64_t i = 0; i < bench->requests; i++) {
        uint64_t begun_ns = clock_monotonic_ns();
        int rc = memd_attend(query, NULL, &ctl->err);
        latencies[i] = (double)(clock_monotonic_ns() - begun_ns) / 1e3;
        if (rc < 0) return ctl_failed(ctl, rc, "attend");
        if ((i & 255) == 0 && bench_interrupted()) return CTL_ERROR;
    }
    return CTL_OK;
}

static int measure(struct bench *bench, const struct memd_query *query, double *latencies)
{
    static const double shares[SHARES] = { 0.5, 0.9, 0.99 };
    static const struct bench_figure figures[SHARES] = {
        { "p50_us", "overhead p50", "us", 0, "attend on an empty context; aim 40" },
        { "p90_us", "overhead p90", "us", 0, NULL },
        { "p99_us", "overhead p99", "us", 0, "aim 200" },
    };
    double rounds[SHARES][BENCH_ROUNDS_MAX];
    for (uint64_t r = 0; r < bench->rounds; r++) {
        int rc = run_round(bench, query, latencies);
        if (rc != CTL_OK) return rc;
        for (size_t s = 0; s < SHARES; s++) {
            rounds[s][r] = probe_quantile(latencies, bench->requests, shares[s]);
        }
    }
    for (size_t s = 0; s < SHARES; s++) {
        struct bench_figure figure = figures[s];
        figure.value = probe_quantile(rounds[s], bench->rounds, 0.5);
        bench_report(bench, &figure);
    }
    return CTL_OK;
}

int bench_overhead(struct bench *bench)
{
    struct memd_context context;
    CLEANUP(free_ptr) struct buffers *buffers = calloc(1, sizeof *buffers);
    CLEANUP(free_ptr) double *latencies = calloc(bench->requests, sizeof *latencies);
    if (buffers == NULL || latencies == NULL) return ctl_error(bench->ctl, "out of memory");
    bench_fill(buffers->q, sizeof buffers->q);
    int rc = bench_open(bench, "overhead", &context);
    if (rc != CTL_OK) return rc;
    const uint64_t position = 0;
    const struct memd_query query = {
        .context = &context, .layer = 0, .queries = 1, .q = buffers->q, .q_dtype = MEMD_FP16,
        .positions = &position, .o = buffers->o, .lse = buffers->lse,
    };
    rc = measure(bench, &query, latencies);
    bench_drop(bench, &context);
    return rc;
}
