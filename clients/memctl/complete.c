/* SPDX-License-Identifier: Apache-2.0 */
/* complete.c — `memctl _complete -- WORD…`: what may stand at the place of the last WORD.
 *
 * The shells' completion files only call this and show the lines, "candidate<TAB>description"; so
 * they hold no list that could fall behind the program. A line ":path" asks the shell for file
 * names. Errors are silent: there is nowhere to print them while somebody types, and a daemon
 * that is away is no candidate.
 *
 * Tests    tests/memctl/test_cli.py
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/bench.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"

static void candidate(const char *word, const char *prefix, const char *description)
{
    if (strncmp(word, prefix, strlen(prefix)) == 0) printf("%s\t%s\n", word, description);
}

static void complete_options(const struct option *list, const char *prefix)
{
    for (const struct option *option = list; option != NULL && option->name != NULL; option++) {
        char word[64];
        snprintf(word, sizeof word, "--%s", option->name);
        candidate(word, prefix, option->summary);
    }
}

static void complete_commands(const char *prefix)
{
    for (const struct command *command = commands; command->name != NULL; command++) {
        if (command->name[0] != '_') candidate(command->name, prefix, command->summary);
    }
}

static int print_name(void *arg, const struct memd_info *info)
{
    const char *prefix = arg;
    /* A name with a tab cannot be told from its description; control characters are refused
     * anyway. */
    candidate(info->name, prefix, info->method);
    return 0;
}

static void complete_methods(struct ctl *ctl, const char *prefix)
{
    CLEANUP(ctl_result_free) const struct memd_methods *methods = NULL;
    if (memd_methods(ctl->client, &methods, &ctl->err) < 0) return;
    for (size_t i = 0; i < methods->count; i++)
        candidate(methods->methods[i].name, prefix, methods->methods[i].help);
}

static void complete_kind(struct ctl *ctl, enum option_kind kind, const char *prefix)
{
    switch (kind) {
    case KIND_NONE: break;
    case KIND_PATH: puts(":path"); break;
    case KIND_COMMAND: complete_commands(prefix); break;
    case KIND_BENCH: bench_complete(candidate, prefix); break;
    case KIND_CONTEXT:
        ctl->silent = true;
        if (ctl_connect(ctl) == CTL_OK) ctl_each_context(ctl, prefix, print_name, (void *)prefix);
        break;
    case KIND_METHOD:
        ctl->silent = true;
        if (ctl_connect(ctl) == CTL_OK) complete_methods(ctl, prefix);
        break;
    }
}

int complete_main(struct ctl *ctl)
{
    size_t count = ctl->options.argument_count;
    if (count == 0) return CTL_OK;
    char *words[OPTIONS_ARGUMENTS_MAX];
    memcpy(words, ctl->options.arguments, count * sizeof *words);
    const char *current = words[count - 1];
    char text[128];
    struct options before;
    /* What the line says so far is in force: its --socket is where contexts are asked for. */
    options_parse(count - 1, words, &before, text, sizeof text);
    ctl->options = before;
    const struct command *command = before.command;
    if (before.unfinished != NULL) {
        complete_kind(ctl, before.unfinished->kind, current);
    } else if (!before.ended && current[0] == '-') {
        if (command != NULL) complete_options(command->options, current);
        complete_options(options_global, current);
    } else if (command == NULL) {
        complete_commands(current);
    } else if (before.argument_count == 0 || command->arguments_max == OPTIONS_ARGUMENTS_MAX) {
        complete_kind(ctl, command->kind, current);
    }
    return CTL_OK;
}
