/* SPDX-License-Identifier: Apache-2.0 */
/* score_neon.c — score_tile.h in NEON. */
#include "attention/kernels/score.h"

#include "attention/kernels/vec_neon.h"

#include "attention/kernels/score_tile.h"

void score_neon(const struct score_args *args)
{
    score_tiles(args);
}
