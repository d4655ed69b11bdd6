/* SPDX-License-Identifier: Apache-2.0 */
/* plane_row.c — reference and oracle of the twins plane_row_<isa>.c: n = 16 hi + lo, and
 * x = s (n - 127.5), for one token. */
#include "index/kernels/plane.h"

#include "base/half.h"

static int nibble(uint8_t byte, size_t high)
{
    return high ? byte >> 4 : byte & 15;
}

void plane_row_ref(const struct plane_row_args *args)
{
    size_t head_dim = args->head_dim, i = args->place % PLANE_TILE;
    size_t tile_at = args->place / PLANE_TILE * PLANE_TILE * head_dim / 2;
    const uint8_t *key = args->key_hi + tile_at, *value = args->value_hi + tile_at;
    const uint8_t *key_lo = args->lo + args->place * head_dim, *value_lo = key_lo + head_dim / 2;
    float key_step = half_from_fp16(args->key_scale[args->place]) / 16.0F;
    float value_step = half_from_fp16(args->value_scale[args->place]) / 16.0F;
    for (size_t d = 0; d < head_dim; d++) {
        int k = 16 * nibble(key[d / 8 * 64 + 4 * i + d % 4], d % 8 / 4) +
                nibble(key_lo[d / 2], d % 2);
        int v = 16 * nibble(value[(i / 8 * head_dim + d) * 4 + i % 4], i % 8 / 4) +
                nibble(value_lo[d / 2], d % 2);
        args->k[d] = key_step * ((float)k - 127.5F);
        args->v[d] = value_step * ((float)v - 127.5F);
    }
}
