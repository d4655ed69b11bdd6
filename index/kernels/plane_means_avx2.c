/* SPDX-License-Identifier: Apache-2.0 */
/* plane_means_avx2.c — plane_means_tile.h in AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx2.h"

#include "index/kernels/plane_means_tile.h"

void plane_means_avx2(const struct plane_means_args *args)
{
    means_tiles(args);
}
