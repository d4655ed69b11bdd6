/* SPDX-License-Identifier: Apache-2.0 */
/* plane_dot.c — reference and oracle of the twins plane_dot_<isa>.c: integer sums. */
#include "index/kernels/plane.h"

void plane_dot_ref(const struct plane_dot_args *args)
{
    const struct plane_queries *queries = args->queries;
    for (size_t c = 0; c < PLANE_TILES; c++) {
        if ((args->clusters >> c & 1) == 0) continue;
        for (size_t m = 0; m < queries->count; m++) {
            int32_t dot = 0;
            for (size_t d = 0; d < queries->head_dim; d++)
                dot += args->codes[c * queries->head_dim + d] *
                       queries->q8[m * queries->head_dim + d];
            args->scores[m * PLANE_TILES + c] =
                queries->scale[m] * args->scale[c] *
                    ((float)dot - 63.5F * (float)queries->sum[m]) +
                queries->offset[m];
        }
    }
}
