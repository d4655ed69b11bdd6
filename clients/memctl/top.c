/* SPDX-License-Identifier: Apache-2.0 */
/* top.c — `memctl top`: rates and latencies since the sample before, from differences of Stats.
 *
 * Plain ANSI: home, clear, print; no library and no alternate screen, so that the last sample stays
 * readable after q. Control-C is read from a signalfd, since the terminal has to be restored. When
 * standard output is no terminal, or JSON is asked for, one sample is printed. */
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/histogram.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column columns[] = {
    { "REQUEST", TABLE_LEFT }, { "PER SECOND", TABLE_RIGHT }, { "P50", TABLE_RIGHT },
    { "P90", TABLE_RIGHT },    { "P99", TABLE_RIGHT },        { "TOTAL", TABLE_RIGHT },
};

struct sample {
    const struct memd_status *status;
    const struct memd_stats *stats;
    uint64_t taken_ns;
};

static void sample_fini(struct sample *sample)
{
    memd_free(sample->status);
    memd_free(sample->stats);
    *sample = (struct sample){ .status = NULL };
}

static int take(struct ctl *ctl, struct sample *ret_sample)
{
    struct sample sample = { .taken_ns = clock_monotonic_ns() };
    int rc = memd_status(ctl->client, &sample.status, &ctl->err);
    if (rc == 0) rc = memd_stats(ctl->client, &sample.stats, &ctl->err);
    if (rc < 0) {
        sample_fini(&sample);
        return ctl_failed(ctl, rc, "stats");
    }
    *ret_sample = sample;
    return CTL_OK;
}

static uint64_t counter(const struct sample *sample, const char *name)
{
    for (size_t i = 0; i < sample->stats->counter_count; i++) {
        const struct memd_counter *one = &sample->stats->counters[i];
        if (strcmp(one->name, name) == 0) return one->value;
    }
    return 0;
}

/* Per second, of a counter that only grows; 0 when the daemon restarted in between. */
static double rate(uint64_t now, uint64_t before, double seconds)
{
    return now < before ? 0.0 : (double)(now - before) / seconds;
}

struct request_rate {
    const char *name;
    const struct memd_histogram *now, *before;
    double per_second;
    uint64_t total;
};

static const char histogram_prefix[] = "request_seconds_";

static bool measure(const struct sample *now, const struct sample *before, size_t i,
                    struct request_rate *ret_rate)
{
    const struct memd_histogram *histogram = &now->stats->histograms[i];
    size_t prefix = sizeof histogram_prefix - 1;
    if (strncmp(histogram->name, histogram_prefix, prefix) != 0) return false;
    struct request_rate one = { .name = histogram->name + prefix, .now = histogram };
    one.total = histogram_count(histogram);
    one.before = histogram_find(before->stats, histogram->name);
    uint64_t earlier = one.before == NULL ? 0 : histogram_count(one.before);
    one.per_second = rate(one.total, earlier, (double)(now->taken_ns - before->taken_ns) / 1e9);
    *ret_rate = one;
    return one.total > 0;
}

static void add_latency(struct table *table, const struct request_rate *one, double share)
{
    double seconds = histogram_quantile(one->now, one->before, share);
    /* Where nothing came in the interval, the difference of counts is empty. */
    table_add(table, isnan(seconds) ? "-" : human_seconds(seconds).text);
}

static void print_head(FILE *out, const struct sample *now, const struct sample *before)
{
    double seconds = (double)(now->taken_ns - before->taken_ns) / 1e9;
    const struct memd_status *status = now->status;
    fprintf(out, "%s, up %s%s, %s, %ju active, %ju waiting\n", status->build,
            human_seconds((double)status->uptime_ms / 1000.0).text,
            status->draining ? ", draining" : "",
            human_counted(status->connections, "connection").text,
            (uintmax_t)counter(now, "requests_active"), (uintmax_t)counter(now, "queue_depth"));
    fprintf(out, "%s, %s stored, map %s of %s\n", human_counted(status->contexts, "context").text,
            human_bytes(status->stored_bytes).text, human_bytes(status->map_used_bytes).text,
            human_bytes(status->map_bytes).text);
    static const char *const flows[][2] = {
        { "received", "received_bytes_total" },
        { "sent", "sent_bytes_total" },
        { "appended", "appended_bytes_total" },
    };
    for (size_t i = 0; i < sizeof flows / sizeof flows[0]; i++) {
        const char *name = flows[i][1];
        fprintf(out, "%s%s %s", i == 0 ? "" : ", ", flows[i][0],
                human_bytes_rate(rate(counter(now, name), counter(before, name), seconds)).text);
    }
    fprintf(out, ", %.4g commits/s, %.4g syncs/s\n\n",
            rate(counter(now, "commits_total"), counter(before, "commits_total"), seconds),
            rate(counter(now, "syncs_total"), counter(before, "syncs_total"), seconds));
}

