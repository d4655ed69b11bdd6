/* SPDX-License-Identifier: Apache-2.0 */
/* plane_estimate.c — reference and oracle of the twins plane_estimate_<isa>.c: exp of libm in
 * double. */
#include "index/kernels/plane.h"

#include <math.h>

#include "attention/kernels/exp_roughly.h"

void plane_estimate_ref(const struct plane_estimate_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        double mass = 0.0, priority = 0.0;
        args->priority_top[m] = 0.0F;
        for (size_t c = 0; c < PLANE_TILES; c++) {
            size_t at = m * PLANE_TILES + c;
            double centre = (double)args->centre[at];
            double s = (double)args->deviation[m] * sqrt((double)args->key_spread[c]);
            double above = fmin((double)args->reach.deviations * s,
                                (double)args->reach.above_most);
            double half = 0.5 * fmin(s * s, (double)args->reach.spread_most);
            args->mass[at] = (float)exp(centre + half - (double)args->mass_shift[m]);
            float rank = (float)(centre + above - (double)args->priority_shift[m]);
            args->priority[at] = exp_roughly(fmaxf(rank, PLANE_RANK_LEAST)) *
                                 (float)sqrt((double)args->value_spread[c]);
            mass += (double)args->mass[at];
            priority += (double)args->priority[at];
            args->priority_top[m] = fmaxf(args->priority_top[m], args->priority[at]);
        }
        args->mass_sum[m] = (float)mass;
        args->priority_sum[m] = (float)priority;
    }
}
