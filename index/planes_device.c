/* SPDX-License-Identifier: Apache-2.0 */
/* planes_device.c — slots that change hands, and memory that is there for good. */
#include "index/planes_device.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/error.h"
#include "index/kernels/planes_launch.h"
#include "index/planes.h"
#include "index/rotation.h"

enum { SIGNS_BYTES = 256 };

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

/* ---- memory ---- */

static void free_device(struct accelerator *accelerator)
{
    struct planes_device *on = accelerator->planes;
    const struct device_table *table = accelerator->table;
    void *device[] = { on->scores, on->square, on->thresholds, on->total_o, on->total_lse,
                       on->levels, on->signs, on->histogram, on->lo_runs };
    void *host[] = { on->picked, on->exact_ids, on->exact_positions, on->left, on->pool_lse,
                     on->listed, on->runs };
    planes_cache_fini(&on->cache, accelerator);
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++)
        if (device[i] != NULL) table->free(accelerator->device, device[i]);
    for (size_t i = 0; i < sizeof host / sizeof host[0]; i++)
        if (host[i] != NULL) table->free_host(accelerator->device, host[i]);
    free(on);
    accelerator->planes = NULL;
}

static int allocate(struct accelerator *accelerator, struct planes_device *on, struct error *err)
{
    const struct device_table *table = accelerator->table;
    const size_t runs = PLANES_RUNS_MAX, rows = PLANES_QUERY_ROWS_MAX;
    struct {
        void **at;
        size_t bytes;
        bool host;
    } wanted[] = {
        { (void **)&on->scores, runs * LAUNCH_QUERIES * PLANES_TOKENS * sizeof(float), false },
        { (void **)&on->square, runs * LAUNCH_QUERIES * sizeof(float), false },
        { (void **)&on->thresholds, rows * 2 * sizeof(float), false },
        { (void **)&on->total_o, rows * LAUNCH_HEAD_DIM * sizeof(float), false },
        { (void **)&on->total_lse, rows * sizeof(float), false },
        { (void **)&on->levels, runs * PLANES_TOKENS, false },
        { (void **)&on->signs, SIGNS_BYTES, false },
        { (void **)&on->histogram, rows * PLANES_BINS * sizeof *on->histogram, false },
        { (void **)&on->lo_runs, runs * sizeof *on->lo_runs, false },
        { (void **)&on->picked, runs * sizeof *on->picked, true },
        { (void **)&on->exact_ids, runs * PLANES_TOKENS * sizeof *on->exact_ids, true },
        { (void **)&on->exact_positions, runs * PLANES_TOKENS * sizeof(uint64_t), true },
        { (void **)&on->left, runs * LAUNCH_QUERIES * sizeof(float), true },
        { (void **)&on->pool_lse, STEP_POOL_ROWS_MAX * sizeof(float), true },
        { (void **)&on->listed, runs * sizeof *on->listed, true },
        { (void **)&on->runs, runs * sizeof *on->runs, true },
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof wanted / sizeof wanted[0]; i++)
        rc = (wanted[i].host ? table->alloc_host : table->alloc)(
            accelerator->device, wanted[i].bytes, wanted[i].at, err);
    return rc;
}

bool planes_device_open(struct accelerator *accelerator)
{
    struct error err = { 0 };
    if (accelerator->planes != NULL) return true;
    struct planes_device *on = calloc(1, sizeof *on);
    if (on == NULL) return false;
    planes_cache_init(&on->cache);
    accelerator->planes = on;
    accelerator->free_planes = free_device;
    int rc = allocate(accelerator, on, &err);
    unsigned char *signs = rc < 0 ? NULL : accelerator_stage(accelerator, SIGNS_BYTES);
    if (signs != NULL) {
        memcpy(signs, rotation_signs(0), SIGNS_BYTES / 2);
        memcpy(signs + SIGNS_BYTES / 2, rotation_signs(1), SIGNS_BYTES / 2);
        rc = accelerator->table->copy(accelerator->device, DEVICE_COMPUTE, on->signs, signs,
                                      SIGNS_BYTES);
    }
    if (rc == 0 && signs != NULL) return true;
    if (rc < 0) accelerator_failed(accelerator, rc, err.text);
    free_device(accelerator);
    return false;
}
