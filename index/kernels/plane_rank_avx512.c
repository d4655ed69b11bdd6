/* SPDX-License-Identifier: Apache-2.0 */
/* plane_rank_avx512.c — plane_rank_tile.h in AVX-512. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#include "index/kernels/plane_rank_tile.h"

void plane_rank_avx512(const struct plane_rank_args *args)
{
    rank_clusters(args);
}
