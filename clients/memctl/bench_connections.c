/* SPDX-License-Identifier: Apache-2.0 */
/* bench_connections.c — do hostile clients hurt the others? Many idle connections stand by while
 * busy ones attend on an empty context without pause, each on a connection and thread of its own;
 * rounds with and without the hostile pair alternate. The busy threads compete with the daemon
 * for the same cores, so the latencies are those of an overloaded machine: the ratio is the
 * result. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/bench.h"
#include "clients/memctl/hostile.h"
#include "clients/memctl/human.h"

enum { SAMPLES_MAX = 1 << 15, VALUES = BENCH_QUERY_HEADS * BENCH_HEAD_DIM };

struct busy {
    struct crowd *crowd;
    struct memd_context context; /* of its own client */
    pthread_t thread;
    uint16_t q[VALUES];
    float o[VALUES];
    float lse[BENCH_QUERY_HEADS];
    double *samples; /* (SAMPLES_MAX) microseconds */
    size_t sample_count;
    uint64_t requests;
    int rc;
};

struct crowd {
    struct bench *bench;
    struct memd_client **idle;
    size_t idle_count; /* connected */
    struct busy *busy;
    size_t busy_count;
    double *samples; /* (busy × SAMPLES_MAX) */
    atomic_bool stop;
};

/* What one round saw. */
struct outcome {
    double p99_us;
    double requests_per_s;
    uint64_t unread; /* requests of the client that never reads */
};

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void crowd_fini(struct crowd *crowd)
{
    for (size_t i = 0; i < crowd->idle_count; i++) memd_close(crowd->idle[i]);
    for (size_t i = 0; i < crowd->busy_count; i++) memd_close(crowd->busy[i].context.client);
    free(crowd->idle);
    free(crowd->busy);
    free(crowd->samples);
}

static int crowd_gather(struct crowd *crowd, const struct memd_context *context)
{
    struct ctl *ctl = crowd->bench->ctl;
    size_t idle = (size_t)crowd->bench->idle, busy = (size_t)crowd->bench->busy;
    raise_descriptor_limit();
    crowd->idle = calloc(idle, sizeof *crowd->idle);
    crowd->busy = calloc(busy, sizeof *crowd->busy);
    crowd->samples = malloc(busy * SAMPLES_MAX * sizeof *crowd->samples);
    if (crowd->idle == NULL || crowd->busy == NULL || crowd->samples == NULL) {
        return ctl_error(ctl, "no memory for %s", human_counted(idle + busy, "connection").text);
    }
    for (size_t i = 0; i < idle; i++) {
        int rc = memd_connect(ctl->address, &ctl->connect, &crowd->idle[i], &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "idle connection");
        crowd->idle_count++;
    }
    for (size_t i = 0; i < busy; i++) {
        struct busy *one = &crowd->busy[i];
        one->crowd = crowd;
        one->samples = crowd->samples + i * SAMPLES_MAX;
        one->context = *context;
        bench_fill(one->q, sizeof one->q);
        int rc = memd_connect(ctl->address, &ctl->connect, &one->context.client, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "busy connection");
        crowd->busy_count++;
    }
    return CTL_OK;
}

static void *be_busy(void *arg)
{
    struct busy *one = arg;
    const uint64_t position = 0;
    const struct memd_query query = {
        .context = &one->context, .layer = 0, .queries = 1, .q = one->q, .q_dtype = MEMD_FP16,
        .positions = &position, .o = one->o, .lse = one->lse,
    };
    one->sample_count = 0;
    one->requests = 0;
    one->rc = 0;
    while (one->rc == 0 && !atomic_load(&one->crowd->stop)) {
        uint64_t begun_ns = clock_monotonic_ns();
        one->rc = memd_attend(&query, NULL, NULL);
        /* Every so often, so that the samples reach to the end of the round. */
        if (one->sample_count == SAMPLES_MAX) one->sample_count = SAMPLES_MAX / 2;
        one->samples[one->sample_count++] = (double)(clock_monotonic_ns() - begun_ns) / 1e3;
        one->requests++;
    }
    return NULL;
}

