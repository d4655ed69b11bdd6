/* SPDX-License-Identifier: Apache-2.0 */
/* reload.c — options are compared by their text, so that every type is compared the same way. */
#include "daemon/reload.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/notify.h"
#include "daemon/server.h"

/* Log what differs; take back what cannot change while running. Returns the number of changes. */
static unsigned keep_fixed(const struct config *old, struct config *fresh)
{
    unsigned changes = 0;
    for (size_t i = 0; i < option_count; i++) {
        const struct option_info *option = &option_table[i];
        char before[OPTION_TEXT_BYTES], after[OPTION_TEXT_BYTES];
        option_print(option, old, before);
        option_print(option, fresh, after);
        if (strcmp(before, after) == 0) continue;
        if (option->reload) {
            changes++;
            log_event(LOG_INFO, "reload-changed", "key=%s from='%s' to='%s'", option->name, before,
                      after);
            continue;
        }
        log_event(LOG_WARN, "reload-needs-restart", "key=%s running='%s' file='%s', ignoring",
                  option->name, before, after);
        struct error err = { 0 };
        int rc = option_set(option, before, fresh, &err);
        assert(rc == 0); /* option_print writes what option_set reads */
    }
    return changes;
}

static int load(struct server *server, struct config *ret_config, struct identity *ret_identity,
                struct error *err)
{
    const struct server_origin *origin = &server->origin;
    int rc = config_load(origin->config_path, origin->overrides, origin->override_count, ret_config,
                         err);
    return rc < 0 ? rc : identity_load(ret_config->token_file, ret_identity, err);
}

void reload_config(struct server *server)
{
    struct error err = { 0 };
    struct config fresh;
    struct identity identity;
    notify_reloading();
    if (load(server, &fresh, &identity, &err) < 0) {
        log_event(LOG_ERROR, "reload-failed", "%s: %s; the old configuration stays",
                  error_name(err.code), err.text);
        notify_ready("ready; last reload failed");
        return;
    }
    unsigned changes = keep_fixed(&server->config, &fresh);
    server->config = fresh;
    server->identity = identity;
    log_set_level(fresh.log_level);
    struct catalog_config catalog = {
        .path = fresh.data,
        .map_bytes = fresh.map_size,
        .budget_bytes = fresh.budget,
        .tail_bytes_max = fresh.tail_memory,
        .sync = fresh.sync.mode,
        .sync_interval_ms = fresh.sync.interval_ms,
        .contexts_max = (size_t)fresh.contexts_resident_max,
        .resident_bytes_max = fresh.resident_memory,
        .pool = server->pool,
        .accelerator = server->backend.accelerator,
        .on_progress = worker_progress,
        .on_progress_arg = server,
    };
    catalog_reconfigure(server->catalog, &catalog);
    backend_reload(&fresh, &server->backend);
    atomic_store(&server->regions.copied_max, fresh.memory_in_flight);
    log_event(LOG_INFO, "reloaded", "changes=%u tokens=%zu", changes, identity.token_count);
    notify_ready("ready");
}
