/* SPDX-License-Identifier: Apache-2.0 */
/* notify.c — libsystemd's half of notify.h.
 *
 * RELOADING=1 must carry the monotonic time in the same message, or systemd ≥ 253 waits for it in
 * vain.
 */
#include "daemon/notify.h"

#include <inttypes.h>
#include <systemd/sd-daemon.h>

#include "base/clock.h"

void notify_ready(const char *status) { sd_notifyf(0, "READY=1\nSTATUS=%s", status); }

void notify_status(const char *status) { sd_notifyf(0, "STATUS=%s", status); }

void notify_reloading(void)
{
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_monotonic_ns() / 1000);
}

void notify_stopping(const char *status, uint64_t timeout_ms)
{
    sd_notifyf(0, "STOPPING=1\nSTATUS=%s\nEXTEND_TIMEOUT_USEC=%" PRIu64, status, timeout_ms * 1000);
}

void notify_watchdog(void) { sd_notify(0, "WATCHDOG=1"); }

uint64_t notify_watchdog_ms(void)
{
    uint64_t limit_us = 0;
    return sd_watchdog_enabled(0, &limit_us) > 0 ? limit_us / 1000 : 0;
}

int notify_listen_fds(int *ret_first)
{
    *ret_first = SD_LISTEN_FDS_START;
    int count = sd_listen_fds(1);
    return count > 0 ? count : 0;
}