/* Samples of all threads, moved together at the front of crowd->samples. */
static size_t join_busy(struct crowd *crowd, size_t started, uint64_t *ret_requests, int *ret_rc)
{
    size_t count = 0;
    *ret_requests = 0;
    *ret_rc = 0;
    for (size_t i = 0; i < started; i++) {
        struct busy *one = &crowd->busy[i];
        pthread_join(one->thread, NULL);
    }
    for (size_t i = 0; i < started; i++) {
        struct busy *one = &crowd->busy[i];
        memmove(crowd->samples + count, one->samples, one->sample_count * sizeof *one->samples);
        count += one->sample_count;
        *ret_requests += one->requests;
        if (one->rc < 0) *ret_rc = one->rc;
    }
    return count;
}

static int run_round(struct crowd *crowd, bool with_hostile, struct outcome *ret_outcome)
{
    struct ctl *ctl = crowd->bench->ctl;
    struct hostile *hostile = NULL;
    struct outcome outcome = { 0 };
    int rc = with_hostile ? hostile_open(ctl->address + strlen("unix:"), &hostile) : 0;
    if (rc < 0) return ctl_error(ctl, "hostile client: %s", strerror(-rc));
    atomic_store(&crowd->stop, false);
    size_t started = 0;
    while (started < crowd->busy_count && pthread_create(&crowd->busy[started].thread, NULL,
                                                         be_busy, &crowd->busy[started]) == 0) {
        started++;
    }
    uint64_t begun_ns = clock_monotonic_ns(), requests = 0;
    bench_wait((double)crowd->bench->seconds);
    atomic_store(&crowd->stop, true);
    size_t samples = join_busy(crowd, started, &requests, &rc);
    double seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
    hostile_close(hostile, &outcome.unread);
    if (started < crowd->busy_count)
        return ctl_error(ctl, "only %s could start", human_counted(started, "thread").text);
    if (rc < 0) return ctl_error(ctl, "busy connection: %s", memd_error_text(rc));
    if (bench_interrupted()) return CTL_ERROR;
    outcome.p99_us = probe_quantile(crowd->samples, samples, 0.99);
    outcome.requests_per_s = (double)requests / seconds;
    *ret_outcome = outcome;
    return CTL_OK;
}

static int measure(struct crowd *crowd)
{
    struct bench *bench = crowd->bench;
    double quiet[BENCH_ROUNDS_MAX], hostile[BENCH_ROUNDS_MAX];
    struct outcome outcome = { 0 };
    double requests_per_s = 0;
    for (uint64_t r = 0; r < bench->rounds; r++) {
        int rc = run_round(crowd, false, &outcome);
        if (rc != CTL_OK) return rc;
        quiet[r] = outcome.p99_us;
        requests_per_s = outcome.requests_per_s;
        rc = run_round(crowd, true, &outcome);
        if (rc != CTL_OK) return rc;
        hostile[r] = outcome.p99_us;
    }
    double before = probe_quantile(quiet, bench->rounds, 0.5);
    double after = probe_quantile(hostile, bench->rounds, 0.5);
    const struct bench_figure figures[] = {
        { "idle", "connections, idle", "", (double)crowd->idle_count, NULL },
        { "busy", "connections, busy", "", (double)crowd->busy_count, NULL },
        { "requests_per_s", "attends on an empty context", "1/s", requests_per_s, NULL },
        { "p99_us", "p99", "us", before, NULL },
        { "hostile_p99_us", "p99 with hostile clients", "us", after,
          "one never reads, one sends a byte a second" },
        { "hostile_unread", "requests it never read", "", (double)outcome.unread, NULL },
        { "ratio", "p99 with / without", "x", after / before, "aim below 2" },
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++)
        bench_report(bench, &figures[i]);
    return CTL_OK;
}

int bench_connections(struct bench *bench)
{
    if (strncmp(bench->ctl->address, "unix:", 5) != 0) {
        return ctl_error(bench->ctl, "bench connections needs a Unix socket, not %s",
                         bench->ctl->address);
    }
    struct memd_context context;
    int rc = bench_open(bench, "connections", &context);
    if (rc != CTL_OK) return rc;
    struct crowd crowd = { .bench = bench };
    rc = crowd_gather(&crowd, &context);
    if (rc == CTL_OK) rc = measure(&crowd);
    crowd_fini(&crowd);
    bench_drop(bench, &context);
    return rc;
}
