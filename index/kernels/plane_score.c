/* SPDX-License-Identifier: Apache-2.0 */
/* plane_score.c — reference and oracle of the twins plane_score_<isa>.c: codes decoded one by one,
 * double sums. */
#include "index/kernels/plane.h"

#include "base/half.h"

/* Code of dimension d of token i of a K-hi tile. */
static int key_code(const uint8_t *tile, size_t i, size_t d)
{
    uint8_t byte = tile[d / 8 * 64 + 4 * i + d % 4];
    return d % 8 < 4 ? byte & 15 : byte >> 4;
}

/* Σ_d step (code - 7.5) q'_d; q8 (D) */
static double dot(const struct plane_queries *queries, size_t m, const uint8_t *tile, size_t i)
{
    const int8_t *q8 = queries->q8 + m * queries->head_dim;
    double sum = 0.0;
    for (size_t d = 0; d < queries->head_dim; d++)
        sum += ((double)key_code(tile, i, d) - 7.5) * (double)q8[d];
    return sum;
}

void plane_score_ref(const struct plane_score_args *args)
{
    const struct plane_queries *queries = args->queries;
    for (size_t at = 0; at < args->count; at++) {
        size_t tile = plane_tile(args->tiles, at);
        const uint8_t *codes = args->key_hi + tile * PLANE_TILE * queries->head_dim / 2;
        for (size_t m = 0; m < queries->count; m++) {
            float *scores = args->scores + m * args->stride + at * PLANE_TILE;
            for (size_t i = 0; i < PLANE_TILE; i++) {
                double step = (double)half_from_fp16(args->key_scale[tile * PLANE_TILE + i]);
                scores[i] = (float)((double)queries->scale[m] * step * dot(queries, m, codes, i) +
                                    (double)queries->offset[m]);
            }
        }
    }
}
