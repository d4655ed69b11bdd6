/* SPDX-License-Identifier: Apache-2.0 */
/* score_avx2.c — score_tile.h in AVX2. */
#include "attention/kernels/score.h"

#include "attention/kernels/vec_avx2.h"

#include "attention/kernels/score_tile.h"

void score_avx2(const struct score_args *args)
{
    score_tiles(args);
}
