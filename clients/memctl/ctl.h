/* SPDX-License-Identifier: Apache-2.0 */
/* ctl.h — what every command of memctl starts from: the parsed line, one connection, the way to
 * fail.
 *
 * A command prints its result on standard output only when it has it, sentences about failures on
 * standard error, and returns one of the exit codes. Functions that return an exit code have
 * already said why.
 *
 * Memory   results of libmemd are freed by the command (CLEANUP(ctl_result_free)), the client by
 *          main.
 * Threads  one; `bench connections` opens clients of its own for its threads.
 */
#ifndef MEMD_CLIENTS_MEMCTL_CTL_H
#define MEMD_CLIENTS_MEMCTL_CTL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "clients/include/memd.h"
#include "clients/memctl/options.h"

struct table;

enum ctl_exit {
    CTL_OK = 0,
    CTL_ERROR = 1,     /* the daemon or the system refused */
    CTL_USAGE = 2,
    CTL_CONNECT = 3,   /* nobody there, or the connection was lost */
    CTL_UNHEALTHY = 4, /* verify found damage; recall: target missed; health: takes no work */
};

enum { CTL_ADDRESS_BYTES = 4096, CTL_TOKEN_BYTES = 1024 };

struct ctl {
    struct options options;
    bool json;
    bool silent; /* print no failures: completion */
    FILE *out;   /* for results; JSON is collected in memory and printed whole or not at all */
    bool slow;   /* wait for ever unless --timeout says otherwise; set before ctl_connect */
    char address[CTL_ADDRESS_BYTES]; /* "unix:/path" or "tcp:host:port" once connected */
    char token[CTL_TOKEN_BYTES];
    struct memd_options connect;     /* for further clients like this one */
    struct memd_client *client;
    struct memd_error err;           /* of the last call to libmemd */
};

int ctl_connect(struct ctl *ctl);

/* Say "memctl: WHAT: text of ctl->err" and return the exit code that fits `code`. */
int ctl_failed(struct ctl *ctl, int code, const char *what);

/* Say the sentence and where to find help. CTL_USAGE. */
int ctl_usage(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Say the sentence. CTL_ERROR. */
int ctl_error(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The context of that name, as libmemd's calls take it (without loading it into the daemon's
 * memory). */
int ctl_find(struct ctl *ctl, const char *name, struct memd_context *ret_context);

/* Call visit for each context whose name begins with prefix, in order; a result other than 0 ends
 * the walk and is returned. Otherwise an exit code. */
int ctl_each_context(struct ctl *ctl, const char *prefix,
                     int (*visit)(void *arg, const struct memd_info *info), void *arg);

/* Print the table. Fails when memory ran out. */
int ctl_print(struct ctl *ctl, const struct table *table);

/* A number or duration from an option of this command, or `missing` when it was not given. */
int ctl_option_uint(struct ctl *ctl, const char *name, uint64_t missing, uint64_t *ret_value);
int ctl_option_seconds(struct ctl *ctl, const char *name, double missing, double *ret_seconds);

/* --target-error as libmemd takes it: 0 when it was not given, MEMD_EXACT for 0. */
int ctl_option_target(struct ctl *ctl, double *ret_target);

/* For `CLEANUP(ctl_result_free) const struct memd_x *x = NULL`. */
static inline void ctl_result_free(void *pointer_to_variable)
{
    memd_free(*(void **)pointer_to_variable);
}

#endif
