/* SPDX-License-Identifier: Apache-2.0 */
/* build_tables.c — centroids of a long layer's segments side by side in memory, so that a query
 * reads them in one go (index/centroid_table.h, docs/decisions/0047).
 *
 * A table is made of planes that are in use, so the builder comes to it last: after a restart the
 * first queries read centroids where the planes lie, as they do of layers that are too short. An
 * entry is written before anybody can see it, and its place is used again only when the planes
 * before it were taken away, for which no query may run; so tables need no lock.
 *
 * Tables count as states (catalog->state_bytes), and take half of what may be resident at most:
 * what is not copied is slower, not wrong.
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "index/centroid_table.h"
#include "memory/build.h"
#include "memory/derived.h"

void tables_free(struct context *context, struct layer *layer)
{
    for (size_t i = 0; i < layer->table_count; i++) {
        if (layer->tables[i] == NULL) continue;
        atomic_fetch_sub(&context->catalog->state_bytes, centroid_table_bytes(layer->tables[i]));
        centroid_table_free(layer->tables[i]);
    }
    free(layer->tables);
    layer->tables = NULL;
    layer->table_count = 0;
}

static bool grow_tables(struct layer *layer, size_t count)
{
    if (count <= layer->table_count) return true;
    struct centroid_table **tables = realloc(layer->tables, count * sizeof(void *));
    if (tables == NULL) return false;
    memset(tables + layer->table_count, 0, (count - layer->table_count) * sizeof(void *));
    layer->tables = tables;
    layer->table_count = count;
    return true;
}

/* The table of slot `idx`; NULL = no room. */
static struct centroid_table *table_of(struct context *context, struct layer *layer, size_t idx)
{
    struct catalog *catalog = context->catalog;
    size_t at = idx / TABLE_SEGMENTS;
    if (!grow_tables(layer, at + 1) || layer->tables[at] != NULL)
        return at < layer->table_count ? layer->tables[at] : NULL;
    struct centroid_table *table = centroid_table_new(context->shape.head_dim,
                                                      context->shape.heads);
    if (table == NULL) return NULL;
    uint64_t bytes = centroid_table_bytes(table);
    if (atomic_load(&catalog->state_bytes) + bytes > catalog->resident_bytes_max / 2) {
        centroid_table_free(table);
        return NULL;
    }
    atomic_fetch_add(&catalog->state_bytes, bytes);
    return layer->tables[at] = table;
}

/* Planes of slot `idx` that are in use and stand in no table, or NULL. */
static const struct derived_planes *untabled(struct context *context, const struct layer *layer,
                                             size_t idx)
{
    pthread_mutex_lock(&context->lock);
    const struct slot *slot = idx < layer->slot_count ? &layer->slots[idx] : NULL;
    const struct derived_planes *planes =
        slot != NULL && slot->tabled == NULL ? slot->planes : NULL;
    pthread_mutex_unlock(&context->lock);
    return planes;
}

/* With use held shared. False when there is no room. */
static bool table_slot(struct context *context, struct layer *layer, size_t idx)
{
    const struct derived_planes *planes = untabled(context, layer, idx);
    if (planes == NULL) return true;
    struct centroid_table *table = table_of(context, layer, idx);
    CLEANUP(free_ptr) struct planes *tabled = calloc(context->shape.heads, sizeof *tabled);
    if (table == NULL || tabled == NULL) return false;
    for (uint32_t head = 0; head < context->shape.heads; head++) {
        tabled[head] = planes[head].planes;
        centroid_table_put(table, head, idx % TABLE_SEGMENTS, &tabled[head]);
    }
    pthread_mutex_lock(&context->lock);
    layer->slots[idx].tabled = TAKE(tabled);
    pthread_mutex_unlock(&context->lock);
    return true;
}

/* Slots of the layer with planes, and slots of the layer. */
static size_t count_planes(struct context *context, const struct layer *layer, size_t *ret_slots)
{
    size_t count = 0;
    pthread_mutex_lock(&context->lock);
    for (size_t i = 0; i < layer->slot_count; i++) count += layer->slots[i].planes != NULL;
    *ret_slots = layer->slot_count;
    pthread_mutex_unlock(&context->lock);
    return count;
}

/* The newest slots first: a table takes the space of the first one, which should have seen many
 * queries. One slot at a time holds `use`. False when the pass is over. */
static bool table_layer(struct build *build, struct layer *layer)
{
    struct context *context = build->context;
    size_t slots = 0;
    bool room = true;
    if (count_planes(context, layer, &slots) < TABLE_FROM) return true;
    for (size_t idx = slots; room && idx-- > 0;) {
        if (build_must_yield(build)) {
            build->again = true;
            return false;
        }
        pthread_rwlock_rdlock(&context->use);
        room = table_slot(context, layer, idx);
        pthread_rwlock_unlock(&context->use);
    }
    return room;
}

void build_tables(struct build *build)
{
    struct context *context = build->context;
    for (uint32_t i = 0; i < context->record->model.layers; i++)
        if (!table_layer(build, &context->layers[i])) return;
}
