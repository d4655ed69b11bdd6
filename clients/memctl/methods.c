/* SPDX-License-Identifier: Apache-2.0 */
/* methods.c — `memctl methods`: what a context can be made with, and what can be set for each. */
#include <math.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column columns[] = {
    { "METHOD", TABLE_LEFT }, { "DEFAULT", TABLE_RIGHT }, { "FROM", TABLE_RIGHT },
    { "TO", TABLE_RIGHT },    { "", TABLE_LEFT },
};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

/* The name of a choice's default; NULL: the option is a number. A daemon's word is not trusted. */
static const char *chosen(const struct memd_option *option)
{
    if (option->choice_count == 0) return NULL;
    bool sound = option->fallback >= 0.0 && option->fallback < (double)option->choice_count;
    return sound ? option->choices[(size_t)option->fallback] : "?";
}

static void json_option(struct json *json, const struct memd_option *option)
{
    json_open(json, NULL, '{');
    json_text(json, "name", option->name);
    json_text(json, "help", option->help);
    if (chosen(option) != NULL) {
        json_text(json, "default", chosen(option));
        json_open(json, "choices", '[');
        for (size_t i = 0; i < option->choice_count; i++)
            json_text(json, NULL, option->choices[i]);
        json_close(json);
    } else {
        json_real(json, "default", option->fallback);
        json_real(json, "least", option->least);
        json_real(json, "most", option->most);
        json_bool(json, "whole", option->whole);
    }
    json_close(json);
}

static void json_abilities(struct json *json, const struct memd_method *method)
{
    json_open(json, "tensors", '[');
    for (size_t i = 0; i < method->tensor_count; i++) {
        json_open(json, NULL, '{');
        json_text(json, "name", method->tensors[i].name);
        json_text(json, "shape", method->tensors[i].shape);
        json_text(json, "help", method->tensors[i].help);
        json_close(json);
    }
    json_close(json);
    json_bool(json, "wants_queries", method->wants_queries);
    json_bool(json, "samples_queries", method->samples_queries);
    json_bool(json, "wants_marks", method->wants_marks);
    json_bool(json, "takes_mass", method->takes_mass);
    json_bool(json, "compresses", method->compresses);
    json_bool(json, "folds", method->folds);
    json_uint(json, "state_width", method->state_width);
}

static void print_json(const struct ctl *ctl, const struct memd_methods *methods)
{
    struct json json = json_writer(ctl->out);
    json_open(&json, NULL, '{');
    json_open(&json, "methods", '[');
    for (size_t i = 0; i < methods->count; i++) {
        const struct memd_method *method = &methods->methods[i];
        json_open(&json, NULL, '{');
        json_text(&json, "name", method->name);
        json_text(&json, "help", method->help);
        json_bool(&json, "default", method->is_default);
        json_open(&json, "options", '[');
        for (size_t o = 0; o < method->option_count; o++)
            json_option(&json, &method->options[o]);
        json_close(&json);
        json_abilities(&json, method);
        json_close(&json);
    }
    json_close(&json);
    json_close(&json);
}

/* The end of a range that only keeps numbers whole is no limit that anybody meets. */
static void add_number(struct table *table, double value)
{
    if (fabs(value) >= 0x1p53 - 1.0) {
        table_add(table, "any");
    } else {
        table_addf(table, "%.9g", value);
    }
}

static void add_option(struct table *table, const struct memd_option *option)
{
    table_addf(table, "  %s", option->name);
    if (chosen(option) == NULL) {
        add_number(table, option->fallback);
        add_number(table, option->least);
        add_number(table, option->most);
        table_add(table, option->help);
        return;
    }
    char names[512] = "";
    size_t used = 0;
    for (size_t i = 0; i < option->choice_count && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i == 0 ? "" : " | ",
                                 option->choices[i]);
    table_add(table, chosen(option));
    table_add(table, "");
    table_add(table, "");
    table_addf(table, "%s: %s", option->help, names);
}

/* What a client has to bring, or may ask for, besides keys, values and queries of attends. */
static void add_abilities(struct table *table, const struct memd_method *method)
{
    const struct {
        bool is;
        const char *text;
    } abilities[] = {
        { method->wants_queries, "wants the queries of appended tokens" },
        { method->samples_queries, "wants the queries of the first tokens, and of some later" },
        { method->wants_marks, "wants marks of appended tokens" },
        { method->takes_mass, "takes the attention mass of tokens" },
        { method->compresses, "compresses a prompt" },
        { method->state_width > 0, "keeps a state of each token instead of its key and value" },
    };
    for (size_t i = 0; i < sizeof abilities / sizeof abilities[0]; i++) {
        if (!abilities[i].is) continue;
        for (size_t c = 0; c + 1 < COLUMNS; c++) table_add(table, "");
        table_addf(table, "%s", abilities[i].text);
    }
    for (size_t i = 0; i < method->tensor_count; i++) {
        const struct memd_method_tensor *tensor = &method->tensors[i];
        table_addf(table, "  %s", tensor->name);
        for (size_t c = 2; c < COLUMNS; c++) table_add(table, "");
        table_addf(table, "tensor (%s): %s", tensor->shape, tensor->help);
    }
}

static int print_table(struct ctl *ctl, const struct memd_methods *methods)
{
    CLEANUP(table_freep) struct table *table = table_new(columns, COLUMNS);
    for (size_t i = 0; i < methods->count; i++) {
        const struct memd_method *method = &methods->methods[i];
        table_add(table, method->name);
        for (size_t c = 2; c < COLUMNS; c++) table_add(table, "");
        table_addf(table, "%s%s", method->help,
                   method->is_default ? " (what open takes when it is told none)" : "");
        add_abilities(table, method);
        for (size_t o = 0; o < method->option_count; o++) add_option(table, &method->options[o]);
    }
    return ctl_print(ctl, table);
}

int methods_main(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    CLEANUP(ctl_result_free) const struct memd_methods *methods = NULL;
    rc = memd_methods(ctl->client, &methods, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "methods");
    if (!ctl->json) return print_table(ctl, methods);
    print_json(ctl, methods);
    return CTL_OK;
}
