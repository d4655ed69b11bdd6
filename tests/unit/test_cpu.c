/* SPDX-License-Identifier: Apache-2.0 */
/* test_cpu.c — MEMD_SIMD lowers the level, never raises it; each case in a process of its own.
 *
 * cpu_level decides once per process, so the program forks: the child sets the variable and answers
 * with its exit status.
 */
#include "base/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* cpu_level() of a process whose MEMD_SIMD is `text` (NULL: not set). */
static enum cpu_level level_with(const char *text)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (text == NULL) unsetenv("MEMD_SIMD");
        if (text != NULL) setenv("MEMD_SIMD", text, 1);
        enum cpu_level first = cpu_level();
        setenv("MEMD_SIMD", "ref", 1);
        _exit(cpu_level() == first ? (int)first : 99); /* decided once */
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return (enum cpu_level)WEXITSTATUS(status);
}

static void the_variable_lowers_the_level(void **state)
{
    (void)state;
    assert_int_equal(level_with(NULL), cpu_level_best());
    assert_int_equal(level_with("ref"), CPU_REF);
    for (int level = 0; level < CPU_LEVELS; level++) {
        enum cpu_level got = level_with(cpu_level_name((enum cpu_level)level));
        assert_true(got <= cpu_level_best());
    }
}

static void unknown_names_change_nothing(void **state)
{
    (void)state;
    assert_int_equal(level_with("fastest"), cpu_level_best());
    assert_int_equal(level_with(""), cpu_level_best());
}

static void every_level_has_a_name(void **state)
{
    (void)state;
    for (int a = 0; a < CPU_LEVELS; a++)
        for (int b = 0; b < a; b++)
            assert_string_not_equal(cpu_level_name((enum cpu_level)a),
                                    cpu_level_name((enum cpu_level)b));
    assert_string_equal(cpu_level_name(CPU_REF), "ref");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_variable_lowers_the_level),
        cmocka_unit_test(unknown_names_change_nothing),
        cmocka_unit_test(every_level_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
