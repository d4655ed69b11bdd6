/* SPDX-License-Identifier: Apache-2.0 */
/* help.c — printed from the same table that the commands are called by. */
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/table.h"

static const struct table_column plain[] = { { NULL, TABLE_LEFT }, { NULL, TABLE_LEFT } };

static int print_options(struct ctl *ctl, const struct option *options)
{
    CLEANUP(table_freep) struct table *table = table_new(plain, 2);
    for (const struct option *option = options; option->name != NULL; option++) {
        char letter[] = { '-', option->letter, ',', ' ', '\0' };
        table_addf(table, "  %s--%s%s%s", option->letter == 0 ? "    " : letter, option->name,
                   option->argument == NULL ? "" : " ",
                   option->argument == NULL ? "" : option->argument);
        table_add(table, option->summary);
    }
    return ctl_print(ctl, table);
}

static int print_usage(struct ctl *ctl, const struct command *command)
{
    printf("Usage: memctl [OPTIONS] %s%s%s%s\n\n%s\n", command->name,
           command->options == NULL ? "" : " [OPTIONS]", command->arguments[0] == '\0' ? "" : " ",
           command->arguments, command->summary);
    if (command->options != NULL) {
        puts("\nOptions:");
        int rc = print_options(ctl, command->options);
        if (rc != CTL_OK) return rc;
    }
    puts("\nGlobal options:");
    return print_options(ctl, options_global);
}

static int print_all(struct ctl *ctl)
{
    puts("Usage: memctl [OPTIONS] COMMAND [ARGUMENTS]\n\nOperate a memd daemon.\n\nCommands:");
    CLEANUP(table_freep) struct table *table = table_new(plain, 2);
    for (const struct command *command = commands; command->name != NULL; command++) {
        if (command->name[0] == '_') continue;
        table_addf(table, "  %s %s", command->name, command->arguments);
        table_add(table, command->summary);
    }
    int rc = ctl_print(ctl, table);
    puts("\nOptions:");
    if (rc == CTL_OK) rc = print_options(ctl, options_global);
    puts("\nExit codes: 0 done, 1 error, 2 wrong usage, 3 no connection, 4 damage found, target "
         "missed or not healthy.\n"
         "More: memctl help COMMAND, man memctl");
    return rc;
}

/* Also `memctl --help` and `memctl COMMAND --help`. */
int help_main(struct ctl *ctl)
{
    const struct command *command = ctl->options.command;
    bool asked = options_global_value(&ctl->options, "help") != NULL;
    if (!asked && ctl->options.argument_count == 0) {
        command = NULL;
    } else if (!asked) {
        const char *name = ctl->options.arguments[0];
        command = commands_find(name);
        if (command == NULL || name[0] == '_') return ctl_usage(ctl, "no command '%s'", name);
    }
    return command == NULL ? print_all(ctl) : print_usage(ctl, command);
}
