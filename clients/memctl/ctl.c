/* SPDX-License-Identifier: Apache-2.0 */
/* ctl.c — connecting and failing, once for all commands. The token is read from a file, never
 * from the command line, where every user of the machine could see it. */
#include "clients/memctl/ctl.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/human.h"
#include "clients/memctl/table.h"

static const char default_address[] = "/run/memd/memd.sock";

static void say(const struct ctl *ctl, const char *format, va_list args)
{
    if (ctl->silent) return;
    fputs("memctl: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

int ctl_usage(struct ctl *ctl, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(ctl, format, args);
    va_end(args);
    const struct command *command = ctl->options.command;
    if (!ctl->silent) {
        fprintf(stderr, "Try 'memctl help%s%s'.\n", command == NULL ? "" : " ",
                command == NULL ? "" : command->name);
    }
    return CTL_USAGE;
}

int ctl_error(struct ctl *ctl, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(ctl, format, args);
    va_end(args);
    return CTL_ERROR;
}

int ctl_failed(struct ctl *ctl, int code, const char *what)
{
    ctl_error(ctl, "%s: %s (%s)", what, ctl->err.text, memd_error_name(code));
    return code == MEMD_ECLOSED ? CTL_CONNECT : CTL_ERROR;
}

static int read_token(struct ctl *ctl, const char *path)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) return ctl_error(ctl, "%s: %s", path, strerror(errno));
    bool read = fgets(ctl->token, sizeof ctl->token, file) != NULL;
    fclose(file);
    ctl->token[strcspn(ctl->token, " \t\r\n")] = '\0';
    if (!read || ctl->token[0] == '\0')
        return ctl_error(ctl, "%s: no token in its first line", path);
    ctl->connect.token = ctl->token;
    return CTL_OK;
}

static int choose_timeout(struct ctl *ctl)
{
    const char *text = options_global_value(&ctl->options, "timeout");
    if (text == NULL) {
        ctl->connect.timeout_ms = ctl->slow ? MEMD_NO_TIMEOUT : 0;
        return CTL_OK;
    }
    double seconds = 0;
    /* Zero milliseconds means libmemd's default there, and MEMD_NO_TIMEOUT is the largest value. */
    if (!human_parse_seconds(text, &seconds) || seconds < 1e-3 || seconds > 4e6) {
        return ctl_usage(ctl, "--timeout: '%s' is no duration from 1ms to 46d", text);
    }
    ctl->connect.timeout_ms = (uint32_t)(seconds * 1000.0);
    return CTL_OK;
}

int ctl_connect(struct ctl *ctl)
{
    const char *given = options_global_value(&ctl->options, "socket");
    if (given == NULL) given = getenv("MEMD_SOCKET");
    if (given == NULL || given[0] == '\0') given = default_address;
    bool whole = strncmp(given, "unix:", 5) == 0 || strncmp(given, "tcp:", 4) == 0;
    int length = snprintf(ctl->address, sizeof ctl->address, "%s%s", whole ? "" : "unix:", given);
    if (length >= (int)sizeof ctl->address) return ctl_usage(ctl, "the address is too long");
    ctl->connect.client_name = "memctl";
    int rc = choose_timeout(ctl);
    if (rc != CTL_OK) return rc;
    const char *token_file = options_global_value(&ctl->options, "token-file");
    if (token_file != NULL && (rc = read_token(ctl, token_file)) != CTL_OK) return rc;
    rc = memd_connect(ctl->address, &ctl->connect, &ctl->client, &ctl->err);
    if (rc == 0) return CTL_OK;
    if (rc == MEMD_EINVAL) return ctl_usage(ctl, "%s", ctl->err.text); /* no address at all */
    int code = ctl_failed(ctl, rc, ctl->address);
    if (rc == MEMD_EIO) code = CTL_CONNECT;
    if (code == CTL_CONNECT && !ctl->silent)
        fputs("memctl: is memd running? -s ADDRESS or MEMD_SOCKET say where it listens\n", stderr);
    return code;
}

int ctl_find(struct ctl *ctl, const char *name, struct memd_context *ret_context)
{
    CLEANUP(ctl_result_free) const struct memd_info *info = NULL;
    int rc = memd_stat_name(ctl->client, name, &info, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, name);
    *ret_context = (struct memd_context){
        .client = ctl->client,
        .id = info->id,
        .layers = info->model.layers,
        .query_heads = info->model.query_heads,
        .kv_heads = info->model.kv_heads,
        .head_dim = info->model.head_dim,
        .dtype = info->model.dtype,
        .tokens = info->tokens,
        .synced_tokens = info->synced_tokens,
        .state_width = info->state_width,
    };
    return CTL_OK;
}

int ctl_each_context(struct ctl *ctl, const char *prefix,
                     int (*visit)(void *arg, const struct memd_info *info), void *arg)
{
    CLEANUP(ctl_result_free) const struct memd_list *list = NULL;
    do {
        const char *after = list == NULL ? NULL : list->contexts[list->count - 1].name;
        const struct memd_list_args args = { .prefix = prefix, .after = after };
        const struct memd_list *next = NULL;
        int rc = memd_list(ctl->client, &args, &next, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "list");
        memd_free(list);
        list = next;
        for (size_t i = 0; i < list->count; i++) {
            rc = visit(arg, &list->contexts[i]);
            if (rc != 0) return rc;
        }
    } while (list->more && list->count > 0);
    return CTL_OK;
}

int ctl_print(struct ctl *ctl, const struct table *table)
{
    return table_print(table, ctl->out) ? CTL_OK : ctl_error(ctl, "out of memory");
}

int ctl_option_uint(struct ctl *ctl, const char *name, uint64_t missing, uint64_t *ret_value)
{
    const char *text = options_value(&ctl->options, name);
    uint64_t value = missing;
    if (text != NULL && (!human_parse_uint(text, UINT32_MAX, &value) || value == 0)) {
        return ctl_usage(ctl, "--%s: '%s' is no number from 1 to 4294967295", name, text);
    }
    *ret_value = value;
    return CTL_OK;
}

int ctl_option_seconds(struct ctl *ctl, const char *name, double missing, double *ret_seconds)
{
    const char *text = options_value(&ctl->options, name);
    double seconds = missing;
    if (text != NULL && !human_parse_seconds(text, &seconds)) {
        return ctl_usage(ctl, "--%s: '%s' is no duration such as 500ms, 10s, 5m", name, text);
    }
    *ret_seconds = seconds;
    return CTL_OK;
}

int ctl_option_target(struct ctl *ctl, double *ret_target)
{
    const char *text = options_value(&ctl->options, "target-error");
    char *end = NULL;
    double value = text == NULL ? 0.0 : strtod(text, &end);
    if (text != NULL && (end == text || *end != '\0' || !(value >= 0.0 && value <= 1.0)))
        return ctl_usage(ctl, "--target-error: '%s' is no share from 0 to 1", text);
    *ret_target = text != NULL && value == 0.0 ? MEMD_EXACT : value;
    return CTL_OK;
}
