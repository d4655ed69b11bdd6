/* SPDX-License-Identifier: Apache-2.0 */
/* map.h — hash map from u64 to pointer: open addressing, linear probing, grown at 70 %.
 *
 * For live objects by number (open contexts by id, requests by id). Names go through LMDB, not
 * through here. Pointers are borrowed. Not thread-safe: the owner locks.
 * Errors   MEMD_ENOMEM from map_put; nothing else can fail.
 */
#ifndef MEMD_BASE_MAP_H
#define MEMD_BASE_MAP_H

#include <stddef.h>
#include <stdint.h>

struct map_slot;

struct map {
    struct map_slot *slots;
    size_t slot_count; /* power of two, or 0 */
    size_t count;      /* live entries */
};

void map_fini(struct map *map);
/* NULL when absent. */
void *map_get(const struct map *map, uint64_t key);
/* Insert or replace; `value` is not NULL. */
int map_put(struct map *map, uint64_t key, void *value);
/* The removed pointer, or NULL. */
void *map_remove(struct map *map, uint64_t key);
/* Entries in slot order: start with *cursor = 0; NULL at the end. No change of the map in
 * between. */
void *map_next(const struct map *map, size_t *cursor);

#endif
