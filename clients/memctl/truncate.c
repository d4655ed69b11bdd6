/* SPDX-License-Identifier: Apache-2.0 */
/* truncate.c — `memctl truncate NAME POSITION` */
#include <stdio.h>

#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

int truncate_main(struct ctl *ctl)
{
    const char *name = ctl->options.arguments[0], *text = ctl->options.arguments[1];
    uint64_t position = 0, tokens = 0;
    if (!human_parse_uint(text, UINT64_MAX, &position)) {
        return ctl_usage(ctl, "truncate: '%s' is no position", text);
    }
    struct memd_context context;
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK) rc = ctl_find(ctl, name, &context);
    if (rc != CTL_OK) return rc;
    rc = memd_truncate(&context, position, &tokens, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, name);
    if (ctl->json) {
        struct json json = json_writer(ctl->out);
        json_open(&json, NULL, '{');
        json_text(&json, "name", name);
        json_uint(&json, "tokens_before", context.tokens);
        json_uint(&json, "tokens", tokens);
        json_close(&json);
    } else {
        fprintf(ctl->out, "%s: %s, before %s\n", name, human_counted(tokens, "token").text,
                human_count(context.tokens).text);
    }
    return CTL_OK;
}
