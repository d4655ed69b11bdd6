/* SPDX-License-Identifier: Apache-2.0 */
/* contexts.c — `memctl contexts [PREFIX]`: one line each, by name. */
#include <stdio.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/info.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column columns[] = {
    { "NAME", TABLE_LEFT },   { "METHOD", TABLE_LEFT },  { "TOKENS", TABLE_RIGHT },
    { "SYNCED", TABLE_RIGHT }, { "STORED", TABLE_RIGHT }, { "SHARED", TABLE_RIGHT },
    { "USED", TABLE_RIGHT },  { "PINNED", TABLE_RIGHT }, { "RESIDENT", TABLE_LEFT },
};

struct listing {
    struct table *table;
    struct json *json;
    uint64_t now_ms;
};

static int add_row(void *arg, const struct memd_info *info)
{
    const struct listing *listing = arg;
    bool pinned = info->pinned_until_unix_ms > listing->now_ms;
    table_add(listing->table, info->name);
    table_add(listing->table, info->method);
    table_add(listing->table, human_count(info->tokens).text);
    table_add(listing->table, human_count(info->synced_tokens).text);
    table_add(listing->table, human_bytes(info->stored_bytes).text);
    table_add(listing->table, human_bytes(info->shared_bytes).text);
    table_add(listing->table, human_since(info->used_unix_ms, listing->now_ms).text);
    table_add(listing->table,
              pinned ? human_since(info->pinned_until_unix_ms, listing->now_ms).text : "-");
    table_add(listing->table, info->resident ? "yes" : "no");
    return 0;
}

static int add_object(void *arg, const struct memd_info *info)
{
    const struct listing *listing = arg;
    json_open(listing->json, NULL, '{');
    info_json(listing->json, info, false);
    json_close(listing->json);
    return 0;
}

int contexts_main(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    const char *prefix = ctl->options.argument_count > 0 ? ctl->options.arguments[0] : NULL;
    struct json json = json_writer(ctl->out);
    CLEANUP(table_freep) struct table *table =
        table_new(columns, sizeof columns / sizeof columns[0]);
    struct listing listing = { table, &json, clock_real_ns() / 1000000 };
    if (!ctl->json) {
        rc = ctl_each_context(ctl, prefix, add_row, &listing);
        return rc == CTL_OK ? ctl_print(ctl, table) : rc;
    }
    json_open(&json, NULL, '{');
    json_open(&json, "contexts", '[');
    rc = ctl_each_context(ctl, prefix, add_object, &listing);
    if (rc != CTL_OK) return rc;
    json_close(&json);
    json_close(&json);
    return CTL_OK;
}
