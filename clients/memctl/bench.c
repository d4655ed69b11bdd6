/* SPDX-License-Identifier: Apache-2.0 */
/* bench.c — choose measurements, state the machine, run them, print. Rounds of a measurement
 * alternate with rounds of what it is compared with, and medians are shown: other load on the
 * host then hits both. */
#include "clients/memctl/bench.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/human.h"

static const struct measurement {
    const char *name;
    int (*run)(struct bench *bench);
    const char *summary;
    bool of_methods; /* compares methods: only when it is named, and what --method all means */
} measurements[] = {
    { "overhead", bench_overhead, "attend on an empty context", false },
    { "append", bench_append, "KV per second, beside the disk", false },
    { "attend", bench_attend, "attention over a layer, beside a stream from memory", false },
    { "connections", bench_connections, "a thousand idle and two hostile clients", false },
    { "methods", bench_methods, "what a token costs under each memory method", true },
};
enum { MEASUREMENTS = sizeof measurements / sizeof measurements[0] };

static const struct table_column columns[] = {
    { "MEASUREMENT", TABLE_LEFT },
    { "VALUE", TABLE_RIGHT },
    { "UNIT", TABLE_LEFT },
    { "", TABLE_LEFT },
};

void bench_complete(void (*candidate)(const char *word, const char *prefix,
                                      const char *description),
                    const char *prefix)
{
    for (size_t i = 0; i < MEASUREMENTS; i++) {
        candidate(measurements[i].name, prefix, measurements[i].summary);
    }
}

bool bench_interrupted(void)
{
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1;
}

static sigset_t stop_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    return set;
}

void bench_wait(double seconds)
{
    const sigset_t set = stop_signals();
    time_t whole = (time_t)seconds;
    const struct timespec limit = { whole, (long)((seconds - (double)whole) * 1e9) };
    int signal = sigtimedwait(&set, NULL, &limit);
    /* It stays pending: the others ask bench_interrupted. */
    if (signal > 0) kill(getpid(), signal);
}

void bench_fill(void *data, size_t bytes)
{
    uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
    unsigned char *at = data;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        /* Exponents of 0 … 14 (of a bias of 15): below 1, never NaN or infinity. */
        uint64_t halves = state & UINT64_C(0xBBFFBBFFBBFFBBFF);
        memcpy(at + i, &halves, 8);
    }
}

int bench_open(struct bench *bench, const char *what, struct memd_context *ret_context)
{
    char name[64];
    snprintf(name, sizeof name, "bench-%ld-%s", (long)getpid(), what);
    const struct memd_model model = {
        .layers = BENCH_LAYERS,
        .query_heads = BENCH_QUERY_HEADS,
        .kv_heads = BENCH_KV_HEADS,
        .head_dim = BENCH_HEAD_DIM,
        .dtype = MEMD_FP16,
        .rotated = true,
        .fingerprint = "memctl bench",
    };
    const struct memd_open open = { .name = name, .model = &model, .method = bench->method,
                                    .create = true, .must_create = true };
    struct ctl *ctl = bench->ctl;
    int rc = memd_open(ctl->client, &open, ret_context, &ctl->err);
    return rc < 0 ? ctl_failed(ctl, rc, name) : CTL_OK;
}

void bench_drop(struct bench *bench, const struct memd_context *context)
{
    struct ctl *ctl = bench->ctl;
    int rc = memd_drop(context, NULL, &ctl->err);
    if (rc < 0) ctl_failed(ctl, rc, "drop of a bench context");
}

void bench_report(struct bench *bench, const struct bench_figure *figure)
{
    if (bench->ctl->json) {
        json_real(&bench->json, figure->key, figure->value);
        return;
    }
    table_add(bench->table, figure->label);
    table_addf(bench->table, "%.*f", figure->value < 100.0 ? 2 : 0, figure->value);
    table_add(bench->table, figure->unit);
    table_add(bench->table, figure->note == NULL ? "" : figure->note);
}

