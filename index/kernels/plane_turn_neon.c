/* SPDX-License-Identifier: Apache-2.0 */
/* plane_turn_neon.c — plane_turn_tile.h in NEON. */
#include "index/kernels/plane_turn_tile.h"

void plane_turn_neon(const struct plane_turn_args *args)
{
    turn_queries(args);
}
