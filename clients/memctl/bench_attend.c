/* SPDX-License-Identifier: Apache-2.0 */
/* bench_attend.c — attention over one layer of real shape, one query of all heads, beside reading
 * as many bytes as exact attention does from memory with plain loads, by as many threads as the
 * daemon has workers. With one worker both run on one core. Two yardsticks (probe.h): in order,
 * and the most that can be got.
 *
 * So that methods can be compared: --method, --target-error. What a method derives from the rows
 * is waited for first, and its answers are held against the truth (memd_recall). The rows are
 * noise, where attention is spread as thin as it can be; real keys (tests/bench/retrieval) are
 * kinder to every method that chooses.
 */
#include <poll.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/bench.h"

enum { CHUNK_TOKENS = 4096, ATTENDS = 10, PAUSE_MS = 20 };

struct work {
    struct bench *bench;
    struct memd_context context;
    unsigned char *rows; /* (CHUNK_TOKENS, G, D) fp16, K and V */
    uint16_t *past;      /* (CHUNK_TOKENS, H, D) fp16: queries for methods that learn from them */
    uint16_t *q;         /* (1, H, D) fp16 */
    float *o;            /* (1, H, D) */
    float lse[BENCH_QUERY_HEADS];
    double build_seconds; /* from the last append on */
    double bytes_share;   /* read, of what exact attention reads */
    double predicted;     /* mean over the heads; NaN: the method cannot tell */
};

static int fill_context(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    uint64_t tokens = work->bench->tokens;
    for (uint64_t position = 0; position < tokens;) {
        size_t step = tokens - position < CHUNK_TOKENS ? (size_t)(tokens - position) : CHUNK_TOKENS;
        const struct memd_append append = { .layer = 0, .position = position, .tokens = step,
                                            .k = work->rows, .v = work->rows,
                                            .q = work->past, .q_dtype = MEMD_FP16 };
        int rc = memd_append(&work->context, &append, 1, MEMD_ACK_COMMITTED, NULL, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "append");
        if (bench_interrupted()) return CTL_ERROR;
        position += step;
    }
    return CTL_OK;
}

/* Until the daemon has derived what it wants from the rows. */
static int wait_built(struct work *work)
{
    struct ctl *ctl = work->bench->ctl;
    uint64_t begun_ns = clock_monotonic_ns();
    for (bool done = false; !done;) {
        const struct memd_rebuild *built = NULL;
        int rc = memd_built(ctl->client, work->context.id, &built, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "build");
        done = built->built_segments >= built->segments && built->built_indexes >= built->indexes;
        if (!done && built->failure[0] != '\0') {
            rc = ctl_error(ctl, "build: %s", built->failure);
            memd_free(built);
            return rc;
        }
        memd_free(built);
        if (bench_interrupted()) return CTL_ERROR;
        if (!done) poll(NULL, 0, PAUSE_MS);
    }
    work->build_seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
    return CTL_OK;
}

static void take_quality(struct work *work, const struct memd_quality *quality)
{
    work->bytes_share = quality->bytes_exact == 0
                            ? 0.0
                            : (double)quality->bytes_read / (double)quality->bytes_exact;
    work->predicted = 0.0;
    for (size_t h = 0; quality->predicted_error != NULL && h < BENCH_QUERY_HEADS; h++)
        work->predicted += (double)quality->predicted_error[h] / BENCH_QUERY_HEADS;
}

/* The least of a few: what the kernels can do when nobody else takes the core. */
static int attend_seconds(struct work *work, double *ret_seconds)
{
    struct ctl *ctl = work->bench->ctl;
    const struct memd_query query = {
        .context = &work->context, .layer = 0, .queries = 1, .q = work->q, .q_dtype = MEMD_FP16,
        .positions = &work->bench->tokens, .o = work->o, .lse = work->lse,
        .target_error = work->bench->target_error,
    };
    double least = 0;
    for (int i = 0; i < ATTENDS; i++) {
        uint64_t begun_ns = clock_monotonic_ns();
        const struct memd_answer *answer = NULL;
        int rc = memd_attend(&query, &answer, &ctl->err);
        double seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
        if (rc < 0) return ctl_failed(ctl, rc, "attend");
        take_quality(work, &answer->quality);
        memd_free(answer);
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

/* What the answers were worth, against the truth. */
static int report_quality(struct work *work)
{
    struct bench *bench = work->bench;
    const struct memd_recall_args args = { .layer = 0, .target_error = bench->target_error };
    CLEANUP(ctl_result_free) const struct memd_recall *recall = NULL;
    int rc = memd_recall(&work->context, &args, &recall, &bench->ctl->err);
    if (rc < 0) return ctl_failed(bench->ctl, rc, "recall");
    const struct bench_figure figures[] = {
        { "build_s", "built after the appends", "s", work->build_seconds,
          "what the method derives from the rows" },
        { "bytes_share", "bytes read", "x", work->bytes_share, "of what exact attention reads" },
        { "predicted_error", "error, predicted", "x", work->predicted, "mean over heads" },
        { "true_error", "error, true", "x", recall->error.mean,
          "relative L2 of o, mean of the latest queries" },
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++)
        bench_report(bench, &figures[i]);
    return CTL_OK;
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
    return report_quality(work);
}

int bench_attend(struct bench *bench)
{
    enum { HEADS_VALUES = BENCH_QUERY_HEADS * BENCH_HEAD_DIM };
    CLEANUP(free_ptr) unsigned char *rows = malloc((size_t)CHUNK_TOKENS * BENCH_ROW_BYTES);
    CLEANUP(free_ptr) uint16_t *past = malloc((size_t)CHUNK_TOKENS * HEADS_VALUES * sizeof *past);
    CLEANUP(free_ptr) uint16_t *q = malloc(HEADS_VALUES * sizeof *q);
    CLEANUP(free_ptr) float *o = malloc(HEADS_VALUES * sizeof *o);
    if (rows == NULL || past == NULL || q == NULL || o == NULL)
        return ctl_error(bench->ctl, "out of memory");
    struct work work = { .bench = bench, .rows = rows, .past = past, .q = q, .o = o };
    bench_fill(rows, (size_t)CHUNK_TOKENS * BENCH_ROW_BYTES);
    bench_fill(past, (size_t)CHUNK_TOKENS * HEADS_VALUES * sizeof *past);
    bench_fill(q, HEADS_VALUES * sizeof *q);
    int rc = bench_open(bench, "attend", &work.context);
    if (rc != CTL_OK) return rc;
    rc = fill_context(&work);
    if (rc == CTL_OK) rc = wait_built(&work);
    if (rc == CTL_OK) rc = measure(&work);
    bench_drop(bench, &work.context);
    return rc;
}
