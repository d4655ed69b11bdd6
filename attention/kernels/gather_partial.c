/* SPDX-License-Identifier: Apache-2.0 */
/* gather_partial.c — reference and oracle of gather_partial.cu: two passes over the list, double
 * sums, angles of attention/rope.h in double.
 *
 * The frequencies come out of launch_rope as they went in: a turn of 2^64 is 2 pi.
 */
#include <assert.h>
#include <float.h>
#include <math.h>

#include "attention/cuda/launch.h"
#include "attention/kernels/turned.h"
#include "base/half.h"

/* Key number i of the list, rotated. key (D) */
static void load_key(const struct gather_launch *args, const struct gather_run *run, uint32_t i,
                     double *key)
{
    float row[LAUNCH_HEAD_DIM];
    half_load((const unsigned char *)run->rows.k +
                  (size_t)run->ids[i] * run->rows.k_stride_bytes,
              run->rows.k_dtype, args->head_dim, row);
    for (uint32_t d = 0; d < args->head_dim; d++) key[d] = (double)row[d];
    turned(&args->rope, run->positions[i], key);
}

/* Score of number i of the list for query row m, -inf where it is not seen. */
static double score(const struct gather_launch *args, const struct gather_run *run, uint32_t m,
                    uint32_t i)
{
    double key[LAUNCH_HEAD_DIM] = { 0.0 }, sum = 0.0;
    if (run->positions[i] >= args->limits[run->query + m]) return -INFINITY;
    const float *q = args->q + (size_t)(run->query + m) * args->head_dim; /* (D) */
    load_key(args, run, i, key);
    for (uint32_t d = 0; d < args->head_dim; d++) sum += (double)q[d] * key[d];
    return sum < -(double)FLT_MAX ? -INFINITY : sum; /* what fp32 makes of it: not visible */
}

static void attend_one(const struct gather_launch *args, const struct gather_run *run, uint32_t m)
{
    double max = -INFINITY, sum = 0.0, sums[LAUNCH_HEAD_DIM] = { 0.0 };
    for (uint32_t i = 0; i < run->count; i++) max = fmax(max, score(args, run, m, i));
    for (uint32_t i = 0; max > -INFINITY && i < run->count; i++) {
        float value[LAUNCH_HEAD_DIM];
        double weight = exp(score(args, run, m, i) - max);
        half_load((const unsigned char *)run->rows.v +
                      (size_t)run->ids[i] * run->rows.v_stride_bytes,
                  run->rows.v_dtype, args->head_dim, value);
        sum += weight;
        for (uint32_t d = 0; d < args->head_dim; d++) sums[d] += weight * (double)value[d];
    }
    float *o = args->o + (size_t)(run->result + m) * args->head_dim; /* (D) */
    for (uint32_t d = 0; d < args->head_dim; d++) o[d] = sum > 0.0 ? (float)(sums[d] / sum) : 0.0F;
    args->lse[run->result + m] = sum > 0.0 ? (float)(max + log(sum)) : -INFINITY;
}

void gather_partial_ref(const struct gather_launch *args)
{
    assert(args->head_dim <= LAUNCH_HEAD_DIM);
    for (uint32_t i = 0; i < args->count; i++)
        for (uint32_t m = 0; m < args->runs[i].queries; m++) attend_one(args, &args->runs[i], m);
}
