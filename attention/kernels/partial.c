/* SPDX-License-Identifier: Apache-2.0 */
/* partial.c — reference and oracle of the twins partial_<isa>.c: plain loops, double sums.
 *
 * Two passes over the rows of each query (the maximum, then the sums) instead of the twins' tiles,
 * so that the two can hardly share a mistake. Written to be read; it reads every row once per
 * query, not once.
 */
#include "attention/kernels/partial.h"

#include <assert.h>
#include <math.h>

#include "base/half.h"
#include "base/tensor.h"
#include "proto/limits.h"

/* Row `row` of a (tokens, D) array as fp32. */
static void load_row(const void *rows, size_t stride_bytes, uint32_t dtype, size_t row,
                     size_t head_dim, float *ret_row)
{
    half_load((const unsigned char *)rows + row * stride_bytes, dtype, head_dim, ret_row);
}

/* q, key (D) */
static double dot(const float *q, const float *key, size_t head_dim)
{
    double sum = 0.0;
    for (size_t d = 0; d < head_dim; d++) sum += (double)q[d] * (double)key[d];
    return sum;
}

static double score(const struct partial_args *args, size_t m, size_t row)
{
    float key[LIMIT_HEAD_DIM];
    load_row(args->k, args->k_stride_bytes, args->k_dtype, row, args->head_dim, key);
    return (double)(float)dot(args->q + m * args->head_dim, key, args->head_dim);
}

static void attend_one(const struct partial_args *args, size_t m)
{
    double max = (double)args->max[m];
    for (size_t row = 0; row < args->visible[m]; row++) max = fmax(max, score(args, m, row));
    if (max == -INFINITY) return; /* nothing seen before, nothing visible now */

    float *acc = args->acc + m * args->head_dim; /* (D) */
    double sums[LIMIT_HEAD_DIM];
    double carried = exp((double)args->max[m] - max);
    double sum = (double)args->sum[m] * carried;
    for (size_t d = 0; d < args->head_dim; d++) sums[d] = (double)acc[d] * carried;
    for (size_t row = 0; row < args->visible[m]; row++) {
        float value[LIMIT_HEAD_DIM];
        load_row(args->v, args->v_stride_bytes, args->v_dtype, row, args->head_dim, value);
        double weight = exp(score(args, m, row) - max);
        sum += weight;
        for (size_t d = 0; d < args->head_dim; d++) sums[d] += weight * (double)value[d];
    }
    args->max[m] = (float)max;
    args->sum[m] = (float)sum;
    for (size_t d = 0; d < args->head_dim; d++) acc[d] = (float)sums[d];
}

void partial_ref(const struct partial_args *args)
{
    assert(args->head_dim <= LIMIT_HEAD_DIM);
    assert(dtype_is_float(args->k_dtype) && dtype_is_float(args->v_dtype));
    for (size_t m = 0; m < args->queries; m++) {
        assert(args->visible[m] <= args->tokens);
        attend_one(args, m);
    }
}
