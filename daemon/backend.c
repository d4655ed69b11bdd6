/* SPDX-License-Identifier: Apache-2.0 */
/* backend.c — opening a device at the start, and saying what became of it.
 *
 * A package of memd brings the plugin, and the plugin finds a device or says that there is none.
 * Nothing of it is loaded unless the configuration says `auto`: what drives a GPU has run over a
 * fake device and under emulation only, and nobody should be the first to run it without having
 * asked for it. When it has run on one, `auto` becomes the default. Only who names a plugin is told
 * with a warning that it is of no use.
 *
 * A daemon that started with `cpu` opens no device later: contexts get their windows when they are
 * loaded, and a driver that comes up takes seconds, in which the loop would answer nobody.
 */
#include "daemon/backend.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

enum { SINK_TOKENS = 4 };
#define TRAVEL_BYTES (UINT64_C(64) << 20)

static void on_lost(void *arg, const char *why)
{
    (void)arg;
    log_event(LOG_ERROR, "device-lost", "%s; the CPU answers", why);
}

static bool is_wanted(const struct config *config)
{
    return strcmp(config->backend, "auto") == 0;
}

void backend_open(const struct config *config, struct backend_choice *ret_choice)
{
    *ret_choice = (struct backend_choice){ .accelerator = NULL };
    bool named = strcmp(config->accelerator, "auto") != 0;
    const char *path = named ? config->accelerator : MEMD_PLUGIN_DIR "/memd-cuda.so";
    if (config->accelerator[0] == '\0' || (!named && access(path, R_OK) < 0)) {
        snprintf(ret_choice->why, sizeof ret_choice->why, "no plugin for a device is installed");
        return;
    }
    if (!is_wanted(config)) {
        snprintf(ret_choice->why, sizeof ret_choice->why, "backend = cpu when the daemon started; "
                 "`auto` loads %.120s, which has not run on a GPU yet", path);
        return;
    }
    struct accelerator_config wanted = { .ordinal = -1, .window_bytes = config->device_memory,
                                         .planes_bytes = config->device_planes,
                                         .travel_bytes = TRAVEL_BYTES,
                                         .sink_tokens = SINK_TOKENS,
                                         .window_tokens = (uint32_t)config->device_window,
                                         .on_lost = on_lost };
    const struct device_table *table = NULL;
    struct error err = { 0 };
    int rc = accelerator_load_plugin(path, &table, &err);
    if (rc == 0) rc = accelerator_open(table, &wanted, &ret_choice->accelerator, &err);
    if (rc < 0) {
        snprintf(ret_choice->why, sizeof ret_choice->why, "%s", err.text);
        log_event(named ? LOG_WARN : LOG_INFO, "no-device", "plugin=%s reason='%s'", path,
                  err.text);
        return;
    }
    accelerator_switch(ret_choice->accelerator, is_wanted(config));
    char name[BACKEND_TEXT_BYTES], reason[BACKEND_TEXT_BYTES];
    backend_describe(ret_choice, name, reason);
    log_event(LOG_INFO, "device", "backend=%s reason='%s' plugin=%s", name, reason, path);
}

void backend_close(struct backend_choice *choice)
{
    accelerator_close(choice->accelerator);
    choice->accelerator = NULL;
}

void backend_reload(const struct config *config, struct backend_choice *choice)
{
    if (choice->accelerator != NULL) accelerator_switch(choice->accelerator, is_wanted(config));
}

void backend_describe(const struct backend_choice *choice, char *ret_name, char *ret_reason)
{
    char why[BACKEND_TEXT_BYTES];
    snprintf(ret_name, BACKEND_TEXT_BYTES, "cpu");
    snprintf(ret_reason, BACKEND_TEXT_BYTES, "%s", choice->why);
    if (choice->accelerator == NULL) return;
    bool used = accelerator_describe(choice->accelerator, ret_reason, why, BACKEND_TEXT_BYTES);
    if (used)
        snprintf(ret_name, BACKEND_TEXT_BYTES, "%s", accelerator_backend(choice->accelerator));
    else
        memcpy(ret_reason, why, sizeof why);
}
