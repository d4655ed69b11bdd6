/* SPDX-License-Identifier: Apache-2.0 */
/* killed.h — a store whose process is killed at its work. A child opens it, works and says a byte
 * for each step; the test waits for as many as it wants, kills, and opens what is left.
 *
 * Between fork and kill the store must be closed here: LMDB's environment does not survive a fork.
 */
#ifndef MEMD_TESTS_KILLED_H
#define MEMD_TESTS_KILLED_H

#include "tests/unit/store_fixture.h"

#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>

struct victim {
    pid_t pid;
    int fd; /* what it says */
};

/* `work` gets the store unopened; it must not return. */
static inline struct victim victim_start(struct fixture *fx,
                                         void (*work)(struct fixture *fx, int fd))
{
    int ends[2];
    assert_null(fx->catalog);
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ends[0]);
        work(fx, ends[1]);
        _exit(99);
    }
    close(ends[1]);
    return (struct victim){ pid, ends[0] };
}

static inline void victim_hear(const struct victim *victim, size_t bytes)
{
    char byte;
    for (size_t i = 0; i < bytes; i++) assert_int_equal(read(victim->fd, &byte, 1), 1);
}

/* The store is open again afterwards. */
static inline void victim_kill(const struct victim *victim, struct fixture *fx)
{
    int status = 0;
    kill(victim->pid, SIGKILL);
    assert_int_equal(waitpid(victim->pid, &status, 0), victim->pid);
    if (!WIFSIGNALED(status)) fail_msg("the child ended by itself with %d", WEXITSTATUS(status));
    close(victim->fd);
    fixture_open(fx);
}

#endif
