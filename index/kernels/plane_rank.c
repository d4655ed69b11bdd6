/* SPDX-License-Identifier: Apache-2.0 */
/* plane_rank.c — reference and oracle of the twins plane_rank_<isa>.c: libm in double. */
#include "index/kernels/plane.h"

#include <math.h>

void plane_rank_ref(const struct plane_rank_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        double mass = -INFINITY, priority = -INFINITY;
        for (size_t c = 0; c < PLANE_TILES; c++) {
            double centre = (double)args->centre[m * PLANE_TILES + c];
            double s = (double)args->deviation[m] * sqrt((double)args->key_spread[c]);
            mass = fmax(mass, centre + 0.5 * fmin(s * s, (double)args->reach.spread_most));
            priority = fmax(priority, centre + fmin((double)args->reach.deviations * s,
                                                    (double)args->reach.above_most));
        }
        args->mass_top[m] = (float)mass;
        args->priority_top[m] = (float)priority;
    }
}
