/* SPDX-License-Identifier: Apache-2.0 */
/* plane_rank_neon.c — plane_rank_tile.h in NEON. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"

#include "index/kernels/plane_rank_tile.h"

void plane_rank_neon(const struct plane_rank_args *args)
{
    rank_clusters(args);
}
