/* SPDX-License-Identifier: Apache-2.0 */
/* plane_miss.c — reference and oracle of the twins plane_miss_<isa>.c: sums in double. */
#include "index/kernels/plane.h"

/* Element d of what cluster i is off by. */
static double off_by(const struct plane_miss_args *args, size_t i, size_t d)
{
    double apart = (double)args->means[i * args->head_dim + d] - (double)args->output[d];
    return (double)args->values[i * args->stride + d] + (double)args->more[i] * apart;
}

void plane_miss_ref(const struct plane_miss_args *args)
{
    for (size_t d = 0; d < args->head_dim; d++) {
        double sum = 0.0;
        for (size_t i = 0; i < args->count; i++)
            sum += (double)args->weight[i] * off_by(args, i, d);
        args->sum[d] = (float)sum;
    }
    for (size_t i = 0; i < args->count; i++) {
        double square = 0.0;
        for (size_t d = 0; d < args->head_dim; d++) {
            double e = off_by(args, i, d);
            square += e * e;
        }
        args->square[i] = (float)square;
    }
}
