/* SPDX-License-Identifier: Apache-2.0 */
/* pin.c — `memctl pin NAME DURATION` and `memctl unpin NAME`: one request, the second with no
 * time. */
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

static int pin(struct ctl *ctl, uint64_t seconds)
{
    const char *name = ctl->options.arguments[0];
    uint64_t until_ms = 0;
    struct memd_context context;
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK) rc = ctl_find(ctl, name, &context);
    if (rc != CTL_OK) return rc;
    rc = memd_pin(&context, seconds, &until_ms, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, name);
    if (ctl->json) {
        struct json json = json_writer(ctl->out);
        json_open(&json, NULL, '{');
        json_text(&json, "name", name);
        if (seconds == 0) {
            json_null(&json, "pinned_until_unix_ms");
        } else {
            json_uint(&json, "pinned_until_unix_ms", until_ms);
        }
        json_close(&json);
    } else if (seconds == 0) {
        fprintf(ctl->out, "%s: not pinned\n", name);
    } else {
        fprintf(ctl->out, "%s: pinned, ends %s\n", name,
                human_since(until_ms, clock_real_ns() / 1000000).text);
    }
    return CTL_OK;
}

int pin_main(struct ctl *ctl)
{
    const char *text = ctl->options.arguments[1];
    double seconds = 0;
    if (!human_parse_seconds(text, &seconds) || seconds <= 0.0) {
        return ctl_usage(ctl, "pin: '%s' is no duration such as 90s, 15m, 2h, 7d", text);
    }
    return pin(ctl, (uint64_t)ceil(seconds));
}

int unpin_main(struct ctl *ctl)
{
    return pin(ctl, 0);
}
