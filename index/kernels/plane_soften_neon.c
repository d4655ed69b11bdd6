/* SPDX-License-Identifier: Apache-2.0 */
/* plane_soften_neon.c — plane_soften_tile.h in NEON. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_neon.h"

#include "index/kernels/plane_soften_tile.h"

void plane_soften_neon(const struct plane_soften_args *args)
{
    soften_tiles(args);
}
