/* SPDX-License-Identifier: Apache-2.0 */
/* log.c — one buffer, one write, so that lines of several threads never mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 1024 };

static const struct {
    const char *name;
    int syslog_priority;
} levels[] = {
    [LOG_DEBUG] = { "debug", 7 },
    [LOG_INFO] = { "info", 6 },
    [LOG_WARN] = { "warn", 4 },
    [LOG_ERROR] = { "error", 3 },
};

static atomic_int level_now = LOG_INFO;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&level_now, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load_explicit(&level_now, memory_order_relaxed);
}

int log_level_parse(const char *text)
{
    for (int i = 0; i < (int)(sizeof levels / sizeof levels[0]); i++)
        if (strcmp(levels[i].name, text) == 0) return i;
    return -1;
}

static int put_prefix(char *line, enum log_level level)
{
    if (getenv("INVOCATION_ID") != NULL || getenv("JOURNAL_STREAM") != NULL)
        return snprintf(line, LINE_BYTES, "<%d>", levels[level].syslog_priority);
    struct timespec now = { 0 };
    struct tm utc = { 0 };
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(line, LINE_BYTES, "%Y-%m-%dT%H:%M:%S", &utc);
    return (int)used + snprintf(line + used, LINE_BYTES - used, ".%03ldZ ", now.tv_nsec / 1000000);
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
    if (level < log_get_level()) return;
    char line[LINE_BYTES];
    int used = put_prefix(line, level);
    used += snprintf(line + used, sizeof line - (size_t)used, "%s %s ", levels[level].name, event);
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used, format, args);
    va_end(args);
    size_t size = (size_t)used + (more > 0 ? (size_t)more : 0);
    if (size > sizeof line - 1) size = sizeof line - 1;
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7F) line[i] = '?';
    line[size++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, size);
    (void)written; /* nowhere to complain */
}
