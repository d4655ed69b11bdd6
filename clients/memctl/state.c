/* SPDX-License-Identifier: Apache-2.0 */
/* state.c — facts are found by name, in the order in which the first layer that has one tells it:
 * memctl knows none of them, so a method can tell what it likes. */
#include "clients/memctl/state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

enum { FACTS_MAX = 64 };

/* Names of all facts, each once. */
struct names {
    const char *list[FACTS_MAX];
    size_t count;
};

static const struct memd_fact *find(const struct memd_layer_state *layer, const char *name)
{
    for (size_t i = 0; i < layer->fact_count; i++)
        if (strcmp(layer->facts[i].name, name) == 0) return &layer->facts[i];
    return NULL;
}

static void take(struct names *names, const char *name)
{
    for (size_t i = 0; i < names->count; i++)
        if (strcmp(names->list[i], name) == 0) return;
    if (names->count < FACTS_MAX) names->list[names->count++] = name;
}

static struct names names_of(const struct memd_states *states)
{
    struct names names = { .count = 0 };
    for (size_t l = 0; l < states->count; l++)
        for (size_t i = 0; i < states->layers[l].fact_count; i++)
            take(&names, states->layers[l].facts[i].name);
    return names;
}

static bool ends_in(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

/* A fact over all layers that have it. */
static double over_layers(const struct memd_states *states, const char *name)
{
    double sum = 0, least = INFINITY, most = -INFINITY;
    size_t count = 0;
    for (size_t l = 0; l < states->count; l++) {
        const struct memd_fact *fact = find(&states->layers[l], name);
        if (fact == NULL) continue;
        sum += fact->value;
        least = fmin(least, fact->value);
        most = fmax(most, fact->value);
        count++;
    }
    if (ends_in(name, "_mean")) return sum / (double)count;
    if (ends_in(name, "_min")) return least;
    return ends_in(name, "_max") ? most : sum;
}

static void add_value(struct table *table, const char *name, double value)
{
    bool whole = value >= 0 && value < 0x1p63 && value == floor(value);
    if (whole && strcmp(name, "bytes") == 0) {
        table_add(table, human_bytes((uint64_t)value).text);
    } else if (whole) {
        table_add(table, human_count((uint64_t)value).text);
    } else {
        table_addf(table, "%.4g", value);
    }
}

void state_add(struct table *table, const struct memd_states *states)
{
    struct names names = names_of(states);
    if (names.count == 0) return;
    table_add(table, "state");
    table_addf(table, "of %s", human_counted(states->count, "layer").text);
    for (size_t i = 0; i < names.count; i++) {
        table_addf(table, "  %s", names.list[i]);
        add_value(table, names.list[i], over_layers(states, names.list[i]));
    }
}

int state_print_layers(struct ctl *ctl, const struct memd_states *states)
{
    struct names names = names_of(states);
    struct table_column columns[FACTS_MAX + 1] = { { "LAYER", TABLE_RIGHT } };
    for (size_t i = 0; i < names.count; i++)
        columns[i + 1] = (struct table_column){ names.list[i], TABLE_RIGHT };
    CLEANUP(table_freep) struct table *table = table_new(columns, names.count + 1);
    for (size_t l = 0; l < states->count; l++) {
        table_addf(table, "%" PRIu32, states->layers[l].layer);
        for (size_t i = 0; i < names.count; i++) {
            const struct memd_fact *fact = find(&states->layers[l], names.list[i]);
            if (fact == NULL) {
                table_add(table, "-");
            } else {
                add_value(table, fact->name, fact->value);
            }
        }
    }
    fputc('\n', ctl->out);
    return ctl_print(ctl, table);
}

void state_json(struct json *json, const struct memd_states *states)
{
    if (states == NULL) {
        json_null(json, "state");
        json_null(json, "layer_states");
        return;
    }
    struct names names = names_of(states);
    json_open(json, "state", '{');
    for (size_t i = 0; i < names.count; i++)
        json_real(json, names.list[i], over_layers(states, names.list[i]));
    json_close(json);
    json_open(json, "layer_states", '[');
    for (size_t l = 0; l < states->count; l++) {
        json_open(json, NULL, '{');
        json_uint(json, "layer", states->layers[l].layer);
        json_open(json, "facts", '{');
        for (size_t i = 0; i < states->layers[l].fact_count; i++)
            json_real(json, states->layers[l].facts[i].name, states->layers[l].facts[i].value);
        json_close(json);
        json_close(json);
    }
    json_close(json);
}