static int print_sample(struct ctl *ctl, const struct sample *now,
                         const struct sample *before)
{
    CLEANUP(table_freep) struct table *table = table_new(columns, 6);
    for (size_t i = 0; i < now->stats->histogram_count; i++) {
        struct request_rate one;
        if (!measure(now, before, i, &one)) continue;
        table_add(table, one.name);
        table_addf(table, "%.1f", one.per_second);
        add_latency(table, &one, 0.5);
        add_latency(table, &one, 0.9);
        add_latency(table, &one, 0.99);
        table_add(table, human_count(one.total).text);
    }
    print_head(ctl->out, now, before);
    return ctl_print(ctl, table);
}

static void print_json(const struct ctl *ctl, const struct sample *now, const struct sample *before)
{
    struct json json = json_writer(ctl->out);
    json_open(&json, NULL, '{');
    json_real(&json, "interval_seconds", (double)(now->taken_ns - before->taken_ns) / 1e9);
    json_open(&json, "requests", '{');
    for (size_t i = 0; i < now->stats->histogram_count; i++) {
        struct request_rate one;
        if (!measure(now, before, i, &one)) continue;
        json_open(&json, one.name, '{');
        json_real(&json, "per_second", one.per_second);
        json_real(&json, "p50_seconds", histogram_quantile(one.now, one.before, 0.5));
        json_real(&json, "p90_seconds", histogram_quantile(one.now, one.before, 0.9));
        json_real(&json, "p99_seconds", histogram_quantile(one.now, one.before, 0.99));
        json_uint(&json, "total", one.total);
        json_close(&json);
    }
    json_close(&json);
    json_close(&json);
}

/* The terminal while top runs: keys come one by one and unseen; signals come as bytes of a
 * descriptor. */
struct screen {
    bool live; /* refreshes in place; otherwise one sample */
    bool keys; /* standard input is a terminal: `saved` is to be restored */
    struct termios saved;
    int signals;
};

static void screen_fini(struct screen *screen)
{
    if (screen->keys) tcsetattr(STDIN_FILENO, TCSANOW, &screen->saved);
    if (screen->signals >= 0) close(screen->signals);
}

static void screen_init(struct screen *screen, const struct ctl *ctl)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    screen->signals = signalfd(-1, &set, SFD_CLOEXEC);
    screen->live = !ctl->json && isatty(STDOUT_FILENO) == 1;
    if (!screen->live || tcgetattr(STDIN_FILENO, &screen->saved) != 0) return;
    struct termios raw = screen->saved;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    screen->keys = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
}

/* True when the user wants to stop before `seconds` have passed. */
static bool wait_for_end(const struct screen *screen, double seconds)
{
    uint64_t until_ns = clock_monotonic_ns() + (uint64_t)(seconds * 1e9);
    for (;;) {
        uint64_t now_ns = clock_monotonic_ns();
        if (now_ns >= until_ns) return false;
        struct pollfd wait[] = {
            { .fd = screen->signals, .events = POLLIN },
            { .fd = screen->keys ? STDIN_FILENO : -1, .events = POLLIN },
        };
        int count = poll(wait, 2, (int)((until_ns - now_ns) / 1000000 + 1));
        if (count <= 0) continue;
        if (wait[0].revents != 0) return true;
        char key = 'q';
        if (wait[1].revents != 0 && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q')) return true;
    }
}

static int run(struct ctl *ctl, const struct screen *screen, double interval, uint64_t count)
{
    CLEANUP(sample_fini) struct sample before = { .status = NULL };
    int rc = take(ctl, &before);
    for (uint64_t i = 0; rc == CTL_OK && i < count; i++) {
        if (wait_for_end(screen, interval)) break;
        struct sample now;
        rc = take(ctl, &now);
        if (rc != CTL_OK) break;
        if (screen->live)
            fputs("\033[H\033[2J", ctl->out); /* one write with what follows: no flicker */
        if (ctl->json) {
            print_json(ctl, &now, &before);
        } else {
            rc = print_sample(ctl, &now, &before);
        }
        fflush(ctl->out);
        sample_fini(&before);
        before = now;
    }
    return rc;
}

int top_main(struct ctl *ctl)
{
    double interval = 0;
    uint64_t count = 0;
    int rc = ctl_option_seconds(ctl, "interval", 1.0, &interval);
    if (rc == CTL_OK && !(interval >= 0.1 && interval <= 3600.0)) {
        rc = ctl_usage(ctl, "--interval: from 100ms to 1h");
    }
    if (rc == CTL_OK) rc = ctl_option_uint(ctl, "count", UINT64_MAX, &count);
    if (rc == CTL_OK) rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    CLEANUP(screen_fini) struct screen screen = { .signals = -1 };
    screen_init(&screen, ctl);
    return run(ctl, &screen, interval, screen.live ? count : 1);
}
