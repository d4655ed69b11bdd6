/* SPDX-License-Identifier: Apache-2.0 */
/* main.c — memctl: parse the line, run the command, see that the output got out. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"

static int check_arguments(struct ctl *ctl)
{
    const struct command *command = ctl->options.command;
    size_t count = ctl->options.argument_count;
    if (count < command->arguments_min) {
        return ctl_usage(ctl, "%s needs %s", command->name, command->arguments);
    }
    if (count > command->arguments_max) {
        return ctl_usage(ctl, "%s: too many arguments from '%s'", command->name,
                         ctl->options.arguments[command->arguments_max]);
    }
    return CTL_OK;
}

/* Standard output gets one whole document, or nothing when the command failed. */
static int run_json(struct ctl *ctl)
{
    CLEANUP(free_ptr) char *text = NULL;
    size_t bytes = 0;
    ctl->out = open_memstream(&text, &bytes);
    if (ctl->out == NULL) return ctl_error(ctl, "out of memory");
    int rc = ctl->options.command->run(ctl);
    bool whole = fclose(ctl->out) == 0;
    ctl->out = stdout;
    if (!whole) return ctl_error(ctl, "out of memory");
    if (rc == CTL_OK || rc == CTL_UNHEALTHY) fwrite(text, 1, bytes, stdout);
    return rc;
}

static int run(struct ctl *ctl, size_t count, char **argv)
{
    char text[256] = "";
    bool good = options_parse(count, argv, &ctl->options, text, sizeof text);
    const struct command *command = ctl->options.command;
    if (!good) return ctl_usage(ctl, "%s", text);
    if (options_global_value(&ctl->options, "version") != NULL) {
        puts("memctl " MEMD_VERSION);
        return CTL_OK;
    }
    if (options_global_value(&ctl->options, "help") != NULL) return help_main(ctl);
    if (command == NULL) return ctl_usage(ctl, "no command");
    ctl->json = options_global_value(&ctl->options, "json") != NULL;
    int rc = check_arguments(ctl);
    if (rc != CTL_OK) return rc;
    return ctl->json ? run_json(ctl) : command->run(ctl);
}

int main(int argc, char **argv)
{
    struct ctl ctl = { .out = stdout };
    int rc = run(&ctl, argc > 0 ? (size_t)argc - 1 : 0, argv + 1);
    memd_close(ctl.client);
    if (fflush(stdout) != 0 && !ctl.silent) {
        fprintf(stderr, "memctl: standard output: %s\n", strerror(errno));
        if (rc == CTL_OK) rc = CTL_ERROR;
    }
    return rc;
}
