/* SPDX-License-Identifier: Apache-2.0 */
/* yield_timer.c — one signal handler for the process, which finds its timer in the signal.
 *
 * The signal is sent to one thread (SIGEV_THREAD_ID). A SIGURG from elsewhere, of a socket say, is
 * ignored as it was before. Closing blocks the signal first: one that is pending then stays so.
 *
 * The timer goes by the clock on the wall: one by the thread's own is looked at in ticks. So the
 * handler asks the thread's clock: a signal that came while the thread waited for a processor is
 * there the moment it gets one, and must not give it away unused.
 */
#include "base/yield_timer.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id /* glibc has no name for it before 2.39 */
#define sigev_notify_thread_id _sigev_un._tid
#endif

static uint64_t thread_ns(void)
{
    struct timespec ran;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran);
    return (uint64_t)ran.tv_sec * 1000000000U + (uint64_t)ran.tv_nsec;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    if (info->si_code != SI_TIMER) return;
    int before = errno;
    struct yield_timer *timer = info->si_value.sival_ptr;
    uint64_t ran_ns = thread_ns();
    if (ran_ns - timer->yielded_at_ns >= timer->interval_ns / 2) {
        timer->yielded_at_ns = ran_ns;
        atomic_fetch_add_explicit(&timer->yields, 1, memory_order_relaxed);
        sched_yield();
    }
    errno = before;
}

/* Two threads at once install the same. */
static bool install(void)
{
    struct sigaction present;
    if (sigaction(SIGURG, NULL, &present) < 0) return false;
    bool siginfo = (present.sa_flags & SA_SIGINFO) != 0;
    if (siginfo && present.sa_sigaction == on_signal) return true;
    if (siginfo || (present.sa_handler != SIG_DFL && present.sa_handler != SIG_IGN)) return false;
    struct sigaction ours = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
    sigemptyset(&ours.sa_mask);
    return sigaction(SIGURG, &ours, NULL) == 0;
}

static void mask(int how)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGURG);
    pthread_sigmask(how, &set, NULL);
}

static void set_interval(struct yield_timer *timer, uint64_t ns)
{
    if (!timer->exists) return;
    struct timespec interval = { (time_t)(ns / 1000000000U), (long)(ns % 1000000000U) };
    struct itimerspec both = { interval, interval };
    timer_settime(timer->id, 0, &both, NULL); /* cannot fail for what exists */
}

void yield_timer_open(struct yield_timer *timer, uint64_t interval_ns)
{
    *timer = (struct yield_timer){ .interval_ns = interval_ns, .yielded_at_ns = thread_ns() };
    if (!install()) return;
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID,
                              .sigev_signo = SIGURG,
                              .sigev_value.sival_ptr = timer };
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    timer->exists = timer_create(CLOCK_MONOTONIC, &event, &timer->id) == 0;
    mask(SIG_UNBLOCK);
}

void yield_timer_start(struct yield_timer *timer)
{
    set_interval(timer, timer->interval_ns);
}

void yield_timer_stop(struct yield_timer *timer)
{
    set_interval(timer, 0);
}

void yield_timer_close(struct yield_timer *timer)
{
    mask(SIG_BLOCK);
    if (timer->exists) timer_delete(timer->id);
    timer->exists = false;
}
