/* SPDX-License-Identifier: Apache-2.0 */
/* log.h — structured lines on stderr: `<6>time level event key=value …`.
 *
 * Used by daemon/ and the programs only; libraries return errors instead. Under systemd
 * (JOURNAL_STREAM or INVOCATION_ID set) the line starts with the syslog priority `<N>` and has no
 * time, since journald adds its own. Token ids, tensors and tokens of access are never logged.
 *
 *     log_event(LOG_INFO, "listening", "socket=%s mode=%04o", path, mode);
 *
 * One write(2) per line, cut at 1,024 bytes; control characters in values are replaced by '?', so
 * that no input can forge a line. Any thread.
 */
#ifndef MEMD_BASE_LOG_H
#define MEMD_BASE_LOG_H

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

void log_set_level(enum log_level level);
enum log_level log_get_level(void);

/* "debug", "info", "warn", "error" → level; -1 when it is none of them. */
int log_level_parse(const char *text);

void log_event(enum log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
