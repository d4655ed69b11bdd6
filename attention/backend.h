/* SPDX-License-Identifier: Apache-2.0 */
/* backend.h — the table of kernels, filled once from the CPU level.
 *
 * A kernel is a file kernels/<op>.c, the reference with double sums, and twins kernels/<op>_<isa>.c
 * that the tests compare with it. Nothing else in memd knows an instruction set.
 */
#ifndef MEMD_ATTENTION_BACKEND_H
#define MEMD_ATTENTION_BACKEND_H

#include "attention/kernels/partial.h"
#include "attention/kernels/rotate.h"
#include "attention/kernels/score.h"
#include "base/cpu.h"

struct backend {
    const char *name;
    partial_fn *partial; /* online-softmax attention of a few queries over a run of rows */
    score_fn *score;     /* scale * q · k of a few queries over a run of rows */
    rotate_fn *rotate;   /* keys stored unrotated, to fp32 at their positions */
};

/* The table in force (cpu_level()). Never NULL, immutable. */
const struct backend *backend_get(void);

/* `count` rows of D elements that stand one behind the other, to fp32 by the kernel in force (what
 * half_load says, in fewer instructions). D a multiple of 8; ret_rows (count, D) */
void backend_widen(const void *rows, uint32_t dtype, size_t count, size_t head_dim,
                   float *ret_rows);

/* The table of one level, for tests; NULL when this build or CPU does not have it. */
const struct backend *backend_for(enum cpu_level level);

#endif
