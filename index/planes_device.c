/* SPDX-License-Identifier: Apache-2.0 */
/* planes_device.c — slots that change hands. */
#include "index/planes_device.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/error.h"
#include "index/planes.h"

void planes_cache_init(struct planes_cache *cache)
{
    *cache = (struct planes_cache){ .slot_bytes = 0 };
    list_init(&cache->lru);
    list_init(&cache->empty);
}

void planes_cache_fini(struct planes_cache *cache, struct accelerator *accelerator)
{
    for (size_t i = 0; i < cache->slab_count; i++) {
        accelerator->table->free(accelerator->device, cache->slabs[i]->memory);
        free(cache->slabs[i]);
    }
    map_fini(&cache->by_key);
}

/* Of 192 checksums; 0 where there are none. Multiplied and added in order, modulo 2^64. */
static uint64_t key_of(const struct planes *planes)
{
    uint64_t key = 0, any = 0;
    for (size_t i = 0; i < (size_t)3 * PLANES_CLUSTERS; i++) {
        any |= planes->checks[i];
        key = (key ^ planes->checks[i]) * UINT64_C(0x9E3779B97F4A7C15);
        key ^= key >> 29;
    }
    return any == 0 ? 0 : key | 1;
}

static bool add_slab(struct planes_cache *cache, struct accelerator *accelerator)
{
    size_t bytes = cache->slot_bytes * PLANES_SLAB_SLOTS;
    struct error err = { 0 };
    void *memory = NULL;
    if (cache->slab_count == PLANES_SLABS_MAX ||
        (cache->slab_count + 1) * bytes > accelerator->config.planes_bytes)
        return false;
    size_t at = cache->slab_count;
    cache->slabs[at] = calloc(1, sizeof *cache->slabs[at]);
    if (cache->slabs[at] == NULL) return false;
    int rc = accelerator->table->alloc(accelerator->device, bytes, &memory, &err);
    if (rc < 0) {
        free(cache->slabs[at]);
        accelerator_failed(accelerator, rc, err.text);
        return false;
    }
    cache->slabs[at]->memory = memory;
    for (size_t i = 0; i < PLANES_SLAB_SLOTS; i++) {
        struct planes_slot *slot = &cache->slabs[at]->slots[i];
        slot->at = (unsigned char *)memory + i * cache->slot_bytes;
        list_append(&cache->empty, &slot->link);
    }
    cache->slab_count++;
    return true;
}

/* A slot that may be written, in no list: an empty one, or the least recently used. */
static struct planes_slot *take_slot(struct planes_cache *cache, struct accelerator *accelerator)
{
    struct list_link *link = list_take_first(&cache->empty);
    if (link == NULL && add_slab(cache, accelerator)) link = list_take_first(&cache->empty);
    if (link != NULL) return LIST_ENTRY(link, struct planes_slot, link);
    if (list_empty(&cache->lru)) return NULL;
    struct planes_slot *oldest = LIST_ENTRY(cache->lru.next, struct planes_slot, link);
    if (oldest->asking == cache->asking) return NULL;
    list_remove(&oldest->link);
    map_remove(&cache->by_key, oldest->key);
    ACCELERATOR_COUNT(accelerator, demoted_total, 1);
    return oldest;
}

static void use(struct planes_cache *cache, struct planes_slot *slot)
{
    slot->asking = cache->asking;
    list_remove(&slot->link);
    list_append(&cache->lru, &slot->link);
}

/* Queue the payload's way into the slot. */
static bool send(struct accelerator *accelerator, const struct planes_layout *layout,
                 const struct planes *planes, struct planes_slot *slot)
{
    void *staged = accelerator_stage(accelerator, layout->hi_bytes);
    if (staged == NULL) return false;
    /* The payload begins where its balance does, less the head. */
    memcpy(staged, (const unsigned char *)(const void *)planes->balance - layout->balance,
           layout->hi_bytes);
    int rc = accelerator->table->copy(accelerator->device, DEVICE_COMPUTE, slot->at, staged,
                                      layout->hi_bytes);
    if (rc < 0) accelerator_failed(accelerator, rc, "planes could not be sent");
    ACCELERATOR_COUNT(accelerator, planes_sent_bytes_total, layout->hi_bytes);
    return rc == 0;
}

const unsigned char *planes_cache_get(struct planes_cache *cache, struct accelerator *accelerator,
                                      const struct planes_layout *layout,
                                      const struct planes *planes)
{
    uint64_t key = key_of(planes);
    if (key == 0) return NULL;
    struct planes_slot *slot = map_get(&cache->by_key, key);
    if (slot != NULL) {
        use(cache, slot);
        return slot->at;
    }
    if (cache->slot_bytes == 0) cache->slot_bytes = layout->hi_bytes;
    if (layout->hi_bytes > cache->slot_bytes) return NULL; /* of a model with larger heads */
    slot = take_slot(cache, accelerator);
    if (slot == NULL) return NULL;
    if (!send(accelerator, layout, planes, slot) || map_put(&cache->by_key, key, slot) < 0) {
        list_append(&cache->empty, &slot->link);
        return NULL;
    }
    slot->key = key;
    use(cache, slot);
    return slot->at;
}
