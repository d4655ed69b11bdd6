/* SPDX-License-Identifier: Apache-2.0 */
/* plane_weigh.c — reference and oracle of the twins plane_weigh_<isa>.c: double sums, weights
 * as they are. The twins round weights to 8 bits; tests hold them to the bound of that rounding. */
#include "index/kernels/plane.h"

#include "base/half.h"

/* Code of dimension d of token i of a V-hi tile. */
static int value_code(const uint8_t *tile, size_t head_dim, size_t i, size_t d)
{
    uint8_t byte = tile[(i / 8 * head_dim + d) * 4 + i % 4];
    return i % 8 < 4 ? byte & 15 : byte >> 4;
}

void plane_weigh_ref(const struct plane_weigh_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        for (size_t d = 0; d < args->head_dim; d++) {
            double sum = (double)args->acc[m * args->head_dim + d];
            for (size_t p = 0; p < args->count * PLANE_TILE; p++) {
                size_t tile = plane_tile(args->tiles, p / PLANE_TILE), i = p % PLANE_TILE;
                const uint8_t *codes = args->value_hi + tile * PLANE_TILE * args->head_dim / 2;
                double step = (double)half_from_fp16(args->value_scale[tile * PLANE_TILE + i]);
                double residual = step * ((double)value_code(codes, args->head_dim, i, d) - 7.5);
                sum += (double)args->weights[m * args->stride + p] * residual;
            }
            args->acc[m * args->head_dim + d] = (float)sum;
        }
    }
}
