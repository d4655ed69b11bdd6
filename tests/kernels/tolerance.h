/* SPDX-License-Identifier: Apache-2.0 */
/* tolerance.h — the one table of how far an answer may be from the truth: |a - b| ≤ atol + rtol
 * |b|.
 *
 * `kernel` compares a twin with its reference on the same stored bits: only the order of fp32 sums
 * differs. `answer` is what memd promises for attention over N(0, 1) data against float64.
 */
#ifndef MEMD_TESTS_KERNELS_TOLERANCE_H
#define MEMD_TESTS_KERNELS_TOLERANCE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/tensor.h"

struct near {
    float atol, rtol;
};

struct tolerance {
    uint32_t dtype; /* of K and V */
    struct near kernel, answer;
};

static const struct tolerance tolerances[] = {
    { DTYPE_FP32, { 2e-6F, 4e-6F }, { 1e-5F, 0.0F } },
    { DTYPE_FP16, { 2e-6F, 4e-6F }, { 2e-5F, 0.0F } },
    { DTYPE_BF16, { 2e-6F, 4e-6F }, { 2e-5F, 0.0F } },
};

static inline const struct tolerance *tolerance_of(uint32_t dtype)
{
    const struct tolerance *tolerance = tolerances;
    while (tolerance->dtype != dtype) tolerance++;
    return tolerance;
}

/* Equal values are close, two infinities of one sign too; NaN is close to nothing. */
static inline bool close_to(float value, double truth, struct near near)
{
    if ((double)value == truth) return true;
    return fabs((double)value - truth) <= (double)near.atol + (double)near.rtol * fabs(truth);
}

#endif
