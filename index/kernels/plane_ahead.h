/* SPDX-License-Identifier: Apache-2.0 */
/* plane_ahead.h — what score and weigh ask of memory before they read it, for all instruction sets.
 *
 * Lines are asked for AHEAD_BYTES ahead, into the second-level cache: in the first one they would
 * hold buffers that plain loads need. Such a prefetch is dropped, however, where the address of the
 * page is not known, and looking that up takes longer than the line itself where a page has 4 KB
 * and the CPU is a virtual one. So one line of every tile is asked for earlier and into the first
 * level, which does look pages up (docs/decisions/0049). Skipping lines, or leaving them to the
 * CPU's own prefetcher, costs up to half of the speed.
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_AHEAD_H
#define MEMD_INDEX_KERNELS_PLANE_AHEAD_H

#include "index/kernels/plane.h"

enum {
    AHEAD_BYTES = 8192,        /* from what is read to the lines that are asked for */
    AHEAD_TOUCH_BYTES = 32768, /* and to the pages */
    AHEAD_LINE_BYTES = 64,
    AHEAD_TILES_MAX = 16, /* of lines; twice that of pages */
};

/* A list of tiles that are read in order. */
struct ahead {
    const uint8_t *codes, *soon; /* soon: what is read after the list; or NULL */
    const uint16_t *tiles;
    const uint16_t *scale;       /* (1024), 16 of each tile */
    size_t count, tile_bytes;
    size_t lines, pages; /* distances in tiles */
};

/* Where the `at`-th tile of the list begins, or what follows the list. */
static inline const uint8_t *ahead_tile(const struct ahead *ahead, size_t at)
{
    if (at < ahead->count) return ahead->codes + plane_tile(ahead->tiles, at) * ahead->tile_bytes;
    if (ahead->soon == NULL) return ahead->codes;
    return ahead->soon + (at - ahead->count) * ahead->tile_bytes;
}

static inline void ahead_touch(const struct ahead *ahead, size_t at)
{
    __builtin_prefetch(ahead_tile(ahead, at), 0, 3);
}

/* Lines to ask for while the `at`-th tile is read. Its touch is made here. */
static inline const uint8_t *ahead_next(const struct ahead *ahead, size_t at)
{
    ahead_touch(ahead, at + ahead->pages);
    return ahead_tile(ahead, at + ahead->lines);
}

static inline size_t ahead_tiles(size_t bytes, size_t tile_bytes, size_t least, size_t most)
{
    size_t tiles = bytes / tile_bytes;
    if (tiles > most) return most;
    return tiles < least ? least : tiles;
}

/* `batch` tiles are read side by side: lines are asked for that far ahead at least. Nobody knew of
 * a list before: its first tiles are asked for at once, their pages first, and all its scales.
 * Planes that are read whole are `soon` of what was read before. */
static inline void ahead_begin(struct ahead *ahead, size_t batch)
{
    ahead->lines = ahead_tiles(AHEAD_BYTES, ahead->tile_bytes, batch, AHEAD_TILES_MAX);
    ahead->pages = ahead_tiles(AHEAD_TOUCH_BYTES, ahead->tile_bytes, 2 * ahead->lines,
                               2 * AHEAD_TILES_MAX);
    if (ahead->tiles == NULL) return;
    size_t known = ahead->soon == NULL ? ahead->count : SIZE_MAX;
    for (size_t at = 0; at < ahead->pages && at < known; at++) ahead_touch(ahead, at);
    for (size_t at = 0; at < ahead->count; at++)
        __builtin_prefetch(ahead->scale + ahead->tiles[at] * PLANE_TILE, 0, 3);
    for (size_t at = 0; at < ahead->lines && at < ahead->count; at++)
        for (size_t byte = 0; byte < ahead->tile_bytes; byte += AHEAD_LINE_BYTES)
            __builtin_prefetch(ahead_tile(ahead, at) + byte, 0, 2);
}

#endif
