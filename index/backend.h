/* SPDX-License-Identifier: Apache-2.0 */
/* backend.h — the table of the index's kernels, filled once from the CPU level; the same rule as
 * attention/backend.h. */
#ifndef MEMD_INDEX_BACKEND_H
#define MEMD_INDEX_BACKEND_H

#include "base/cpu.h"
#include "index/kernels/plane.h"

struct plane_backend {
    const char *name;
    plane_turn_fn *turn;
    plane_score_fn *score;
    plane_centroid_fn *centroid;
    plane_dot_fn *dot;
    plane_above_fn *above;
    plane_rank_fn *rank;
    plane_estimate_fn *estimate;
    plane_soften_fn *soften;
    plane_weigh_fn *weigh;
    plane_means_fn *means;
    plane_miss_fn *miss;
    plane_row_fn *row;
};

/* The table in force (cpu_level()). Never NULL, immutable. */
const struct plane_backend *plane_backend_get(void);

/* The table of one level, for tests; NULL when this build or CPU does not have it. */
const struct plane_backend *plane_backend_for(enum cpu_level level);

#endif
