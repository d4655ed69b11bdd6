/* SPDX-License-Identifier: Apache-2.0 */
/* dump.c — `memctl dump [NAME]`: the records as the daemon describes them. A table is printed per
 * step (up to 1,024 records), so that a large store shows its first lines at once. */
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column columns[] = {
    { "TABLE", TABLE_LEFT },
    { "KEY", TABLE_LEFT },
    { "SIZE", TABLE_RIGHT },
    { "RECORD", TABLE_LEFT },
};

static int print_step(struct ctl *ctl, struct json *json, const struct memd_dump *step)
{
    CLEANUP(table_freep) struct table *table = table_new(columns, 4);
    for (size_t i = 0; i < step->count; i++) {
        const struct memd_record *record = &step->records[i];
        if (ctl->json) {
            json_open(json, NULL, '{');
            json_text(json, "table", record->table);
            json_text(json, "key", record->key);
            json_uint(json, "bytes", record->bytes);
            json_text(json, "summary", record->summary);
            json_close(json);
        } else {
            table_add(table, record->table);
            table_add(table, record->key);
            table_add(table, human_bytes(record->bytes).text);
            table_add(table, record->summary);
        }
    }
    return table_rows(table) > 0 ? ctl_print(ctl, table) : CTL_OK;
}

static int walk(struct ctl *ctl, uint64_t context_id, uint64_t limit, struct json *json)
{
    CLEANUP(ctl_result_free) const struct memd_dump *step = NULL;
    struct memd_dump_args args = { .context_id = context_id };
    uint64_t left = limit;
    do {
        const struct memd_dump *next = NULL;
        args.limit = left < 1024 ? (uint32_t)left : 0;
        int rc = memd_dump(ctl->client, &args, &next, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "dump");
        memd_free(step);
        step = next;
        rc = print_step(ctl, json, step);
        if (rc != CTL_OK) return rc;
        left -= step->count < left ? step->count : left;
        args.cursor = step->next;
    } while (args.cursor.bytes > 0 && left > 0);
    return CTL_OK;
}

int dump_main(struct ctl *ctl)
{
    uint64_t limit = 0;
    struct memd_context context = { .id = 0 };
    int rc = ctl_option_uint(ctl, "limit", UINT64_MAX, &limit);
    if (rc == CTL_OK) rc = ctl_connect(ctl);
    if (rc == CTL_OK && ctl->options.argument_count > 0) {
        rc = ctl_find(ctl, ctl->options.arguments[0], &context);
    }
    if (rc != CTL_OK) return rc;
    struct json json = json_writer(ctl->out);
    if (ctl->json) {
        json_open(&json, NULL, '{');
        json_open(&json, "records", '[');
    }
    rc = walk(ctl, context.id, limit, &json);
    if (rc != CTL_OK || !ctl->json) return rc;
    json_close(&json);
    json_close(&json);
    return CTL_OK;
}
