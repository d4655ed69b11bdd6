/* SPDX-License-Identifier: Apache-2.0 */
/* map.c — linear probing with backward-shift deletion: no tombstones, so lookups never degrade. */
#include "base/map.h"

#include <assert.h>
#include <stdlib.h>

#include "base/error.h"

struct map_slot {
    uint64_t key;
    void *value; /* NULL: free */
};

enum { SLOTS_FIRST = 16 };

static size_t home(uint64_t key, size_t slot_count)
{
    key ^= key >> 33; /* finaliser of MurmurHash3: ids are consecutive numbers */
    key *= 0xFF51AFD7ED558CCDU;
    key ^= key >> 33;
    key *= 0xC4CEB9FE1A85EC53U;
    key ^= key >> 33;
    return (size_t)key & (slot_count - 1);
}

/* The slot of `key`, or the free one where it would go. There always is a free one. */
static struct map_slot *probe(struct map_slot *slots, size_t slot_count, uint64_t key)
{
    size_t at = home(key, slot_count);
    while (slots[at].value != NULL && slots[at].key != key) at = (at + 1) & (slot_count - 1);
    return &slots[at];
}

void map_fini(struct map *map)
{
    free(map->slots);
    *map = (struct map){ 0 };
}

void *map_get(const struct map *map, uint64_t key)
{
    if (map->slot_count == 0) return NULL;
    return probe(map->slots, map->slot_count, key)->value;
}

static int grow(struct map *map)
{
    size_t slot_count = map->slot_count == 0 ? SLOTS_FIRST : map->slot_count * 2;
    struct map_slot *slots = calloc(slot_count, sizeof *slots);
    if (slots == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < map->slot_count; i++) {
        if (map->slots[i].value != NULL)
            *probe(slots, slot_count, map->slots[i].key) = map->slots[i];
    }
    free(map->slots);
    map->slots = slots;
    map->slot_count = slot_count;
    return 0;
}

int map_put(struct map *map, uint64_t key, void *value)
{
    assert(value != NULL);
    if ((map->count + 1) * 10 > map->slot_count * 7) {
        int rc = grow(map);
        if (rc < 0) return rc;
    }
    struct map_slot *slot = probe(map->slots, map->slot_count, key);
    if (slot->value == NULL) map->count++;
    *slot = (struct map_slot){ .key = key, .value = value };
    return 0;
}

void *map_remove(struct map *map, uint64_t key)
{
    if (map->slot_count == 0) return NULL;
    struct map_slot *hole = probe(map->slots, map->slot_count, key);
    void *value = hole->value;
    if (value == NULL) return NULL;
    size_t mask = map->slot_count - 1;
    size_t hole_at = (size_t)(hole - map->slots);
    for (size_t at = (hole_at + 1) & mask; map->slots[at].value != NULL; at = (at + 1) & mask) {
        size_t wish = home(map->slots[at].key, map->slot_count);
        /* would move before its home */
        if (((at - wish) & mask) < ((at - hole_at) & mask)) continue;
        map->slots[hole_at] = map->slots[at];
        hole_at = at;
    }
    map->slots[hole_at].value = NULL;
    map->count--;
    return value;
}

void *map_next(const struct map *map, size_t *cursor)
{
    while (*cursor < map->slot_count) {
        void *value = map->slots[(*cursor)++].value;
        if (value != NULL) return value;
    }
    return NULL;
}
