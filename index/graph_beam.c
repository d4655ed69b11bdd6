/* SPDX-License-Identifier: Apache-2.0 */
/* graph_beam.c — expand the best node, score its unseen links together, insert them.
 *
 * Nodes that are not wanted (a later query's rows, sinks) are expanded like others, since the way
 * to wanted ones may lead through them; they make the list longer instead of taking places in it.
 *
 * Rejected: two heaps (hnswlib): lists are a few hundred long and one sorted array is both, and
 * what the pruning of a build needs.
 */
#include "index/graph_beam.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"

bool graph_beam_init(struct graph_beam *ret_beam, const struct graph_rows *rows, uint32_t nodes,
                     size_t width, struct arena *arena)
{
    size_t room = width < nodes ? width : nodes;
    *ret_beam = (struct graph_beam){
        .room = room + 1,
        .items = arena_alloc(arena, (room + 1) * sizeof(struct graph_item)),
        .visited = arena_alloc(arena, (nodes / 64 + 1) * sizeof(uint64_t)),
        .fresh = arena_alloc(arena, GRAPH_LINKS_MAX * sizeof(uint32_t)),
        .keys = arena_alloc_aligned(arena, GRAPH_LINKS_MAX * graph_rows_key_bytes(rows), 64),
        .scores = arena_alloc(arena, GRAPH_LINKS_MAX * sizeof(float)),
    };
    return ret_beam->items != NULL && ret_beam->visited != NULL && ret_beam->fresh != NULL &&
           ret_beam->keys != NULL && ret_beam->scores != NULL;
}

static bool wanted(const struct graph_query *query, uint32_t id)
{
    return id >= query->low && id < query->high;
}

/* May the last node of the list be forgotten? */
static bool too_far(const struct graph_beam *beam, const struct graph_query *query, float best)
{
    if (beam->count <= query->width + beam->passing) return beam->count == beam->room;
    if (beam->count == beam->room || query->band <= 0.0F) return true;
    return beam->items[beam->count - 1].score < best - query->band;
}

static void insert(struct graph_beam *beam, float score, uint32_t id)
{
    size_t low = 0, high = beam->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct graph_item *item = &beam->items[middle];
        if (item->score > score || (item->score == score && item->id < id))
            low = middle + 1;
        else
            high = middle;
    }
    memmove(beam->items + low + 1, beam->items + low,
            (beam->count - low) * sizeof *beam->items);
    beam->items[low] = (struct graph_item){ .score = score, .id = id };
    beam->count++;
    if (low < beam->next) beam->next = low;
}

static float offer(struct graph_beam *beam, const struct graph_query *query, float score,
                   uint32_t id, float best)
{
    bool passing = !wanted(query, id);
    if (!passing && score > best) best = score;
    insert(beam, score, id);
    if (passing) beam->passing++;
    while (beam->count > 0 && too_far(beam, query, best)) {
        beam->count--;
        if (!wanted(query, beam->items[beam->count].id)) beam->passing--;
    }
    return best;
}

/* Score nodes that were not visited yet and offer them. */
static float visit(struct graph_beam *beam, const struct graph_query *query, const uint32_t *ids,
                   size_t count, float best)
{
    size_t fresh = 0;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] == query->except || graph_bit(beam->visited, ids[i])) continue;
        graph_bit_set(beam->visited, ids[i]);
        beam->fresh[fresh++] = ids[i];
    }
    if (fresh == 0) return best;
    graph_rows_keys(query->rows, beam->fresh, fresh, beam->keys);
    backend_get()->score(&(struct score_args){
        .q = query->q, .queries = 1, .head_dim = query->rows->all.head_dim, .k = beam->keys,
        .k_stride_bytes = graph_rows_key_bytes(query->rows), .tokens = fresh,
        .dtype = query->rows->key_dtype, .scores = beam->scores });
    beam->keys_read += fresh;
    for (size_t i = 0; i < fresh; i++)
        best = offer(beam, query, beam->scores[i], beam->fresh[i], best);
    return best;
}

float graph_beam_search(struct graph_beam *beam, const struct graph_query *query)
{
    const struct graph_links *links = query->links;
    assert(query->width > 0 && links->entry < links->nodes);
    memset(beam->visited, 0, (links->nodes / 64 + 1) * sizeof *beam->visited);
    beam->count = beam->next = beam->passing = 0;
    struct graph_query start = *query;
    start.except = GRAPH_NONE; /* a search for the entry's own links begins there too */
    float best = visit(beam, &start, &links->entry, 1, query->best);
    while (beam->next < beam->count) {
        struct graph_item *item = &beam->items[beam->next++];
        if (item->expanded) continue;
        item->expanded = true;
        uint32_t id = item->id;
        beam->edges_read += links->count[id];
        best = visit(beam, query, links->edges + links->begin[id], links->count[id], best);
    }
    return best;
}
