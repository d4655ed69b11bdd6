/* SPDX-License-Identifier: Apache-2.0 */
/* commands.h — the one table of commands; help, completion and the tests of the manual read it.
 *
 * To add a command: a file with its function, a line in commands.c, a section in man/memctl.1.
 */
#ifndef MEMD_CLIENTS_MEMCTL_COMMANDS_H
#define MEMD_CLIENTS_MEMCTL_COMMANDS_H

#include <stddef.h>

#include "clients/memctl/options.h"

struct ctl;

struct command {
    const char *name;
    int (*run)(struct ctl *ctl); /* returns enum ctl_exit */
    const char *arguments;       /* "NAME POSITION"; "" = none */
    size_t arguments_min;
    size_t arguments_max;
    enum option_kind kind; /* of the arguments; the first only, unless arguments_max is large */
    const char *summary;
    const struct option *options; /* own options, ended by a NULL name; NULL = none */
};

/* Ended by a NULL name. Commands that begin with '_' are for programs and not listed. */
extern const struct command commands[];

const struct command *commands_find(const char *name);

int status_main(struct ctl *ctl);
int contexts_main(struct ctl *ctl);
int context_main(struct ctl *ctl);
int stats_main(struct ctl *ctl);
int verify_main(struct ctl *ctl);
int dump_main(struct ctl *ctl);
int drop_main(struct ctl *ctl);
int fork_main(struct ctl *ctl);
int truncate_main(struct ctl *ctl);
int pin_main(struct ctl *ctl);
int unpin_main(struct ctl *ctl);
int compact_main(struct ctl *ctl);
int bench_main(struct ctl *ctl);
int drain_main(struct ctl *ctl);
int health_main(struct ctl *ctl);
int methods_main(struct ctl *ctl);
int recall_main(struct ctl *ctl);
int explain_main(struct ctl *ctl);
int rebuild_main(struct ctl *ctl);
int top_main(struct ctl *ctl);
int help_main(struct ctl *ctl);
int complete_main(struct ctl *ctl);

#endif
