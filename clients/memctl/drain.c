/* SPDX-License-Identifier: Apache-2.0 */
/* drain.c — `memctl drain [-d DURATION]`: what SIGTERM does, from anywhere with role admin. */
#include <stdio.h>

#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

int drain_main(struct ctl *ctl)
{
    double seconds = 0;
    uint64_t left = 0;
    int rc = ctl_option_seconds(ctl, "deadline", 0, &seconds);
    if (rc == CTL_OK && seconds > 86400.0) rc = ctl_usage(ctl, "--deadline: at most 1d");
    if (rc == CTL_OK) rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    rc = memd_drain(ctl->client, (uint32_t)(seconds * 1000.0), &left, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, "drain");
    if (ctl->json) {
        struct json json = json_writer(ctl->out);
        json_open(&json, NULL, '{');
        json_bool(&json, "draining", true);
        json_uint(&json, "requests_left", left);
        json_close(&json);
    } else {
        fprintf(ctl->out, "draining, %s left\n", human_counted(left, "request").text);
    }
    return CTL_OK;
}
