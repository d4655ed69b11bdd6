/* SPDX-License-Identifier: Apache-2.0 */
/* stats.c — `memctl stats`: every counter and histogram, under the names that the daemon gives
 * them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/histogram.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column counter_columns[] = {
    { "COUNTER", TABLE_LEFT },
    { "VALUE", TABLE_RIGHT },
};
static const struct table_column histogram_columns[] = {
    { "HISTOGRAM", TABLE_LEFT }, { "COUNT", TABLE_RIGHT }, { "MEAN", TABLE_RIGHT },
    { "P50", TABLE_RIGHT },      { "P99", TABLE_RIGHT },
};

static void histogram_json(struct json *json, const struct memd_histogram *histogram)
{
    json_open(json, histogram->name, '{');
    json_uint(json, "count", histogram_count(histogram));
    json_real(json, "sum", histogram->sum);
    json_real(json, "p50", histogram_quantile(histogram, NULL, 0.5));
    json_real(json, "p99", histogram_quantile(histogram, NULL, 0.99));
    json_open(json, "bounds", '[');
    for (size_t i = 0; i < histogram->bound_count; i++) json_real(json, NULL, histogram->bounds[i]);
    json_close(json);
    json_open(json, "counts", '[');
    for (size_t i = 0; i <= histogram->bound_count; i++)
        json_uint(json, NULL, histogram->counts[i]);
    json_close(json);
    json_close(json);
}

static void print_json(const struct ctl *ctl, const struct memd_stats *stats)
{
    struct json json = json_writer(ctl->out);
    json_open(&json, NULL, '{');
    json_open(&json, "counters", '{');
    for (size_t i = 0; i < stats->counter_count; i++) {
        json_uint(&json, stats->counters[i].name, stats->counters[i].value);
    }
    json_close(&json);
    json_open(&json, "histograms", '{');
    for (size_t i = 0; i < stats->histogram_count; i++)
        histogram_json(&json, &stats->histograms[i]);
    json_close(&json);
    json_close(&json);
}

/* Histograms of time say so in their name; others count shares or plain numbers. */
static void add_sample(struct table *table, const char *name, double value)
{
    if (isnan(value)) {
        table_add(table, "-");
    } else if (strstr(name, "seconds") != NULL) {
        table_add(table, human_seconds(value).text);
    } else {
        table_addf(table, "%.4g", value);
    }
}

static int print_tables(struct ctl *ctl, const struct memd_stats *stats)
{
    CLEANUP(table_freep) struct table *counters = table_new(counter_columns, 2);
    for (size_t i = 0; i < stats->counter_count; i++) {
        const struct memd_counter *counter = &stats->counters[i];
        bool bytes = strstr(counter->name, "bytes") != NULL;
        table_add(counters, counter->name);
        table_add(counters,
                  bytes ? human_bytes(counter->value).text : human_count(counter->value).text);
    }
    int rc = ctl_print(ctl, counters);
    if (rc != CTL_OK || stats->histogram_count == 0) return rc;
    CLEANUP(table_freep) struct table *histograms = table_new(histogram_columns, 5);
    for (size_t i = 0; i < stats->histogram_count; i++) {
        const struct memd_histogram *histogram = &stats->histograms[i];
        uint64_t count = histogram_count(histogram);
        table_add(histograms, histogram->name);
        table_add(histograms, human_count(count).text);
        add_sample(histograms, histogram->name,
                   count == 0 ? (double)NAN : histogram->sum / (double)count);
        add_sample(histograms, histogram->name, histogram_quantile(histogram, NULL, 0.5));
        add_sample(histograms, histogram->name, histogram_quantile(histogram, NULL, 0.99));
    }
    fputc('\n', ctl->out);
    return ctl_print(ctl, histograms);
}

int stats_main(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    CLEANUP(ctl_result_free) const struct memd_stats *stats = NULL;
    rc = memd_stats(ctl->client, &stats, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "stats");
    if (!ctl->json) return print_tables(ctl, stats);
    print_json(ctl, stats);
    return CTL_OK;
}
