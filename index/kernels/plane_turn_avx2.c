/* SPDX-License-Identifier: Apache-2.0 */
/* plane_turn_avx2.c — plane_turn_tile.h in AVX2. */
#include "index/kernels/plane_turn_tile.h"

void plane_turn_avx2(const struct plane_turn_args *args)
{
    turn_queries(args);
}
