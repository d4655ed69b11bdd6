/* SPDX-License-Identifier: Apache-2.0 */
/* drop.c — `memctl drop [-f] NAME…`. As with rm: no question is asked, -f ignores what is missing
 * and takes what is protected (here: pinned), every name is tried, and the exit code tells of the
 * first failure. */
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

struct dropping {
    struct ctl *ctl;
    struct json *json;
    bool force;
};

static void report(const struct dropping *dropping, const char *name, uint64_t bytes)
{
    struct json *json = dropping->json;
    if (dropping->ctl->json) {
        json_open(json, NULL, '{');
        json_text(json, "name", name);
        json_uint(json, "bytes", bytes);
        json_close(json);
    } else {
        fprintf(dropping->ctl->out, "%s: dropped, %s given back\n", name, human_bytes(bytes).text);
    }
}

static int drop_one(const struct dropping *dropping, const char *name)
{
    struct ctl *ctl = dropping->ctl;
    CLEANUP(ctl_result_free) const struct memd_info *info = NULL;
    int rc = memd_stat_name(ctl->client, name, &info, &ctl->err);
    if (rc == MEMD_ENOCONTEXT && dropping->force) return CTL_OK;
    if (rc < 0) return ctl_failed(ctl, rc, name);
    uint64_t now_ms = clock_real_ns() / 1000000;
    if (info->pinned_until_unix_ms > now_ms && !dropping->force) {
        return ctl_error(ctl, "%s: is pinned (ends %s); --force drops it nevertheless", name,
                         human_since(info->pinned_until_unix_ms, now_ms).text);
    }
    uint64_t bytes = 0;
    const struct memd_context context = { .client = ctl->client, .id = info->id };
    rc = memd_drop(&context, &bytes, &ctl->err);
    if (rc == MEMD_ENOCONTEXT && dropping->force) return CTL_OK;
    if (rc < 0) return ctl_failed(ctl, rc, name);
    report(dropping, name, bytes);
    return CTL_OK;
}

int drop_main(struct ctl *ctl)
{
    int first = ctl_connect(ctl);
    if (first != CTL_OK) return first;
    struct json json = json_writer(ctl->out);
    const struct dropping dropping = { ctl, &json, options_value(&ctl->options, "force") != NULL };
    if (ctl->json) {
        json_open(&json, NULL, '{');
        json_open(&json, "dropped", '[');
    }
    for (size_t i = 0; i < ctl->options.argument_count; i++) {
        int rc = drop_one(&dropping, ctl->options.arguments[i]);
        if (first == CTL_OK) first = rc;
        if (rc == CTL_CONNECT) break;
    }
    if (ctl->json) {
        json_close(&json);
        json_close(&json);
    }
    return first;
}
