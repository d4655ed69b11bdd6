/* SPDX-License-Identifier: Apache-2.0 */
/* real.h — a real daemon of a test: started with $MEMD on a folder of its own, killed, started
 * again. Set-ups and tear-downs are those of cmocka. */
#ifndef MEMD_TESTS_CLIENT_REAL_H
#define MEMD_TESTS_CLIENT_REAL_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

struct memd_client;

enum {
    REAL_PATH_BYTES = 128,
    REAL_SHARED_BYTES = 1 << 20 /* shared_memory of its configuration */
};

struct real {
    char folder[REAL_PATH_BYTES], socket[REAL_PATH_BYTES + 8], data[REAL_PATH_BYTES + 8];
    char address[REAL_PATH_BYTES + 16];
    const char *shared; /* --shared-memory */
    const char *plugin; /* --accelerator */
    pid_t pid;
};

int real_set_up(void **state);         /* *state: a struct real */
int real_set_up_device(void **state);  /* with $MEMD_FAKE_PLUGIN */
int real_set_up_without(void **state); /* that takes no shared memory */
int real_tear_down(void **state);

void real_start(struct real *daemon);
void real_stop(struct real *daemon, int signal);
/* The files in a folder, and the folder. */
int real_remove(const char *path);
/* Waits until it listens. */
struct memd_client *real_connect(const struct real *daemon);

#endif
