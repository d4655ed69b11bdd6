/* SPDX-License-Identifier: Apache-2.0 */
/* graph_prune.c — the rule of graph_prune.h, for no more candidates than it takes: often the first
 * few dozen of hundreds are links already, and the limit is reached.
 *
 * Candidates therefore come from a heap, and their keys are fetched in blocks. A block is scored
 * against all links at once, as one small product of matrices; a link that comes out of the block
 * itself is scored against the rest of the block.
 *
 * Rejected: scoring each new link against all candidates behind it (a product of one vector with
 * hundreds of keys, most of which were never looked at: four fifths of a build), and sorting.
 */
#include "index/graph_prune.h"

#include <assert.h>
#include <math.h>

#include "attention/backend.h"
#include "base/arena.h"

enum { BLOCK = 32 }; /* candidates looked at together */

bool graph_pruner_init(struct graph_pruner *ret_pruner, const struct graph_rows *rows, size_t room,
                       struct arena *arena)
{
    size_t head_bytes = rows->all.head_dim * sizeof(float);
    size_t scores = (size_t)BLOCK * GRAPH_LINKS_MAX;
    if (scores < GRAPH_CANDIDATES) scores = GRAPH_CANDIDATES;
    *ret_pruner = (struct graph_pruner){
        .rows = rows,
        .room = room,
        .items = arena_alloc(arena, room * sizeof(struct graph_item)),
        .key = arena_alloc_aligned(arena, head_bytes, 64),
        .keys = arena_alloc_aligned(arena, GRAPH_CANDIDATES * graph_rows_key_bytes(rows), 64),
        .links = arena_alloc_aligned(arena, GRAPH_LINKS_MAX * head_bytes, 64),
        .ids = arena_alloc(arena, GRAPH_CANDIDATES * sizeof(uint32_t)),
        .taken = arena_alloc(arena, GRAPH_CANDIDATES * sizeof(bool)),
        .scores = arena_alloc(arena, scores * sizeof(float)),
    };
    return ret_pruner->items != NULL && ret_pruner->key != NULL && ret_pruner->keys != NULL &&
           ret_pruner->links != NULL && ret_pruner->ids != NULL && ret_pruner->taken != NULL &&
           ret_pruner->scores != NULL;
}

/* q (queries, D) against keys begin … begin + count - 1 of the tile -> scores (queries, count) */
static void score(const struct graph_pruner *pruner, const float *q, size_t queries, size_t begin,
                  size_t count)
{
    size_t bytes = graph_rows_key_bytes(pruner->rows);
    if (count == 0 || queries == 0) return;
    backend_get()->score(
        &(struct score_args){ .q = q,
                              .queries = queries,
                              .head_dim = pruner->rows->all.head_dim,
                              .k = (const unsigned char *)pruner->keys + begin * bytes,
                              .k_stride_bytes = bytes,
                              .tokens = count,
                              .dtype = pruner->rows->key_dtype,
                              .scores = pruner->scores });
}

void graph_pruner_load(struct graph_pruner *pruner, uint32_t node, const uint32_t *ids,
                       size_t count)
{
    assert(count <= pruner->room);
    graph_rows_key(pruner->rows, node, pruner->key);
    for (size_t begin = 0; begin < count; begin += GRAPH_CANDIDATES) {
        size_t part = count - begin < GRAPH_CANDIDATES ? count - begin : GRAPH_CANDIDATES;
        graph_rows_keys(pruner->rows, ids + begin, part, pruner->keys);
        score(pruner, pruner->key, 1, 0, part);
        for (size_t i = 0; i < part; i++)
            pruner->items[begin + i] =
                (struct graph_item){ .score = pruner->scores[i], .id = ids[begin + i] };
    }
    pruner->count = count;
    graph_pruner_order(pruner);
}

/* ---- the heap: the nearest at the root ---- */

static bool is_nearer(const struct graph_item *a, const struct graph_item *b)
{
    return a->score != b->score ? a->score > b->score : a->id < b->id;
}

static void sink(struct graph_pruner *pruner, size_t at, struct graph_item item)
{
    struct graph_item *items = pruner->items;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= pruner->count) break;
        if (child + 1 < pruner->count && is_nearer(&items[child + 1], &items[child])) child++;
        if (!is_nearer(&items[child], &item)) break;
        items[at] = items[child];
        at = child;
    }
    items[at] = item;
}

void graph_pruner_order(struct graph_pruner *pruner)
{
    for (size_t at = pruner->count / 2; at-- > 0;) sink(pruner, at, pruner->items[at]);
}

uint32_t graph_pruner_nearest(const struct graph_pruner *pruner)
{
    return pruner->count == 0 ? GRAPH_NONE : pruner->items[0].id;
}

void graph_pruner_skip(struct graph_pruner *pruner)
{
    assert(pruner->count > 0);
    pruner->count--;
    if (pruner->count > 0) sink(pruner, 0, pruner->items[pruner->count]);
}

/* ---- the rule ---- */

static float larger(float a, float b) /* fmaxf is a call, since it minds NaN */
{
    return a > b ? a : b;
}

/* Candidates begin … begin + count - 1, which are fetched here; own (count): their similarity to
 * the node. Returns how many links there are then. */
static size_t look_at(struct graph_pruner *pruner, size_t begin, size_t count, const float *own,
                      size_t links, size_t limit)
{
    size_t dim = pruner->rows->all.head_dim;
    float cover[BLOCK]; /* similarity to the nearest link */
    for (size_t i = 0; i < count; i++) cover[i] = -INFINITY;
    graph_rows_keys(pruner->rows, pruner->ids + begin, count, pruner->keys);
    score(pruner, pruner->links, links, 0, count);
    for (size_t l = 0; l < links; l++)
        for (size_t i = 0; i < count; i++)
            cover[i] = larger(cover[i], pruner->scores[l * count + i]);
    for (size_t i = 0; i < count && links < limit; i++) {
        pruner->taken[begin + i] = cover[i] <= own[i];
        if (!pruner->taken[begin + i]) continue;
        float *link = pruner->links + links++ * dim;
        graph_rows_key(pruner->rows, pruner->ids[begin + i], link);
        score(pruner, link, 1, i + 1, count - i - 1);
        for (size_t j = i + 1; j < count; j++)
            cover[j] = larger(cover[j], pruner->scores[j - i - 1]);
    }
    return links;
}

size_t graph_prune(struct graph_pruner *pruner, size_t limit, bool fill, uint32_t *ret_ids)
{
    size_t seen = 0, links = 0, count = 0;
    assert(limit <= GRAPH_LINKS_MAX);
    while (pruner->count > 0 && seen < GRAPH_CANDIDATES && links < limit) {
        float own[BLOCK];
        size_t some = 0;
        for (; some < BLOCK && pruner->count > 0; some++) {
            own[some] = pruner->items[0].score;
            pruner->ids[seen + some] = pruner->items[0].id;
            pruner->taken[seen + some] = false;
            graph_pruner_skip(pruner);
        }
        links = look_at(pruner, seen, some, own, links, limit);
        seen += some;
    }
    for (size_t i = 0; i < seen; i++)
        if (pruner->taken[i]) ret_ids[count++] = pruner->ids[i];
    assert(count == links);
    for (size_t i = 0; fill && i < seen && count < limit; i++)
        if (!pruner->taken[i]) ret_ids[count++] = pruner->ids[i];
    pruner->count = 0;
    return count;
}
