/* SPDX-License-Identifier: Apache-2.0 */
/* merge.c — reference and oracle of merge.cu: double sums, one row of the answer at a time. */
#include <math.h>
#include <stddef.h>

#include "attention/cuda/launch.h"

static void merge_row(const struct merge_launch *args, uint32_t row)
{
    double top = -INFINITY, sum = 0.0;
    uint32_t begin = args->begin[row], end = args->begin[row + 1];
    for (uint32_t i = begin; i < end; i++) top = fmax(top, (double)args->lse[args->parts[i]]);
    for (uint32_t i = begin; top > -INFINITY && i < end; i++)
        sum += exp((double)args->lse[args->parts[i]] - top);
    for (uint32_t d = 0; d < args->head_dim; d++) {
        double value = 0.0;
        for (uint32_t i = begin; sum > 0.0 && i < end; i++) {
            if (args->lse[args->parts[i]] == -INFINITY) continue; /* whatever stands there */
            const float *o = args->o + (size_t)args->parts[i] * args->head_dim; /* (D) */
            value += exp((double)args->lse[args->parts[i]] - top) / sum * (double)o[d];
        }
        args->ret_o[(size_t)row * args->head_dim + d] = (float)value;
    }
    args->ret_lse[row] = sum > 0.0 ? (float)(top + log(sum)) : -INFINITY;
}

void merge_ref(const struct merge_launch *args)
{
    for (uint32_t row = 0; row < args->count; row++) merge_row(args, row);
}
