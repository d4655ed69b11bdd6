/* SPDX-License-Identifier: Apache-2.0 */
/* fork.c — `memctl fork NAME NEW` */
#include <stdio.h>

#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

int fork_main(struct ctl *ctl)
{
    struct memd_context context, fork;
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK) rc = ctl_find(ctl, ctl->options.arguments[0], &context);
    if (rc != CTL_OK) return rc;
    const char *name = ctl->options.arguments[1];
    rc = memd_fork(&context, name, &fork, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, name);
    if (ctl->json) {
        struct json json = json_writer(ctl->out);
        json_open(&json, NULL, '{');
        json_text(&json, "name", name);
        json_uint(&json, "id", fork.id);
        json_uint(&json, "parent_id", context.id);
        json_uint(&json, "tokens", fork.tokens);
        json_close(&json);
    } else {
        fprintf(ctl->out, "%s: %s tokens, shared with %s\n", name, human_count(fork.tokens).text,
                ctl->options.arguments[0]);
    }
    return CTL_OK;
}
