/* SPDX-License-Identifier: Apache-2.0 */
/* plane_centroid_tile.h — the walk of plane_centroid over tiles of 16 centroids and blocks of query
 * rows, for all instruction sets; each gives its centroid_rows, which is
 * inlined.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_CENTROID_TILE_H
#define MEMD_INDEX_KERNELS_PLANE_CENTROID_TILE_H

#include "index/kernels/plane.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    CENTROID_ROWS = 4,        /* query rows of a block */
    CENTROID_STEP_BYTES = 64, /* 16 centroids × 4 dimensions */
};

/* What is fetched while the codes from centroid c on are scored: of the next ones as much, once for
 * all query rows, spread over the work. (All at once they would be waited for.) Codes that are
 * being scored where there is nothing to fetch. */
INLINE const uint8_t *centroid_soon(const struct plane_centroid_args *args, size_t c, size_t first)
{
    const uint8_t *from = args->soon == NULL || first > 0 ? args->centroids : args->soon;
    return from + c * args->queries->head_dim;
}

/* Centroids c … c + 15 for the query rows first … first + rows - 1; `rows` ≤ CENTROID_ROWS is a
 * constant at each call. */
typedef void centroid_rows_fn(const struct plane_centroid_args *args, size_t c, size_t first,
                              size_t rows);

INLINE void centroid_tiles(const struct plane_centroid_args *args, centroid_rows_fn *centroid_rows)
{
    for (size_t c = 0; c < PLANE_TILES; c += PLANE_TILE) {
        size_t left = args->queries->count, first = 0;
        for (; left >= CENTROID_ROWS; left -= CENTROID_ROWS, first += CENTROID_ROWS)
            centroid_rows(args, c, first, CENTROID_ROWS);
        if (left == 3) centroid_rows(args, c, first, 3);
        if (left == 2) centroid_rows(args, c, first, 2);
        if (left == 1) centroid_rows(args, c, first, 1);
    }
}

#endif
