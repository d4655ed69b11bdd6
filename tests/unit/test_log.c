/* SPDX-License-Identifier: Apache-2.0 */
/* test_log.c — lines are whole, cut, and cannot be forged by what a client sent.
 *
 * stderr is replaced by a pipe while a line is written.
 */
#include "base/log.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int real_stderr, pipe_read;

static void capture(void)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(stderr);
    real_stderr = dup(STDERR_FILENO);
    pipe_read = ends[0];
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
}

/* What was written since capture, as a string. */
static size_t release(char *ret_text, size_t text_bytes)
{
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    size_t used = 0;
    for (ssize_t got; (got = read(pipe_read, ret_text + used, text_bytes - 1 - used)) > 0;)
        used += (size_t)got;
    close(pipe_read);
    ret_text[used] = '\0';
    return used;
}

static void lines_have_level_event_and_values(void **state)
{
    (void)state;
    char text[4096];
    unsetenv("INVOCATION_ID");
    unsetenv("JOURNAL_STREAM");
    capture();
    log_event(LOG_WARN, "slow", "request=%d took=%s", 7, "9ms");
    release(text, sizeof text);
    assert_non_null(strstr(text, "Z warn slow request=7 took=9ms\n"));
    setenv("INVOCATION_ID", "x", 1);
    capture();
    log_event(LOG_ERROR, "broken", "code=%d", -17);
    release(text, sizeof text);
    assert_string_equal(text, "<3>error broken code=-17\n");
    unsetenv("INVOCATION_ID");
}

static void levels_below_are_silent(void **state)
{
    (void)state;
    char text[256];
    log_set_level(LOG_WARN);
    capture();
    log_event(LOG_INFO, "quiet", "x=%d", 1);
    assert_int_equal(release(text, sizeof text), 0);
    log_set_level(LOG_INFO);
    assert_int_equal(log_level_parse("debug"), LOG_DEBUG);
    assert_int_equal(log_level_parse("warn"), LOG_WARN);
    assert_int_equal(log_level_parse("loud"), -1);
    assert_int_equal(log_level_parse(""), -1);
}

static void nobody_forges_a_line(void **state)
{
    (void)state;
    char text[4096];
    capture();
    log_event(LOG_INFO, "open", "name=%s", "a\n<0>error fake\x1b[2J\x7f");
    release(text, sizeof text);
    assert_non_null(strstr(text, "name=a?<0>error fake?[2J?\n"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
}

static void long_lines_are_cut(void **state)
{
    (void)state;
    static char value[5000], text[8192];
    memset(value, 'v', sizeof value - 1);
    capture();
    log_event(LOG_INFO, "long", "value=%s", value);
    assert_int_equal(release(text, sizeof text), 1024);
    assert_int_equal(text[1023], '\n');
}

static void *write_lines(void *arg)
{
    for (int i = 0; i < 100; i++) log_event(LOG_INFO, "thread", "who=%s", (const char *)arg);
    return NULL;
}

static void lines_of_threads_do_not_mix(void **state)
{
    (void)state;
    static char text[1 << 16]; /* the pipe holds 64 KiB; 400 lines are less */
    static const char *const names[4] = { "aaaa", "bbbb", "cccc", "dddd" };
    pthread_t threads[4];
    capture();
    for (int i = 0; i < 4; i++) {
        void *name = (void *)(uintptr_t)names[i];
        assert_int_equal(pthread_create(&threads[i], NULL, write_lines, name), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    release(text, sizeof text);
    int lines = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        *end = '\0';
        const char *who = strstr(line, "info thread who=");
        assert_non_null(who);
        who += strlen("info thread who=");
        assert_int_equal(strspn(who, (char[]){ who[0], '\0' }), 4);
        assert_int_equal(strlen(who), 4);
    }
    assert_int_equal(lines, 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_have_level_event_and_values),
        cmocka_unit_test(levels_below_are_silent),
        cmocka_unit_test(nobody_forges_a_line),
        cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(lines_of_threads_do_not_mix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
