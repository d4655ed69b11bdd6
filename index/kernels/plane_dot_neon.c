/* SPDX-License-Identifier: Apache-2.0 */
/* plane_dot_neon.c — plane_dot_tile.h in NEON. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"

#include "index/kernels/plane_dot_tile.h"

void plane_dot_neon(const struct plane_dot_args *args)
{
    dot_centroids(args);
}
