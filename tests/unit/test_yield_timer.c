/* SPDX-License-Identifier: Apache-2.0 */
/* test_yield_timer.c — that it comes while it runs, comes to its own thread only, is silent when
 * stopped, restarts system calls, and leaves a handler of the program's own alone.
 *
 * Nothing depends on how soon it comes: the tests wait until it has.
 */
#include "base/yield_timer.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { INTERVAL_NS = 200000, LONG_NS = 20000000, TIMES = 5 };

/* The lock is for the thread sanitizer, which delivers signals at calls that it knows. */
static void await(struct yield_timer *timer, unsigned long count)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    while (atomic_load(&timer->yields) < count) {
        pthread_mutex_lock(&lock);
        pthread_mutex_unlock(&lock);
        errno = EDOM;
    }
}

static void test_it_comes_again_and_again(void **state)
{
    (void)state;
    struct yield_timer timer;
    yield_timer_open(&timer, INTERVAL_NS);
    assert_true(timer.exists);
    assert_int_equal(atomic_load(&timer.yields), 0);
    yield_timer_start(&timer);
    await(&timer, TIMES);
    assert_int_equal(errno, EDOM); /* kept over the handler */
    yield_timer_stop(&timer);
    yield_timer_start(&timer); /* and once more */
    await(&timer, atomic_load(&timer.yields) + TIMES);
    yield_timer_close(&timer);
    assert_false(timer.exists);
}

static void test_stopped_it_is_silent(void **state)
{
    (void)state;
    struct yield_timer quiet, loud;
    yield_timer_open(&quiet, INTERVAL_NS);
    yield_timer_open(&loud, INTERVAL_NS);
    yield_timer_start(&quiet);
    await(&quiet, 1);
    yield_timer_stop(&quiet);
    yield_timer_start(&loud);
    await(&loud, 2); /* whatever of the other was pending has come */
    unsigned long before = atomic_load(&quiet.yields);
    await(&loud, 2 + (unsigned long)4 * TIMES);
    assert_int_equal(atomic_load(&quiet.yields), before);
    yield_timer_close(&quiet);
    yield_timer_close(&loud);
}

struct later {
    int fd;
    uint64_t interval_ns;
    unsigned long times;
};

/* Writes after a timer of its own came so often that one of the reader did too. */
static void *write_later(void *arg)
{
    const struct later *later = arg;
    struct yield_timer timer;
    yield_timer_open(&timer, later->interval_ns);
    yield_timer_start(&timer);
    await(&timer, later->times);
    yield_timer_close(&timer);
    return write(later->fd, "x", 1) == 1 ? arg : NULL;
}

static uint64_t thread_ns(void)
{
    struct timespec ran;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran);
    return (uint64_t)ran.tv_sec * 1000000000U + (uint64_t)ran.tv_nsec;
}

/* Waits in a read while its timer comes; how often it yielded meanwhile, and in which time of its
 * own. Afterwards it runs, and yields. */
static unsigned long yields_in_read(uint64_t interval_ns, unsigned long times, uint64_t *ret_ran_ns)
{
    struct yield_timer timer;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    struct later later = { fds[1], interval_ns, times };
    uint64_t before_ns = thread_ns();
    yield_timer_open(&timer, interval_ns);
    yield_timer_start(&timer);
    pthread_t writer;
    assert_int_equal(pthread_create(&writer, NULL, write_later, &later), 0);
    char byte = 0;
    assert_int_equal(read(fds[0], &byte, 1), 1);
    unsigned long yields = atomic_load(&timer.yields);
    *ret_ran_ns = thread_ns() - before_ns;
    await(&timer, yields + 1);
    yield_timer_close(&timer);
    void *written = NULL;
    pthread_join(writer, &written);
    assert_non_null(written);
    close(fds[0]);
    close(fds[1]);
    return yields;
}

static void test_reads_are_restarted(void **state)
{
    (void)state;
    uint64_t ran_ns = 0;
    yields_in_read(INTERVAL_NS, TIMES, &ran_ns);
}

/* A thread that waits, be it for a processor, has nothing to give away. It seems to run while
 * somebody else has the machine under it: so what it may yield is counted from its clock. */
static void test_who_did_not_run_does_not_yield(void **state)
{
    (void)state;
    uint64_t ran_ns = 0;
    unsigned long yields = yields_in_read(LONG_NS, 3, &ran_ns);
    assert_in_range(yields, 0, ran_ns / (LONG_NS / 2));
}

/* A SIGURG that no timer sent does nothing, as before. */
static void test_other_signals_are_ignored(void **state)
{
    (void)state;
    struct yield_timer timer;
    yield_timer_open(&timer, INTERVAL_NS);
    assert_int_equal(raise(SIGURG), 0);
    assert_int_equal(atomic_load(&timer.yields), 0);
    yield_timer_close(&timer);
}

static volatile sig_atomic_t own_calls;

static void own_handler(int number)
{
    (void)number;
    own_calls++;
}

/* In a process of its own, since handlers are looked at once. */
static void test_a_handler_of_the_program_stays(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct sigaction own = { .sa_handler = own_handler };
        sigaction(SIGURG, &own, NULL);
        struct yield_timer timer;
        yield_timer_open(&timer, INTERVAL_NS);
        yield_timer_start(&timer);
        raise(SIGURG);
        bool fine = !timer.exists && own_calls == 1;
        yield_timer_close(&timer);
        _exit(fine ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_handler_of_the_program_stays), /* before the first timer */
        cmocka_unit_test(test_it_comes_again_and_again),
        cmocka_unit_test(test_stopped_it_is_silent),
        cmocka_unit_test(test_reads_are_restarted),
        cmocka_unit_test(test_who_did_not_run_does_not_yield),
        cmocka_unit_test(test_other_signals_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
