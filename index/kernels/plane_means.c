/* SPDX-License-Identifier: Apache-2.0 */
/* plane_means.c — reference and oracle of the twins plane_means_<isa>.c: double sums. */
#include "index/kernels/plane.h"

void plane_means_ref(const struct plane_means_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        for (size_t d = 0; d < args->head_dim; d++) {
            double sum = (double)args->acc[m * args->head_dim + d];
            for (size_t c = 0; c < PLANE_TILES; c++) {
                if ((args->clusters >> c & 1) == 0) continue;
                double mean = (double)args->scale[c] * (double)args->means[c * args->head_dim + d];
                sum += (double)args->mass[m * PLANE_TILES + c] * mean;
            }
            args->acc[m * args->head_dim + d] = (float)sum;
        }
    }
}
