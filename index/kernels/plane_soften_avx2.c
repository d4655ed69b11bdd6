/* SPDX-License-Identifier: Apache-2.0 */
/* plane_soften_avx2.c — plane_soften_tile.h in AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx2.h"

#include "index/kernels/plane_soften_tile.h"

void plane_soften_avx2(const struct plane_soften_args *args)
{
    soften_tiles(args);
}
