/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c — `memctl recall NAME`: the operator's proof that answers are as good as they say.
 *
 * The daemon answers the latest queries of each layer again, by the context's method and exactly;
 * here the two stand side by side, layer by layer, and under them one line that can be read alone.
 * The target counts as met when 95 of 100 answers are within twice of it in every layer: a
 * prediction is a statement about most answers, not about each.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/progress.h"
#include "clients/memctl/table.h"

#define WITHIN_ENOUGH 0.95

static const struct table_column columns[] = {
    { "LAYER", TABLE_RIGHT },  { "QUERIES", TABLE_RIGHT },   { "MEAN", TABLE_RIGHT },
    { "P90", TABLE_RIGHT },    { "P99", TABLE_RIGHT },       { "MAX", TABLE_RIGHT },
    { "EXPECTED", TABLE_RIGHT }, { "RATIO", TABLE_RIGHT },   { "GOOD", TABLE_RIGHT },
    { "CLUSTERS", TABLE_RIGHT }, { "HI", TABLE_RIGHT },      { "LO", TABLE_RIGHT },
    { "EXACT", TABLE_RIGHT },  { "BYTES", TABLE_RIGHT },
};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

static const char *const level_names[MEMD_LEVELS] = { "clusters", "hi", "lo", "exact" };

/* Over all layers. */
struct verdict {
    const char *method; /* of a result that is kept until the end */
    double target;
    uint64_t queries, answers, layers;
    double within, error, worst_within; /* sums weighted by answers; the worst layer */
    uint32_t worst_layer;
    uint64_t bytes_read, bytes_exact;
};

static double share(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0.0 : (double)part / (double)whole;
}

static void take(struct verdict *verdict, uint32_t layer, const struct memd_recall *recall)
{
    verdict->target = recall->target_error;
    if (recall->queries == 0) return;
    verdict->queries += recall->queries;
    verdict->answers += recall->answers;
    verdict->within += recall->within_twice * (double)recall->answers;
    verdict->error += recall->error.mean * (double)recall->answers;
    verdict->bytes_read += recall->bytes_read;
    verdict->bytes_exact += recall->bytes_exact;
    if (verdict->layers++ > 0 && recall->within_twice >= verdict->worst_within) return;
    verdict->worst_within = recall->within_twice;
    verdict->worst_layer = layer;
}

static bool is_met(const struct verdict *verdict)
{
    return isnan(verdict->target) || verdict->worst_within >= WITHIN_ENOUGH;
}

/* ---- as a table ---- */

static void add_error(struct table *table, double value)
{
    if (isnan(value)) {
        table_add(table, "-");
    } else {
        table_addf(table, "%.3f %%", value * 100.0);
    }
}

/* Of a layer that was asked something. */
static void add_row(struct table *table, uint32_t layer, const struct memd_recall *recall)
{
    table_addf(table, "%" PRIu32, layer);
    table_add(table, human_count(recall->queries).text);
    bool predicted = recall->predicted > 0;
    add_error(table, recall->error.mean);
    add_error(table, recall->error.p90);
    add_error(table, recall->error.p99);
    add_error(table, recall->error.max);
    add_error(table, predicted ? recall->predicted_mean : (double)NAN);
    table_addf(table, predicted ? "%.2f" : "-", recall->ratio_median);
    table_add(table, isnan(recall->target_error) ? "-" : human_share(recall->within_twice).text);
    for (size_t i = 0; i < MEMD_LEVELS; i++)
        table_add(table, human_share(recall->level_mass[i]).text);
    table_add(table, human_share(share(recall->bytes_read, recall->bytes_exact)).text);
}

static void print_verdict(FILE *out, const char *name, const struct verdict *verdict)
{
    if (verdict->answers == 0 && strcmp(verdict->method, "full") == 0) {
        fprintf(out, "%s: full reads every row exactly: there is nothing to prove\n", name);
        return;
    }
    if (verdict->answers == 0) {
        fprintf(out,
                "%s: no queries since the daemon started, so there is nothing to prove. Attend to "
                "it, or append with queries, and ask again.\n",
                name);
        return;
    }
    double answers = (double)verdict->answers;
    fprintf(out, "\n%s: %s, %s, mean error %.3f %%, %s of the bytes: ", name,
            verdict->method, human_counted(verdict->answers, "answer").text,
            verdict->error / answers * 100.0,
            human_share(share(verdict->bytes_read, verdict->bytes_exact)).text);
    if (isnan(verdict->target)) {
        fputs("this method has no target to meet\n", out);
        return;
    }
    fprintf(out, "target %.3g %% %s: %s within twice of it, ", verdict->target * 100.0,
            is_met(verdict) ? "met" : "MISSED", human_share(verdict->within / answers).text);
    fprintf(out, "least in layer %" PRIu32 " (%s)\n", verdict->worst_layer,
            human_share(verdict->worst_within).text);
}

static void print_unasked(FILE *out, uint64_t layers)
{
    if (layers > 0)
        fprintf(out, "layers without queries since the daemon started: %s\n",
                human_count(layers).text);
}

/* ---- as JSON ---- */

