/* SPDX-License-Identifier: Apache-2.0 */
/* context.c — `memctl context NAME`: everything that is known about one context. */
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/info.h"
#include "clients/memctl/json.h"
#include "clients/memctl/state.h"
#include "clients/memctl/table.h"

static const struct table_column plain[] = { { NULL, TABLE_LEFT }, { NULL, TABLE_LEFT } };

static void add_model(struct table *table, const struct memd_model *model)
{
    table_add(table, "model");
    table_addf(table, "%" PRIu32 " layers, %" PRIu32 " query heads, %" PRIu32
               " KV heads of %" PRIu32 ", %s",
               model->layers, model->query_heads, model->kv_heads, model->head_dim,
               info_dtype_name(model->dtype));
    table_add(table, "rope");
    table_addf(table, "%s%s", info_rope_text(model->rope).text,
               model->rope == NULL ? ""
               : model->rotated    ? ", applied by the client"
                                   : ", applied here");
    table_add(table, "fingerprint");
    table_add(table, model->fingerprint[0] == '\0' ? "-" : model->fingerprint);
}

/* Token counts differ between layers only while a client is between the layers of one step. */
static void add_layers(struct table *table, const struct memd_info *info)
{
    uint64_t least = UINT64_MAX, most = 0;
    size_t unused = 0;
    for (size_t i = 0; i < info->layer_count; i++) {
        uint64_t tokens = info->layer_tokens[i];
        unused += tokens == 0;
        if (tokens == 0) continue;
        if (tokens < least) least = tokens;
        if (tokens > most) most = tokens;
    }
    table_add(table, "layers");
    if (most == 0) {
        table_add(table, "all empty");
    } else if (least == most) {
        table_addf(table, "%s each, %zu unused", human_counted(most, "token").text, unused);
    } else {
        table_addf(table, "%s to %s, %zu unused", human_count(least).text,
                   human_counted(most, "token").text, unused);
    }
}

static void add_times(struct table *table, const struct memd_info *info)
{
    uint64_t now_ms = clock_real_ns() / 1000000;
    table_add(table, "created");
    table_add(table, human_since(info->created_unix_ms, now_ms).text);
    table_add(table, "used");
    table_add(table, human_since(info->used_unix_ms, now_ms).text);
    table_add(table, "pinned");
    bool pinned = info->pinned_until_unix_ms > now_ms;
    table_addf(table, "%s%s", pinned ? "ends " : "no",
               pinned ? human_since(info->pinned_until_unix_ms, now_ms).text : "");
}

static int print_table(struct ctl *ctl, const struct memd_info *info,
                       const struct memd_states *states)
{
    CLEANUP(table_freep) struct table *table = table_new(plain, 2);
    table_add(table, "name");
    table_add(table, info->name);
    table_add(table, "id");
    table_addf(table, "%" PRIu64, info->id);
    table_add(table, "method");
    table_add(table, info->method);
    for (size_t i = 0; i < info->parameter_count; i++) {
        table_addf(table, "  %s", info->parameters[i].name);
        table_add(table, info->parameters[i].value);
    }
    add_model(table, &info->model);
    table_add(table, "tokens");
    table_addf(table, "%s, %s committed, %s synced", human_count(info->tokens).text,
               human_count(info->committed_tokens).text, human_count(info->synced_tokens).text);
    add_layers(table, info);
    table_add(table, "stored");
    table_addf(table, "%s in %s and the tail, %s shared", human_bytes(info->stored_bytes).text,
               human_counted(info->sealed_segments, "segment").text,
               human_bytes(info->shared_bytes).text);
    table_add(table, "derived");
    table_addf(table, "%s of it; %s of %s built", human_bytes(info->derived_bytes).text,
               human_count(info->built_segments).text,
               human_counted(info->sealed_segments, "segment").text);
    if (info->indexed_tokens > 0) {
        table_add(table, "indexed");
        table_addf(table, "%s of every layer", human_counted(info->indexed_tokens, "token").text);
    }
    if (info->parent_id != 0) {
        table_add(table, "fork of");
        table_addf(table, "context id %" PRIu64, info->parent_id);
    }
    if (info->state_width > 0) {
        table_add(table, "states");
        table_addf(table, "%" PRIu32 " numbers of each token instead of K and V",
                   info->state_width);
    }
    add_times(table, info);
    table_add(table, "resident");
    table_add(table, info->resident ? "yes" : "no");
    if (states != NULL) state_add(table, states);
    int rc = ctl_print(ctl, table);
    bool layers = options_value(&ctl->options, "layers") != NULL;
    if (rc == CTL_OK && layers && states->count > 0) rc = state_print_layers(ctl, states);
    return rc;
}

/* A state is asked for where that loads nothing, or where somebody wants to see it. */
static int find_states(struct ctl *ctl, const struct memd_info *info,
                       const struct memd_states **ret_states)
{
    if (!info->resident && options_value(&ctl->options, "layers") == NULL) return 0;
    struct memd_context context = { .client = ctl->client, .id = info->id };
    return memd_states(&context, ret_states, &ctl->err);
}

int context_main(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    const char *name = ctl->options.arguments[0];
    CLEANUP(ctl_result_free) const struct memd_info *info = NULL;
    rc = memd_stat_name(ctl->client, name, &info, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, name);
    CLEANUP(ctl_result_free) const struct memd_states *states = NULL;
    rc = find_states(ctl, info, &states);
    if (rc < 0) return ctl_failed(ctl, rc, name);
    if (!ctl->json) return print_table(ctl, info, states);
    struct json json = json_writer(ctl->out);
    json_open(&json, NULL, '{');
    info_json(&json, info, true);
    state_json(&json, states);
    json_close(&json);
    return CTL_OK;
}
