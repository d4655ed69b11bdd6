/* SPDX-License-Identifier: Apache-2.0 */
/* graph_prune.c — the rule of graph_prune.h, turned inside out: when a link is taken, its scores to
 * all later candidates are computed in one call, and each candidate remembers the largest. That is
 * the same comparisons as "every candidate against all links so far", as products of one vector
 * with a tile of keys. */
#include "index/graph_prune.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "attention/backend.h"
#include "base/arena.h"

bool graph_pruner_init(struct graph_pruner *ret_pruner, const struct graph_rows *rows, size_t room,
                       struct arena *arena)
{
    size_t head_bytes = rows->all.head_dim * sizeof(float);
    *ret_pruner = (struct graph_pruner){
        .rows = rows, .room = room,
        .items = arena_alloc(arena, room * sizeof(struct graph_item)),
        .key = arena_alloc_aligned(arena, head_bytes, 64),
        .other = arena_alloc_aligned(arena, head_bytes, 64),
        .keys = arena_alloc_aligned(arena, GRAPH_CANDIDATES * graph_rows_key_bytes(rows), 64),
        .ids = arena_alloc(arena, GRAPH_CANDIDATES * sizeof(uint32_t)),
        .scores = arena_alloc(arena, GRAPH_CANDIDATES * sizeof(float)),
        .cover = arena_alloc(arena, GRAPH_CANDIDATES * sizeof(float)),
    };
    return ret_pruner->items != NULL && ret_pruner->key != NULL && ret_pruner->other != NULL &&
           ret_pruner->keys != NULL && ret_pruner->ids != NULL && ret_pruner->scores != NULL &&
           ret_pruner->cover != NULL;
}

/* keys begin … begin + count - 1 of the tile against q -> scores */
static void score(const struct graph_pruner *pruner, const float *q, size_t begin, size_t count)
{
    size_t bytes = graph_rows_key_bytes(pruner->rows);
    if (count == 0) return;
    backend_get()->score(&(struct score_args){
        .q = q, .queries = 1, .head_dim = pruner->rows->all.head_dim,
        .k = (const unsigned char *)pruner->keys + begin * bytes, .k_stride_bytes = bytes,
        .tokens = count, .dtype = pruner->rows->key_dtype, .scores = pruner->scores + begin });
}

void graph_pruner_load(struct graph_pruner *pruner, uint32_t node, const uint32_t *ids,
                       size_t count)
{
    assert(count <= pruner->room);
    graph_rows_key(pruner->rows, node, pruner->key);
    for (size_t begin = 0; begin < count; begin += GRAPH_CANDIDATES) {
        size_t part = count - begin < GRAPH_CANDIDATES ? count - begin : GRAPH_CANDIDATES;
        graph_rows_keys(pruner->rows, ids + begin, part, pruner->keys);
        score(pruner, pruner->key, 0, part);
        for (size_t i = 0; i < part; i++)
            pruner->items[begin + i] =
                (struct graph_item){ .score = pruner->scores[i], .id = ids[begin + i] };
    }
    pruner->count = count;
}

static int nearest_first(const void *a, const void *b)
{
    const struct graph_item *left = a, *right = b;
    if (left->score != right->score) return left->score > right->score ? -1 : 1;
    return left->id < right->id ? -1 : left->id > right->id;
}

size_t graph_prune(struct graph_pruner *pruner, size_t limit, bool fill, uint32_t *ret_ids)
{
    struct graph_item *items = pruner->items;
    qsort(items, pruner->count, sizeof *items, nearest_first);
    size_t count = pruner->count < GRAPH_CANDIDATES ? pruner->count : GRAPH_CANDIDATES;
    for (size_t i = 0; i < count; i++) {
        pruner->ids[i] = items[i].id;
        pruner->cover[i] = -INFINITY;
    }
    graph_rows_keys(pruner->rows, pruner->ids, count, pruner->keys);
    size_t taken = 0;
    for (size_t i = 0; i < count && taken < limit; i++) {
        items[i].expanded = pruner->cover[i] <= items[i].score;
        if (!items[i].expanded) continue;
        ret_ids[taken++] = items[i].id;
        graph_rows_key(pruner->rows, items[i].id, pruner->other);
        score(pruner, pruner->other, i + 1, count - i - 1);
        for (size_t j = i + 1; j < count; j++)
            if (pruner->scores[j] > pruner->cover[j]) pruner->cover[j] = pruner->scores[j];
    }
    for (size_t i = 0; fill && i < count && taken < limit; i++)
        if (!items[i].expanded) ret_ids[taken++] = items[i].id;
    return taken;
}
