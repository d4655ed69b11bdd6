/* SPDX-License-Identifier: Apache-2.0 */
/* plane_turn.c — reference and oracle of the twins plane_turn_<isa>.c: double sums, one row after
 * another. */
#include <math.h>

#include "index/kernels/encode.h"
#include "index/kernels/plane.h"

/* 1 / query_square of channel d, bounded. */
static double channel_weight(const struct plane_turn_args *args, double mean, size_t d)
{
    if (args->query_square == NULL) return 1.0;
    double least = (double)args->floor * mean + 1e-30;
    return 1.0 / fmax((double)args->query_square[d], least);
}

static double mean_square(const struct plane_turn_args *args)
{
    double sum = 0.0;
    if (args->query_square == NULL) return 0.0;
    for (size_t d = 0; d < args->head_dim; d++) sum += (double)args->query_square[d];
    return sum / (double)args->head_dim;
}

static void round_row(const struct plane_turn_args *args, size_t m)
{
    const float *turned = args->turned + m * args->head_dim;
    float most = 0.0F;
    double square = 0.0;
    for (size_t d = 0; d < args->head_dim; d++) {
        most = fmaxf(most, fabsf(turned[d]));
        square += (double)turned[d] * (double)turned[d];
    }
    float inverse = most > 0.0F ? 127.0F / most : 0.0F;
    args->scale[m] = most / 127.0F;
    args->square[m] = (float)square;
    args->sum[m] = 0;
    for (size_t d = 0; d < args->head_dim; d++) {
        int32_t code = (int32_t)lrintf(turned[d] * inverse);
        args->q8[m * args->head_dim + d] = (int8_t)code;
        args->sum[m] += code;
    }
}

void plane_turn_ref(const struct plane_turn_args *args)
{
    double mean = mean_square(args);
    for (size_t m = 0; m < args->queries; m++) {
        const float *q = args->q + m * args->head_dim;
        float *turned = args->turned + m * args->head_dim;
        double offset = 0.0, ratio = 0.0;
        for (size_t d = 0; d < args->head_dim; d++) {
            offset += (double)q[d] * (double)args->key_mean[d];
            ratio += (double)q[d] * (double)q[d] * channel_weight(args, mean, d);
            turned[d] = q[d] / args->balance[d];
        }
        args->offset[m] = (float)offset;
        args->deviation[m] = (float)sqrt(ratio / (double)args->head_dim);
        encode_rotate_ref(&(struct encode_rotate_args){ .rows = turned, .count = 1,
            .head_dim = args->head_dim, .signs = { args->signs[0], args->signs[1] } });
        round_row(args, m);
    }
}
