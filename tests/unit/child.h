/* SPDX-License-Identifier: Apache-2.0 */
/* child.h — cases that may end their process, or never end.
 *
 * All cases of a test run in one child, which says where it stands before each. A child for each
 * case would cost more than the cases, and under sanitizers, which map much, several times more.
 */
#ifndef MEMD_TESTS_CHILD_H
#define MEMD_TESTS_CHILD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Written by the child, read by its parent. */
struct child_case {
    char what[64];
    size_t page;
    size_t count; /* begun so far */
};

/* In the child, before each case, which then has `seconds`. */
static inline void child_begins(struct child_case *now, const char *what, size_t page,
                                unsigned seconds)
{
    snprintf(now->what, sizeof now->what, "%s", what);
    now->page = page;
    now->count++;
    alarm(seconds);
}

/* Runs `run` in a child; it returns 0, or what the test fails with. How many cases it began. */
static inline size_t child_survives(int (*run)(void *arg, struct child_case *now), void *arg)
{
    int status = 0;
    struct child_case *now = mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(now != MAP_FAILED);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) _exit(run(arg, now));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    struct child_case last = *now;
    munmap(now, sizeof *now);
    if (WIFSIGNALED(status))
        fail_msg("%s, page %zu: signal %d", last.what, last.page, WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        fail_msg("%s, page %zu: %d", last.what, last.page, WEXITSTATUS(status));
    return last.count;
}

#endif
