/* SPDX-License-Identifier: Apache-2.0 */
/* plane_above.c — reference and oracle of the twins plane_above_<isa>.c. One addition, rounded
 * once: twins give the same bits. */
#include "index/kernels/plane.h"

void plane_above_ref(const struct plane_above_args *args)
{
    for (size_t m = 0; m < args->queries; m++) {
        float *scores = args->scores + m * PLANE_TILES;
        uint64_t above = 0;
        for (size_t i = 0; i < PLANE_TILES; i++) {
            if (args->extra != NULL) scores[i] += args->extra[i];
            if (scores[i] >= args->least[m]) above |= (uint64_t)1 << i;
        }
        args->above[m] = above;
    }
}
