/* SPDX-License-Identifier: Apache-2.0 */
/* real.c — fork and exec; a daemon that cannot be run fails the test that asks it first. */
#include "tests/client/real.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "clients/include/memd.h"

void real_start(struct real *daemon)
{
    daemon->pid = fork();
    if (daemon->pid != 0) return;
    const char *memd = getenv("MEMD");
    if (memd != NULL)
        execl(memd, memd, "--data", daemon->data, "--socket", daemon->socket, "--log-level",
              "error", "--shared-memory", daemon->shared, "--backend", "auto", "--accelerator",
              daemon->plugin, (char *)NULL);
    perror("cannot run $MEMD");
    _exit(127);
}

void real_stop(struct real *daemon, int signal)
{
    int status = 0;
    kill(daemon->pid, signal);
    assert_int_equal(waitpid(daemon->pid, &status, 0), daemon->pid);
    if (signal == SIGTERM) assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The first connection is not waited for: ask until the daemon listens. */
struct memd_client *real_connect(const struct real *daemon)
{
    struct memd_client *client = NULL;
    struct memd_error err = { 0 };
    int rc = MEMD_ECLOSED;
    while (rc == MEMD_ECLOSED) {
        if (waitpid(daemon->pid, NULL, WNOHANG) != 0) fail_msg("the daemon does not run");
        rc = memd_connect(daemon->address, &(struct memd_options){ .timeout_ms = 60000 }, &client,
                          &err);
    }
    if (rc < 0) fail_msg("connect: %s", err.text);
    return client;
}

static int set_up(void **state, const char *shared, const char *plugin)
{
    static struct real daemon;
    if (getenv("MEMD") == NULL || plugin == NULL) return -1;
    daemon.shared = shared;
    daemon.plugin = plugin;
    snprintf(daemon.folder, sizeof daemon.folder, "/tmp/memd-client-XXXXXX");
    if (mkdtemp(daemon.folder) == NULL) return -1;
    snprintf(daemon.socket, sizeof daemon.socket, "%s/socket", daemon.folder);
    snprintf(daemon.data, sizeof daemon.data, "%s/data", daemon.folder);
    snprintf(daemon.address, sizeof daemon.address, "unix:%s", daemon.socket);
    real_start(&daemon);
    *state = &daemon;
    return 0;
}

int real_set_up(void **state)
{
    return set_up(state, "1MiB", "");
}

int real_set_up_device(void **state)
{
    return set_up(state, "1MiB", getenv("MEMD_FAKE_PLUGIN"));
}

int real_set_up_without(void **state)
{
    return set_up(state, "0", "");
}

/* The files in it, whatever the store is made of, and the folder. */
int real_remove(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL) return -1;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (entry->d_name[0] != '.') unlinkat(dirfd(folder), entry->d_name, 0);
    closedir(folder);
    return rmdir(path);
}

int real_tear_down(void **state)
{
    struct real *daemon = *state;
    real_stop(daemon, SIGTERM);
    int rc = real_remove(daemon->data);
    unlink(daemon->socket);
    return rc < 0 ? rc : rmdir(daemon->folder);
}
