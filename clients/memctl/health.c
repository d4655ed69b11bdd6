/* SPDX-License-Identifier: Apache-2.0 */
/* health.c — `memctl health`: for scripts and probes; the exit code is the answer. */
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/json.h"

int health_main(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    CLEANUP(ctl_result_free) const struct memd_health *health = NULL;
    rc = memd_health(ctl->client, &health, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "health");
    if (ctl->json) {
        struct json json = json_writer(ctl->out);
        json_open(&json, NULL, '{');
        json_bool(&json, "live", health->live);
        json_bool(&json, "ready", health->ready);
        json_bool(&json, "draining", health->draining);
        json_text(&json, "reason", health->ready ? NULL : health->reason);
        json_close(&json);
    } else if (health->ready) {
        fputs("ready\n", ctl->out);
    } else {
        fprintf(ctl->out, "not ready: %s\n", health->reason);
    }
    return health->ready ? CTL_OK : CTL_UNHEALTHY;
}
