/* SPDX-License-Identifier: Apache-2.0 */
/* notify.h — what systemd wants to know, and the sockets it hands over.
 *
 * notify.c uses libsystemd; a build without it compiles notify_none.c, where all of this does
 * nothing. Outside of a Type=notify service every call is a no-op too.
 *
 * Threads  loop
 */
#ifndef MEMD_DAEMON_NOTIFY_H
#define MEMD_DAEMON_NOTIFY_H

#include <stdint.h>

void notify_ready(const char *status);
void notify_status(const char *status);
void notify_reloading(void);
void notify_stopping(const char *status, uint64_t timeout_ms);
void notify_watchdog(void);

/* How often notify_watchdog must be called at least; 0 = not at all. */
uint64_t notify_watchdog_ms(void);

/* Number of sockets handed over, with descriptors *ret_first, *ret_first + 1, … */
int notify_listen_fds(int *ret_first);

#endif
