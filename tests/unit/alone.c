/* SPDX-License-Identifier: Apache-2.0 */
/* alone.c — stands in for pthread_create in tests of code that starts no thread (`alone` in
 * meson.build).
 *
 * The thread sanitizer has nothing to see in them, so `./check tsan` leaves them out. Whoever makes
 * one of them start a thread is told here, in every build, to take it off that list; a new test is
 * not on it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*run)(void *), void *arg);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*run)(void *), void *arg)
{
    (void)thread;
    (void)attributes;
    (void)run;
    (void)arg;
    fputs("this test starts a thread: take it off `alone` in tests/unit/meson.build\n", stderr);
    abort();
}
