/* SPDX-License-Identifier: Apache-2.0 */
/* notify_none.c — notify.h for builds without libsystemd: nobody listens. */
#include "daemon/notify.h"

void notify_ready(const char *status) { (void)status; }

void notify_status(const char *status) { (void)status; }

void notify_reloading(void) {}

void notify_stopping(const char *status, uint64_t timeout_ms)
{
    (void)status;
    (void)timeout_ms;
}

void notify_watchdog(void) {}

uint64_t notify_watchdog_ms(void) { return 0; }

int notify_listen_fds(int *ret_first)
{
    *ret_first = 0;
    return 0;
}
