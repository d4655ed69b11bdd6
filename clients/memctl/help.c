/* SPDX-License-Identifier: Apache-2.0 */
/* help.c — printed from the same table that the commands are called by. */
#include <stdio.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/table.h"

static const struct table_column plain[] = { { NULL, TABLE_LEFT }, { NULL, TABLE_LEFT } };

static void print_options(const struct option *options)
{
    CLEANUP(table_freep) struct table *table = table_new(plain, 2);
    for (const struct option *option = options; option->name != NULL; option++) {
        char letter[] = { '-', option->letter, ',', ' ', '\0' };
        table_addf(table, "  %s--%s%s%s", option->letter == 0 ? "    " : letter, option->name,
                   option->argument == NULL ? "" : " ",
                   option->argument == NULL ? "" : option->argument);
        table_add(table, option->summary);
    }
    table_print(table, stdout);
}

static void print_usage(const struct command *command)
{
    printf("Usage: memctl [OPTIONS] %s%s%s%s\n\n%s\n", command->name,
           command->options == NULL ? "" : " [OPTIONS]", command->arguments[0] == '\0' ? "" : " ",
           command->arguments, command->summary);
    if (command->options != NULL) {
        puts("\nOptions:");
        print_options(command->options);
    }
    puts("\nGlobal options:");
    print_options(options_global);
}

static void print_all(void)
{
    puts("Usage: memctl [OPTIONS] COMMAND [ARGUMENTS]\n\nOperate a memd daemon.\n\nCommands:");
    CLEANUP(table_freep) struct table *table = table_new(plain, 2);
    for (const struct command *command = commands; command->name != NULL; command++) {
        if (command->name[0] == '_') continue;
        table_addf(table, "  %s %s", command->name, command->arguments);
        table_add(table, command->summary);
    }
    table_print(table, stdout);
    puts("\nOptions:");
    print_options(options_global);
    puts("\nExit codes: 0 done, 1 error, 2 wrong usage, 3 no connection, 4 damage found or not "
         "healthy.\n"
         "More: memctl help COMMAND, man memctl");
}

/* Also `memctl --help` and `memctl COMMAND --help`. */
int help_main(struct ctl *ctl)
{
    const struct command *command = ctl->options.command;
    if (command != NULL && command->run == help_main) {
        if (ctl->options.argument_count == 0) {
            command = NULL;
        } else {
            const char *name = ctl->options.arguments[0];
            command = commands_find(name);
            if (command == NULL || name[0] == '_') return ctl_usage(ctl, "no command '%s'", name);
        }
    }
    if (command == NULL) {
        print_all();
    } else {
        print_usage(command);
    }
    return CTL_OK;
}
