/* SPDX-License-Identifier: Apache-2.0 */
/* fork.c — `memctl fork NAME NEW`, with the same method or another one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

enum { PARAMETERS_MAX = 64 };

/* "name=value,name=value", which is cut up; how many, SIZE_MAX where it is not so. */
static size_t read_parameters(char *list, struct memd_parameter *ret_parameters)
{
    size_t count = 0;
    char *rest = NULL;
    for (char *word = strtok_r(list, ",", &rest); word != NULL; word = strtok_r(NULL, ",", &rest)) {
        char *value = strchr(word, '=');
        if (count == PARAMETERS_MAX || value == NULL || value == word) return SIZE_MAX;
        *value = '\0';
        ret_parameters[count++] = (struct memd_parameter){ .name = word, .value = value + 1 };
    }
    return count;
}

static void report(const struct ctl *ctl, const struct memd_context *context,
                   const struct memd_context *fork)
{
    const char *name = ctl->options.arguments[1];
    if (!ctl->json) {
        fprintf(ctl->out, "%s: %s, shared with %s\n", name,
                human_counted(fork->tokens, "token").text, ctl->options.arguments[0]);
        return;
    }
    struct json json = json_writer(ctl->out);
    json_open(&json, NULL, '{');
    json_text(&json, "name", name);
    json_uint(&json, "id", fork->id);
    json_uint(&json, "parent_id", context->id);
    json_uint(&json, "tokens", fork->tokens);
    json_close(&json);
}

int fork_main(struct ctl *ctl)
{
    struct memd_context context, fork;
    struct memd_parameter parameters[PARAMETERS_MAX];
    const char *list = options_value(&ctl->options, "parameters");
    CLEANUP(free_ptr) char *words = strdup(list == NULL ? "" : list);
    if (words == NULL) return ctl_usage(ctl, "out of memory");
    size_t count = read_parameters(words, parameters);
    if (count == SIZE_MAX) return ctl_usage(ctl, "--parameters are name=value,name=value");
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK) rc = ctl_find(ctl, ctl->options.arguments[0], &context);
    if (rc != CTL_OK) return rc;
    struct memd_fork args = { .name = ctl->options.arguments[1],
                              .method = options_value(&ctl->options, "method"),
                              .parameters = parameters, .parameter_count = count };
    rc = memd_fork(&context, &args, &fork, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, args.name);
    report(ctl, &context, &fork);
    return CTL_OK;
}
