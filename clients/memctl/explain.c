/* SPDX-License-Identifier: Apache-2.0 */
/* explain.c — `memctl explain NAME`: what was read for one of the latest queries of a layer, where
 * it was rotated, how it entered the answer, and how much of the answer it is.
 *
 * The daemon asks the query again, so nobody has to stop an engine or send anything. One line a
 * run of rows; what is below one percent of the answer is as easily read as what is not, since
 * that is what somebody who wonders about a method looks for.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column columns[] = {
    { "HEADS", TABLE_RIGHT },    { "READ", TABLE_LEFT },    { "IDS", TABLE_RIGHT },
    { "COUNT", TABLE_RIGHT },    { "KEYS AT", TABLE_RIGHT }, { "QUERY AT", TABLE_RIGHT },
    { "SOFTMAX", TABLE_LEFT },   { "WEIGHT", TABLE_RIGHT }, { "SHARE", TABLE_RIGHT },
};
enum { COLUMNS = sizeof columns / sizeof columns[0], TEXT_BYTES = 64 };

struct explaining {
    struct ctl *ctl;
    const char *name;
    struct memd_context context;
    struct memd_explain_args args;
    bool one_head;
    uint32_t head;
};

/* A daemon's word is not trusted. */
static const char *kind_name(enum memd_plan_kind kind)
{
    switch (kind) {
    case MEMD_PLAN_TOKENS: return "tokens";
    case MEMD_PLAN_SLOTS: return "slots";
    }
    return "?";
}

static const char *merge_name(enum memd_plan_merge merge)
{
    switch (merge) {
    case MEMD_PLAN_JOINT: return "joint";
    case MEMD_PLAN_GATED: return "gated";
    case MEMD_PLAN_SEPARATE: return "separate";
    }
    return "?";
}

static bool is_wanted(const struct explaining *explaining, const struct memd_plan_run *run)
{
    return !explaining->one_head ||
           (explaining->head >= run->head && explaining->head - run->head < run->heads);
}

/* ---- as a table ---- */

static void add_span(struct table *table, uint64_t first, uint64_t count)
{
    if (count <= 1) {
        table_addf(table, "%" PRIu64, first);
    } else {
        table_addf(table, "%" PRIu64 "-%" PRIu64, first, first + count - 1);
    }
}

static void add_place(struct table *table, uint64_t place, uint64_t count)
{
    if (place == MEMD_UNPLACED) {
        table_add(table, "-");
    } else {
        add_span(table, place, count);
    }
}

static void add_run(struct table *table, const struct memd_plan *plan,
                    const struct memd_plan_run *run)
{
    const struct memd_plan_group *group = &plan->groups[run->group];
    add_span(table, run->head, run->heads);
    table_add(table, kind_name(run->kind));
    add_span(table, run->first, run->count);
    table_add(table, human_count(run->count).text);
    add_place(table, run->placed, run->count);
    add_place(table, run->query_placed, 1);
    if (group->merge == MEMD_PLAN_JOINT) {
        table_add(table, merge_name(group->merge));
        table_add(table, "-");
    } else {
        table_addf(table, "%s %" PRIu32, merge_name(group->merge), run->group);
        table_addf(table, "%.4f", (double)group->weight);
    }
    table_add(table, isnan(run->share) ? "-" : human_share((double)run->share).text);
}

/* Rows a head reads, as a mean over all heads, rounded. */
static uint64_t rows_per_head(const struct memd_explained *explained, enum memd_plan_kind kind)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < explained->plan->run_count; i++) {
        const struct memd_plan_run *run = &explained->plan->runs[i];
        if (run->kind == kind) sum += run->heads * run->count;
    }
    return explained->heads == 0 ? 0 : (sum + explained->heads / 2) / explained->heads;
}

static void print_summary(const struct explaining *explaining,
                          const struct memd_explained *explained)
{
    FILE *out = explaining->ctl->out;
    const struct memd_quality *quality = &explained->quality;
    uint64_t slots = rows_per_head(explained, MEMD_PLAN_SLOTS);
    fprintf(out, "\n%s: %s, layer %" PRIu32 ", query at position %s: ", explaining->name,
            quality->method, explaining->args.layer, human_count(explained->position).text);
    fprintf(out, "a head reads %s of %s",
            human_count(rows_per_head(explained, MEMD_PLAN_TOKENS)).text,
            human_counted(explained->tokens, "token").text);
    if (slots > 0) fprintf(out, " and %s", human_counted(slots, "slot").text);
    fprintf(out, ", %s of %s\n", human_bytes(quality->bytes_read).text,
            human_bytes(quality->bytes_exact).text);
    if (explained->plan->cut) fputs("more was read than a plan can hold\n", out);
}

