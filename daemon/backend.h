/* SPDX-License-Identifier: Apache-2.0 */
/* backend.h — what computes: the CPU alone, or a device that is asked first.
 *
 * `accelerator` of the configuration says where the device's plugin is: `auto` is the one that was
 * installed with memd, if it was. `backend` says whether it is used: with `cpu`, the default, it is
 * not even loaded; a daemon that started with `auto` may turn it off and on (SIGHUP). A device that
 * is not there, or is lost later, is no failure of the daemon: the CPU computes, and Status says
 * why.
 *
 * Threads  loop, but for what the accelerator itself is asked
 * Tests    tests/daemon/test_backend.py
 */
#ifndef MEMD_DAEMON_BACKEND_H
#define MEMD_DAEMON_BACKEND_H

#include <stddef.h>

#include "attention/cuda/accelerator.h"
#include "daemon/config.h"

enum { BACKEND_TEXT_BYTES = 320 };

struct backend_choice {
    struct accelerator *accelerator; /* NULL: there is none */
    char why[BACKEND_TEXT_BYTES];    /* there is none */
};

/* Never fails: without a device it remembers why. */
void backend_open(const struct config *config, struct backend_choice *ret_choice);
void backend_close(struct backend_choice *choice);
/* The configuration was read again. */
void backend_reload(const struct config *config, struct backend_choice *choice);

/* ret_name, ret_reason (BACKEND_TEXT_BYTES): "cuda" and the device's name, or "cpu" and why. */
void backend_describe(const struct backend_choice *choice, char *ret_name, char *ret_reason);

#endif
