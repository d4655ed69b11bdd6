/* SPDX-License-Identifier: Apache-2.0 */
/* plane_rank_tile.h — plane_rank, written once over the vocabulary of vec_<isa>.h; the logarithms
 * are those of plane_estimate too. */
#ifndef MEMD_INDEX_KERNELS_PLANE_RANK_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_RANK_TILE_H

#include <math.h>

#include "index/kernels/plane.h"

/* Deviation s of the scores in some clusters, and the scores of their centroids. */
static inline vec log_mass(const struct plane_reach *reach, vec s, vec centre)
{
    vec square = vec_min(vec_mul(s, s), vec_set(reach->spread_most));
    return vec_fma(vec_set(0.5F), square, centre);
}

static inline vec log_priority(const struct plane_reach *reach, vec s, vec centre)
{
    vec above = vec_mul(vec_set(reach->deviations), s);
    return vec_add(centre, vec_min(above, vec_set(reach->above_most)));
}

/* Roots of 64 numbers ≥ 0. */
static inline void roots(const float *values, float *ret_roots)
{
    for (size_t c = 0; c < PLANE_TILES; c += VEC_FLOATS)
        vec_store(ret_roots + c, vec_sqrt(vec_load(values + c)));
}

static inline void rank_clusters(const struct plane_rank_args *args)
{
    float root[PLANE_TILES];
    roots(args->key_spread, root);
    for (size_t m = 0; m < args->queries; m++) {
        const float *centres = args->centre + m * PLANE_TILES;
        const vec deviation = vec_set(args->deviation[m]);
        vec top = vec_set(-INFINITY), high = vec_set(-INFINITY);
        for (size_t c = 0; c < PLANE_TILES; c += VEC_FLOATS) {
            vec s = vec_mul(deviation, vec_load(root + c)), centre = vec_load(centres + c);
            top = vec_max(log_mass(&args->reach, s, centre), top);
            high = vec_max(log_priority(&args->reach, s, centre), high);
        }
        args->mass_top[m] = vec_largest(top);
        args->priority_top[m] = vec_largest(high);
    }
}

#endif