static void layer_json(struct json *json, uint32_t layer, const struct memd_recall *recall)
{
    json_open(json, NULL, '{');
    json_uint(json, "layer", layer);
    json_uint(json, "queries", recall->queries);
    json_uint(json, "answers", recall->answers);
    json_uint(json, "tokens", recall->tokens);
    bool any = recall->queries > 0, predicted = recall->predicted > 0;
    json_open(json, "error", '{');
    json_real(json, "mean", any ? recall->error.mean : (double)NAN);
    json_real(json, "p50", any ? recall->error.p50 : (double)NAN);
    json_real(json, "p90", any ? recall->error.p90 : (double)NAN);
    json_real(json, "p99", any ? recall->error.p99 : (double)NAN);
    json_real(json, "max", any ? recall->error.max : (double)NAN);
    json_close(json);
    json_real(json, "lse_error_max", any ? recall->lse_error_max : (double)NAN);
    json_uint(json, "predicted", recall->predicted);
    json_real(json, "predicted_mean", predicted ? recall->predicted_mean : (double)NAN);
    json_real(json, "ratio_median", predicted ? recall->ratio_median : (double)NAN);
    json_real(json, "within_twice", any ? recall->within_twice : (double)NAN);
    json_open(json, "level_mass", '{');
    for (size_t i = 0; i < MEMD_LEVELS; i++)
        json_real(json, level_names[i], any ? recall->level_mass[i] : (double)NAN);
    json_close(json);
    json_open(json, "level_bytes", '{');
    for (size_t i = 0; i < MEMD_LEVELS; i++)
        json_uint(json, level_names[i], recall->level_bytes[i]);
    json_close(json);
    json_uint(json, "bytes_read", recall->bytes_read);
    json_uint(json, "bytes_exact", recall->bytes_exact);
    json_close(json);
}

static void end_json(struct json *json, const struct verdict *verdict)
{
    double answers = verdict->answers == 0 ? (double)NAN : (double)verdict->answers;
    json_close(json);
    json_text(json, "method", verdict->method);
    json_real(json, "target_error", verdict->target);
    json_uint(json, "queries", verdict->queries);
    json_uint(json, "answers", verdict->answers);
    json_real(json, "error_mean", verdict->error / answers);
    json_real(json, "within_twice", verdict->within / answers);
    json_real(json, "bytes_share", verdict->bytes_exact == 0
                                       ? (double)NAN
                                       : share(verdict->bytes_read, verdict->bytes_exact));
    if (verdict->answers == 0 || isnan(verdict->target)) {
        json_null(json, "met");
    } else {
        json_bool(json, "met", is_met(verdict));
    }
    json_close(json);
}

/* ---- the walk ---- */

struct recalling {
    struct ctl *ctl;
    struct memd_context context;
    struct memd_recall_args args;
    uint32_t first, limit; /* layers */
    struct table *table;
    struct json json;
    struct verdict verdict;
    const struct memd_recall *last; /* keeps the method's name */
};

static int walk(struct recalling *recalling)
{
    struct ctl *ctl = recalling->ctl;
    struct progress progress = progress_begin("recall");
    for (uint32_t layer = recalling->first; layer < recalling->limit; layer++) {
        const struct memd_recall *recall = NULL;
        recalling->args.layer = layer;
        int rc = memd_recall(&recalling->context, &recalling->args, &recall, &ctl->err);
        if (rc < 0) {
            progress_end(&progress);
            return ctl_failed(ctl, rc, "recall");
        }
        memd_free(recalling->last);
        recalling->last = recall;
        recalling->verdict.method = recall->method;
        take(&recalling->verdict, layer, recall);
        if (ctl->json) {
            layer_json(&recalling->json, layer, recall);
        } else if (recall->queries > 0) {
            add_row(recalling->table, layer, recall);
        }
        progress_show(&progress, layer + 1 - recalling->first, recalling->limit - recalling->first,
                      "layer");
    }
    progress_end(&progress);
    return CTL_OK;
}

static int read_options(struct recalling *recalling)
{
    struct ctl *ctl = recalling->ctl;
    recalling->limit = recalling->context.layers;
    const char *text = options_value(&ctl->options, "layer");
    uint64_t layer = 0;
    if (text != NULL) {
        if (!human_parse_uint(text, UINT32_MAX, &layer) || layer >= recalling->limit)
            return ctl_usage(ctl, "--layer: '%s' is none of 0 … %" PRIu32, text,
                             recalling->limit - 1);
        recalling->first = (uint32_t)layer;
        recalling->limit = (uint32_t)layer + 1;
    }
    return ctl_option_target(ctl, &recalling->args.target_error);
}

int recall_main(struct ctl *ctl)
{
    const char *name = ctl->options.arguments[0];
    struct recalling recalling = { .ctl = ctl, .json = json_writer(ctl->out) };
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK) rc = ctl_find(ctl, name, &recalling.context);
    if (rc == CTL_OK) rc = read_options(&recalling);
    if (rc != CTL_OK) return rc;
    CLEANUP(table_freep) struct table *table = table_new(columns, COLUMNS);
    recalling.table = table;
    if (ctl->json) {
        json_open(&recalling.json, NULL, '{');
        json_text(&recalling.json, "name", name);
        json_open(&recalling.json, "layers", '[');
    }
    rc = walk(&recalling);
    if (rc == CTL_OK && ctl->json) {
        end_json(&recalling.json, &recalling.verdict);
    } else if (rc == CTL_OK) {
        if (recalling.verdict.answers > 0) rc = ctl_print(ctl, table);
        if (rc == CTL_OK && recalling.verdict.answers > 0)
            print_unasked(ctl->out, recalling.limit - recalling.first - recalling.verdict.layers);
        if (rc == CTL_OK) print_verdict(ctl->out, name, &recalling.verdict);
    }
    memd_free(recalling.last);
    if (rc != CTL_OK || recalling.verdict.answers == 0) return rc;
    return is_met(&recalling.verdict) ? CTL_OK : CTL_UNHEALTHY;
}
