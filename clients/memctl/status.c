/* SPDX-License-Identifier: Apache-2.0 */
/* status.c — `memctl status`: what the daemon is, where it listens, what it holds. */
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/table.h"

static const struct table_column plain[] = { { NULL, TABLE_LEFT }, { NULL, TABLE_LEFT } };

static void print_json(const struct ctl *ctl, const struct memd_status *status)
{
    struct json json = json_writer(ctl->out);
    json_open(&json, NULL, '{');
    json_text(&json, "address", ctl->address);
    json_text(&json, "build", status->build);
    json_uint(&json, "pid", status->pid);
    json_uint(&json, "uptime_ms", status->uptime_ms);
    json_bool(&json, "draining", status->draining);
    json_open(&json, "listeners", '[');
    for (size_t i = 0; i < status->listener_count; i++)
        json_text(&json, NULL, status->listeners[i]);
    json_close(&json);
    json_uint(&json, "connections", status->connections);
    json_uint(&json, "workers", status->workers);
    json_text(&json, "simd", status->simd);
    json_text(&json, "backend", status->backend);
    json_text(&json, "backend_reason", status->backend_reason);
    json_text(&json, "data", status->data);
    json_text(&json, "sync", status->sync);
    json_uint(&json, "contexts", status->contexts);
    json_uint(&json, "stored_bytes", status->stored_bytes);
    if (status->budget_bytes == 0) {
        json_null(&json, "budget_bytes");
    } else {
        json_uint(&json, "budget_bytes", status->budget_bytes);
    }
    json_uint(&json, "map_bytes", status->map_bytes);
    json_uint(&json, "map_used_bytes", status->map_used_bytes);
    json_uint(&json, "file_bytes", status->file_bytes);
    json_uint(&json, "shared_regions", status->shared_regions);
    json_uint(&json, "shared_bytes", status->shared_bytes);
    json_uint(&json, "shared_bytes_max", status->shared_bytes_max);
    json_uint(&json, "damaged_drops", status->damaged_drops);
    json_uint(&json, "damaged_pages", status->damaged_pages);
    json_close(&json);
}

static void add_share(struct table *table, const char *label, uint64_t part, uint64_t whole)
{
    table_add(table, label);
    table_addf(table, "%s of %s (%s)", human_bytes(part).text, human_bytes(whole).text,
               human_share(whole == 0 ? 0.0 : (double)part / (double)whole).text);
}

static int print_table(struct ctl *ctl, const struct memd_status *status)
{
    CLEANUP(table_freep) struct table *table = table_new(plain, 2);
    table_add(table, "daemon");
    table_addf(table, "%s, pid %" PRIu64 ", up %s%s", status->build, status->pid,
               human_seconds((double)status->uptime_ms / 1000.0).text,
               status->draining ? ", draining" : "");
    for (size_t i = 0; i < status->listener_count; i++) {
        table_add(table, i == 0 ? "listens on" : "");
        table_add(table, status->listeners[i]);
    }
    table_add(table, "connections");
    table_add(table, human_count(status->connections).text);
    table_add(table, "computes on");
    table_addf(table, "%s%s%s%s, %" PRIu32 " workers, %s kernels", status->backend,
               status->backend_reason[0] == '\0' ? "" : " (", status->backend_reason,
               status->backend_reason[0] == '\0' ? "" : ")", status->workers, status->simd);
    table_add(table, "data");
    table_addf(table, "%s, sync %s", status->data, status->sync);
    table_add(table, "contexts");
    table_add(table, human_count(status->contexts).text);
    if (status->budget_bytes == 0) {
        table_add(table, "stored");
        table_addf(table, "%s, no budget", human_bytes(status->stored_bytes).text);
    } else {
        add_share(table, "stored", status->stored_bytes, status->budget_bytes);
    }
    add_share(table, "map", status->map_used_bytes, status->map_bytes);
    table_add(table, "file");
    table_add(table, human_bytes(status->file_bytes).text);
    table_add(table, "shared memory");
    table_addf(table, "%s, %s of %s", human_counted(status->shared_regions, "region").text,
               human_bytes(status->shared_bytes).text, human_bytes(status->shared_bytes_max).text);
    if (status->damaged_pages > 0) {
        table_add(table, "damage");
        table_addf(table, "%s of the store fenced off, see verify",
                   human_counted(status->damaged_pages, "page").text);
    }
    if (status->damaged_drops > 0) {
        table_add(table, status->damaged_pages > 0 ? "" : "damage");
        table_addf(table, "keeps the bytes of %s in the store",
                   human_counted(status->damaged_drops, "dropped context").text);
    }
    return ctl_print(ctl, table);
}

int status_main(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    CLEANUP(ctl_result_free) const struct memd_status *status = NULL;
    rc = memd_status(ctl->client, &status, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "status");
    if (!ctl->json) return print_table(ctl, status);
    print_json(ctl, status);
    return CTL_OK;
}
