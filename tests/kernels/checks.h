/* SPDX-License-Identifier: Apache-2.0 */
/* checks.h — counting checks without a test library, so that the kernel tests cross-compile with
 * nothing but libc. Every failed check prints both values; the last line is "N passed, N failed".
 */
#ifndef MEMD_TESTS_KERNELS_CHECKS_H
#define MEMD_TESTS_KERNELS_CHECKS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/half.h"
#include "tests/kernels/tolerance.h"
#include "tests/random.h"

enum { CHECKS_SHOWN = 20 };

struct checks {
    size_t passed, failed;
};

/* One result of `count` values, close enough everywhere? `what` names the case. */
static inline void checks_close(struct checks *checks, const char *what, const float *values,
                                const float *truth, size_t count, struct near near)
{
    size_t at = 0;
    while (at < count && close_to(values[at], (double)truth[at], near)) at++;
    if (at == count) {
        checks->passed++;
        return;
    }
    if (checks->failed++ < CHECKS_SHOWN)
        printf("FAILED %s: [%zu] is %.9g, reference %.9g\n", what, at, (double)values[at],
               (double)truth[at]);
}

static inline int checks_end(const struct checks *checks)
{
    printf("%zu passed, %zu failed\n", checks->passed, checks->failed);
    return checks->failed == 0 && checks->passed > 0 ? 0 : 1;
}

static inline void *checks_alloc(size_t bytes)
{
    void *memory = malloc(bytes + 1);
    if (memory != NULL) return memory;
    printf("out of memory\n");
    exit(1);
}

/* About N(0, 1): the sum of 12 even numbers. */
static inline float checks_normal(uint64_t *random)
{
    float sum = 0.0F;
    for (int i = 0; i < 12; i++) sum += random_float(random);
    return sum * 0.5F;
}

#endif
