/* SPDX-License-Identifier: Apache-2.0 */
/* plane_soften.c — reference and oracle of the twins plane_soften_<isa>.c: exp of libm in
 * double. */
#include "index/kernels/plane.h"

#include <math.h>

void plane_soften_ref(const struct plane_soften_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        for (size_t at = 0; at < args->count; at++) {
            float *scores = args->scores + m * args->stride + at * PLANE_TILE;
            double sum = 0.0, square = 0.0;
            for (size_t i = 0; i < PLANE_TILE; i++) {
                double weight = exp((double)scores[i] - (double)args->shift[m]);
                scores[i] = (float)weight;
                sum += weight;
                square += weight * weight;
            }
            args->tile_sum[m * args->count + at] = (float)sum;
            args->tile_square[m * args->count + at] = (float)square;
        }
    }
}
