/* SPDX-License-Identifier: Apache-2.0 */
/* plane_estimate_avx512.c — plane_estimate_tile.h in AVX-512. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#include "index/kernels/plane_estimate_tile.h"

void plane_estimate_avx512(const struct plane_estimate_args *args)
{
    estimate_clusters(args);
}
