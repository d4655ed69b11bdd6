/* SPDX-License-Identifier: Apache-2.0 */
/* plane_centroid.c — reference and oracle of the twins plane_centroid_<isa>.c: codes decoded one by
 * one, double sums. */
#include "index/kernels/plane.h"

/* Code of dimension d of centroid c; tiles of 16 centroids. */
static uint8_t centroid_code(const uint8_t *centroids, size_t head_dim, size_t c, size_t d)
{
    const uint8_t *tile = centroids + c / PLANE_TILE * PLANE_TILE * head_dim;
    return tile[d / 4 * 64 + 4 * (c % PLANE_TILE) + d % 4];
}

void plane_centroid_ref(const struct plane_centroid_args *args)
{
    const struct plane_queries *queries = args->queries;
    for (size_t m = 0; m < queries->count; m++) {
        const int8_t *q8 = queries->q8 + m * queries->head_dim; /* (D) */
        for (size_t c = 0; c < PLANE_TILES; c++) {
            double sum = 0.0;
            for (size_t d = 0; d < queries->head_dim; d++) {
                uint8_t code = centroid_code(args->centroids, queries->head_dim, c, d);
                sum += ((double)code - 63.5) * (double)q8[d];
            }
            args->scores[m * PLANE_TILES + c] =
                (float)((double)queries->scale[m] * (double)args->scale[c] * sum +
                        (double)queries->offset[m]);
        }
    }
}
