/* SPDX-License-Identifier: Apache-2.0 */
/* plane_miss_avx2.c — plane_miss_tile.h in AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx2.h"

#include "index/kernels/plane_miss_tile.h"

void plane_miss_avx2(const struct plane_miss_args *args)
{
    miss_clusters(args);
}
