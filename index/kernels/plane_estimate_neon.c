/* SPDX-License-Identifier: Apache-2.0 */
/* plane_estimate_neon.c — plane_estimate_tile.h in NEON. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"

#include "index/kernels/plane_estimate_tile.h"

void plane_estimate_neon(const struct plane_estimate_args *args)
{
    estimate_clusters(args);
}