static int read_options(struct bench *bench)
{
    struct ctl *ctl = bench->ctl;
    const struct {
        const char *name;
        uint64_t missing, most;
        uint64_t *value;
    } options[] = {
        { "repeat", 3, BENCH_ROUNDS_MAX, &bench->rounds },
        { "requests", 20000, 10000000, &bench->requests },
        { "tokens", 32768, 1 << 24, &bench->tokens },
        { "append-size", 1024, 1 << 20, &bench->append_bytes },
        { "idle", 1000, 100000, &bench->idle },
        { "busy", 64, 1024, &bench->busy },
        { "seconds", 5, 3600, &bench->seconds },
    };
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        int rc = ctl_option_uint(ctl, options[i].name, options[i].missing, options[i].value);
        if (rc != CTL_OK) return rc;
        if (*options[i].value > options[i].most) {
            return ctl_usage(ctl, "--%s: at most %ju", options[i].name, (uintmax_t)options[i].most);
        }
    }
    bench->append_bytes <<= 20;
    bench->method = options_value(&ctl->options, "method");
    bool compares = ctl->options.argument_count == 1 &&
                    strcmp(ctl->options.arguments[0], "methods") == 0;
    if (bench->method == NULL) bench->method = compares ? BENCH_ALL : "full";
    return ctl_option_target(ctl, &bench->target_error);
}

/* A selection by name; when there is none, all of one method, or the one that compares methods. */
static int choose(struct ctl *ctl, bool chosen[MEASUREMENTS])
{
    const char *method = options_value(&ctl->options, "method");
    bool all = method != NULL && strcmp(method, BENCH_ALL) == 0;
    for (size_t i = 0; i < MEASUREMENTS; i++)
        chosen[i] = ctl->options.argument_count == 0 && measurements[i].of_methods == all;
    for (size_t a = 0; a < ctl->options.argument_count; a++) {
        const char *name = ctl->options.arguments[a];
        size_t i = 0;
        while (i < MEASUREMENTS && strcmp(measurements[i].name, name) != 0) i++;
        if (i == MEASUREMENTS) return ctl_usage(ctl, "bench: no measurement '%s'", name);
        if (all && !measurements[i].of_methods)
            return ctl_usage(ctl, "bench %s: --method all is for methods", name);
        chosen[i] = true;
    }
    return CTL_OK;
}

static void state_machine(struct bench *bench, const struct memd_status *status)
{
    const struct probe_machine *machine = &bench->machine;
    if (bench->ctl->json) {
        struct json *json = &bench->json;
        json_open(json, NULL, '{');
        json_text(json, "build", status->build);
        json_text(json, "cpu", machine->cpu);
        json_uint(json, "cores", machine->cores);
        json_text(json, "simd", status->simd);
        json_uint(json, "memory_bytes", machine->memory_bytes);
        json_real(json, "load", machine->load);
        json_uint(json, "workers", status->workers);
        json_text(json, "sync", status->sync);
        json_uint(json, "rounds", bench->rounds);
        json_text(json, "method", bench->method);
    } else {
        fprintf(bench->ctl->out,
                "%s on %s, %s (load %.1f), %s kernels, %s, sync %s, method %s; "
                "medians of %s\n\n",
                status->build, machine->cpu, human_counted(machine->cores, "core").text,
                machine->load, status->simd, human_counted(status->workers, "worker").text,
                status->sync, bench->method, human_counted(bench->rounds, "round").text);
        fflush(bench->ctl->out);
    }
}

static int run_chosen(struct bench *bench, const bool chosen[MEASUREMENTS])
{
    for (size_t i = 0; i < MEASUREMENTS; i++) {
        if (!chosen[i]) continue;
        if (bench->ctl->json) json_open(&bench->json, measurements[i].name, '{');
        int rc = measurements[i].run(bench);
        if (bench_interrupted()) return ctl_error(bench->ctl, "interrupted");
        if (rc != CTL_OK) return rc;
        if (bench->ctl->json) json_close(&bench->json);
    }
    return CTL_OK;
}

int bench_main(struct ctl *ctl)
{
    CLEANUP(table_freep) struct table *table = table_new(columns, 4);
    CLEANUP(ctl_result_free) const struct memd_status *status = NULL;
    struct bench bench = { .ctl = ctl, .json = json_writer(ctl->out), .table = table };
    bool chosen[MEASUREMENTS];
    ctl->slow = true;
    int rc = choose(ctl, chosen);
    if (rc == CTL_OK) rc = read_options(&bench);
    if (rc == CTL_OK) rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    rc = memd_status(ctl->client, &status, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "status");
    bench.machine = probe_machine();
    bench.workers = status->workers > 0 ? status->workers : 1;
    bench.disk = options_value(&ctl->options, "disk");
    if (bench.disk == NULL && access(status->data, W_OK) == 0) bench.disk = status->data;
    const sigset_t stop = stop_signals();
    sigprocmask(SIG_BLOCK, &stop, NULL);
    state_machine(&bench, status);
    rc = run_chosen(&bench, chosen);
    if (rc != CTL_OK) return rc;
    if (!ctl->json) return table_rows(table) == 0 ? CTL_OK : ctl_print(ctl, table);
    json_close(&bench.json);
    return CTL_OK;
}
