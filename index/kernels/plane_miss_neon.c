/* SPDX-License-Identifier: Apache-2.0 */
/* plane_miss_neon.c — plane_miss_tile.h in NEON. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"

#include "index/kernels/plane_miss_tile.h"

void plane_miss_neon(const struct plane_miss_args *args)
{
    miss_clusters(args);
}
