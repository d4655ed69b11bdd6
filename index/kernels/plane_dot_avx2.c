/* SPDX-License-Identifier: Apache-2.0 */
/* plane_dot_avx2.c — plane_dot_tile.h in AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx2.h"

#include "index/kernels/plane_dot_tile.h"

void plane_dot_avx2(const struct plane_dot_args *args)
{
    dot_centroids(args);
}
