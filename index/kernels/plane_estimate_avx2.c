/* SPDX-License-Identifier: Apache-2.0 */
/* plane_estimate_avx2.c — plane_estimate_tile.h in AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx2.h"

#include "index/kernels/plane_estimate_tile.h"

void plane_estimate_avx2(const struct plane_estimate_args *args)
{
    estimate_clusters(args);
}
