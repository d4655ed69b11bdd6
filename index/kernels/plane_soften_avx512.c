/* SPDX-License-Identifier: Apache-2.0 */
/* plane_soften_avx512.c — plane_soften_tile.h in AVX-512. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#include "index/kernels/plane_soften_tile.h"

void plane_soften_avx512(const struct plane_soften_args *args)
{
    soften_tiles(args);
}
