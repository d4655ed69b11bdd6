/* SPDX-License-Identifier: Apache-2.0 */
/* plane_means_neon.c — plane_means_tile.h in NEON. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"

#include "index/kernels/plane_means_tile.h"

void plane_means_neon(const struct plane_means_args *args)
{
    means_tiles(args);
}
