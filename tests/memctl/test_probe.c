/* SPDX-License-Identifier: Apache-2.0 */
/* test_probe.c — quantiles by nearest rank; the probes give plausible numbers and leave nothing
 * behind. */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "clients/memctl/probe.h"

static void test_quantile(void **state)
{
    (void)state;
    double values[] = { 5, 1, 4, 2, 3 };
    assert_true(probe_quantile(values, 5, 0.0) == 1);
    assert_true(probe_quantile(values, 5, 0.5) == 3);
    assert_true(probe_quantile(values, 5, 0.99) == 5);
    assert_true(probe_quantile(values, 5, 1.0) == 5);
    assert_true(probe_quantile(values, 1, 0.5) == 1);
}

static void test_stream(void **state)
{
    (void)state;
    enum { BYTES = 8 << 20 };
    void *buffer = probe_buffer(BYTES);
    assert_non_null(buffer);
    for (unsigned threads = 1; threads <= 3; threads++) {
        double rate = probe_stream(buffer, BYTES, threads, PROBE_IN_ORDER);
        if (!(rate > 1e7 && rate < 1e13)) fail_msg("%u threads: %g bytes/s", threads, rate);
        rate = probe_stream(buffer, BYTES, threads, PROBE_AT_PLACES);
        if (!(rate > 1e7 && rate < 1e13)) fail_msg("%u threads: %g bytes/s", threads, rate);
    }
    probe_buffer_free(buffer, BYTES);
    probe_buffer_free(NULL, 0);
}

static void test_disk(void **state)
{
    (void)state;
    char directory[] = "/tmp/memctl-probe-XXXXXX";
    assert_non_null(mkdtemp(directory));
    double rate = probe_disk(directory, (5 << 20) + 7);
    if (!(rate > 1e5 && rate < 1e12)) fail_msg("%g bytes/s", rate);
    DIR *dir = opendir(directory);
    assert_non_null(dir);
    int entries = 0;
    while (readdir(dir) != NULL) entries++;
    closedir(dir);
    assert_int_equal(entries, 2);
    assert_int_equal(rmdir(directory), 0);
    assert_true(probe_disk(directory, 1) == -ENOENT);
}

static void test_machine(void **state)
{
    (void)state;
    struct probe_machine machine = probe_machine();
    assert_true(machine.cores > 0);
    assert_true(machine.memory_bytes > 0);
    assert_true(machine.load >= 0);
    assert_non_null(machine.simd);
    assert_int_not_equal(machine.cpu[0], '\0');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantile),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_disk),
        cmocka_unit_test(test_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
