/* SPDX-License-Identifier: Apache-2.0 */
/* options.h — the command line: global options, one command, its options and arguments, in any
 * order.
 *
 * Long options are never abbreviated, so that adding one cannot change what a script means. "--"
 * ends the options. Global options may stand before or after the command, a command's own only
 * after it.
 *
 * Memory   values and arguments point into argv; nothing is allocated.
 * Tests    tests/memctl/test_options.c
 */
#ifndef MEMD_CLIENTS_MEMCTL_OPTIONS_H
#define MEMD_CLIENTS_MEMCTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct command;

enum { OPTIONS_MAX = 16, OPTIONS_ARGUMENTS_MAX = 1024 };

/* What completes a word; also what an argument is. */
enum option_kind { KIND_NONE, KIND_CONTEXT, KIND_PATH, KIND_COMMAND, KIND_BENCH, KIND_METHOD };

struct option {
    char letter;          /* 0 = long form only */
    const char *name;     /* NULL ends a list */
    const char *argument; /* "FILE"; NULL = a flag */
    enum option_kind kind;
    const char *summary;
};

struct options {
    const struct command *command;       /* NULL: no command was given */
    const char *global[OPTIONS_MAX];     /* value by place in options_global; flags: "" */
    const char *own[OPTIONS_MAX];        /* value by place in the command's list */
    char *arguments[OPTIONS_ARGUMENTS_MAX];
    size_t argument_count;
    const struct option *unfinished;     /* the last word is an option without its argument */
    bool ended;                          /* "--" was seen */
};

extern const struct option options_global[];

/* argv without the program's name. False with a sentence in `ret_text` when it cannot be
 * understood; what was understood before stands in *ret_options either way (completion goes on
 * from there). */
bool options_parse(size_t count, char **argv, struct options *ret_options, char *ret_text,
                   size_t text_bytes);

/* Value of an option of the list that has it: NULL when it was not given, "" for a flag that was.
 */
const char *options_global_value(const struct options *options, const char *name);
const char *options_value(const struct options *options, const char *name);

#endif