static int print_table(const struct explaining *explaining, const struct memd_explained *explained)
{
    struct ctl *ctl = explaining->ctl;
    if (explained->queries == 0) {
        fprintf(ctl->out,
                "%s: no queries of layer %" PRIu32 " are kept, or nothing is stored. Attend to it "
                "and ask again; a context of method full keeps none, it reads everything.\n",
                explaining->name, explaining->args.layer);
        return CTL_OK;
    }
    CLEANUP(table_freep) struct table *table = table_new(columns, COLUMNS);
    for (size_t i = 0; i < explained->plan->run_count; i++) {
        const struct memd_plan_run *run = &explained->plan->runs[i];
        if (is_wanted(explaining, run)) add_run(table, explained->plan, run);
    }
    int rc = ctl_print(ctl, table);
    if (rc == CTL_OK) print_summary(explaining, explained);
    return rc;
}

/* ---- as JSON ---- */

static void json_place(struct json *json, const char *key, uint64_t place)
{
    if (place == MEMD_UNPLACED) {
        json_null(json, key);
    } else {
        json_uint(json, key, place);
    }
}

static void run_json(struct json *json, const struct memd_plan_run *run)
{
    json_open(json, NULL, '{');
    json_uint(json, "head", run->head);
    json_uint(json, "heads", run->heads);
    json_uint(json, "group", run->group);
    json_text(json, "kind", kind_name(run->kind));
    json_uint(json, "first", run->first);
    json_uint(json, "count", run->count);
    json_place(json, "placed", run->placed);
    json_place(json, "query_placed", run->query_placed);
    json_real(json, "share", (double)run->share);
    json_close(json);
}

static void plan_json(struct json *json, const struct explaining *explaining,
                      const struct memd_plan *plan)
{
    json_open(json, "runs", '[');
    for (size_t i = 0; i < plan->run_count; i++)
        if (is_wanted(explaining, &plan->runs[i])) run_json(json, &plan->runs[i]);
    json_close(json);
    json_open(json, "groups", '[');
    for (size_t i = 0; i < plan->group_count; i++) {
        json_open(json, NULL, '{');
        json_uint(json, "head", plan->groups[i].head);
        json_text(json, "merge", merge_name(plan->groups[i].merge));
        json_real(json, "weight", (double)plan->groups[i].weight);
        json_close(json);
    }
    json_close(json);
    json_bool(json, "cut", plan->cut);
}

static void print_json(const struct explaining *explaining, const struct memd_explained *explained)
{
    struct json json = json_writer(explaining->ctl->out);
    const struct memd_quality *quality = &explained->quality;
    bool any = explained->queries > 0;
    json_open(&json, NULL, '{');
    json_text(&json, "name", explaining->name);
    json_uint(&json, "layer", explaining->args.layer);
    json_uint(&json, "queries", explained->queries);
    if (any) {
        json_text(&json, "method", quality->method);
        json_uint(&json, "position", explained->position);
        json_uint(&json, "tokens", explained->tokens);
        json_open(&json, "lse", '[');
        for (size_t i = 0; i < explained->heads; i++)
            json_real(&json, NULL, (double)explained->lse[i]);
        json_close(&json);
        json_uint(&json, "bytes_read", quality->bytes_read);
        json_uint(&json, "bytes_exact", quality->bytes_exact);
        plan_json(&json, explaining, explained->plan);
    }
    json_close(&json);
}

/* ---- the command ---- */

/* A number below `limit`, or `missing`. */
static int read_number(struct ctl *ctl, const char *option, uint64_t limit, uint64_t *ret_value)
{
    const char *text = options_value(&ctl->options, option);
    if (text == NULL) return CTL_OK;
    if (human_parse_uint(text, UINT64_MAX, ret_value) && *ret_value < limit) return CTL_OK;
    return ctl_usage(ctl, "--%s: '%s' is none of 0 … %" PRIu64, option, text, limit - 1);
}

static int read_options(struct explaining *explaining)
{
    struct ctl *ctl = explaining->ctl;
    uint64_t layer = 0, head = 0;
    explaining->one_head = options_value(&ctl->options, "head") != NULL;
    int rc = read_number(ctl, "layer", explaining->context.layers, &layer);
    if (rc == CTL_OK) rc = read_number(ctl, "head", explaining->context.query_heads, &head);
    if (rc == CTL_OK) rc = read_number(ctl, "query", UINT64_MAX, &explaining->args.query);
    if (rc == CTL_OK) rc = ctl_option_target(ctl, &explaining->args.target_error);
    explaining->args.layer = (uint32_t)layer;
    explaining->head = (uint32_t)head;
    return rc;
}

int explain_main(struct ctl *ctl)
{
    struct explaining explaining = { .ctl = ctl, .name = ctl->options.arguments[0] };
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK) rc = ctl_find(ctl, explaining.name, &explaining.context);
    if (rc == CTL_OK) rc = read_options(&explaining);
    if (rc != CTL_OK) return rc;
    CLEANUP(ctl_result_free) const struct memd_explained *explained = NULL;
    rc = memd_explain(&explaining.context, &explaining.args, &explained, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "explain");
    if (!ctl->json) return print_table(&explaining, explained);
    print_json(&explaining, explained);
    return CTL_OK;
}
