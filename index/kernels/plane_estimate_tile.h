/* SPDX-License-Identifier: Apache-2.0 */
/* plane_estimate_tile.h — plane_estimate, written once over the vocabulary of vec_<isa>.h. */
#ifndef MEMD_INDEX_KERNELS_PLANE_ESTIMATE_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_ESTIMATE_TILE_H

#include "attention/kernels/exp.h"
#include "index/kernels/plane_rank_tile.h"

static void estimate_clusters(const struct plane_estimate_args *args)
{
    float key_root[PLANE_TILES], value_root[PLANE_TILES];
    roots(args->key_spread, key_root);
    roots(args->value_spread, value_root);
    for (size_t m = 0; m < args->queries; m++) {
        const size_t row = m * PLANE_TILES;
        const vec deviation = vec_set(args->deviation[m]);
        const vec mass_shift = vec_set(-args->mass_shift[m]);
        const vec priority_shift = vec_set(-args->priority_shift[m]);
        vec masses = vec_set(0.0F), priorities = vec_set(0.0F), top = vec_set(0.0F);
        for (size_t c = 0; c < PLANE_TILES; c += VEC_FLOATS) {
            vec s = vec_mul(deviation, vec_load(key_root + c));
            vec centre = vec_load(args->centre + row + c);
            vec mass = vec_exp(vec_add(log_mass(&args->reach, s, centre), mass_shift));
            vec rank = vec_add(log_priority(&args->reach, s, centre), priority_shift);
            vec priority = vec_exp_roughly(vec_max(vec_set(PLANE_RANK_LEAST), rank));
            priority = vec_mul(priority, vec_load(value_root + c));
            vec_store(args->mass + row + c, mass);
            vec_store(args->priority + row + c, priority);
            masses = vec_add(masses, mass);
            priorities = vec_add(priorities, priority);
            top = vec_max(priority, top);
        }
        args->mass_sum[m] = vec_sum(masses);
        args->priority_sum[m] = vec_sum(priorities);
        args->priority_top[m] = vec_largest(top);
    }
}

#endif
