/* SPDX-License-Identifier: Apache-2.0 */
/* partial_neon.c — partial_tile.h in NEON. */
#include "attention/kernels/partial.h"

#include "attention/kernels/vec_neon.h"

#include "attention/kernels/partial_tile.h"

void partial_neon(const struct partial_args *args)
{
    partial_tiles(args);
}
