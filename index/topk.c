/* SPDX-License-Identifier: Apache-2.0 */
/* topk.c — sift down, and a heapsort in place: because the worst is at the root, taking roots off
 * one after the other leaves the best first. Where a large share of all is wanted, a heap costs
 * more than what it selects for: quickselect, with the median of three as its pivot. */
#include "index/topk.h"

#include <math.h>

#include "index/index.h"

void topk_clear(const struct topk *top)
{
    for (size_t i = 0; i < top->k; i++) {
        top->ids[i] = INDEX_NONE;
        top->scores[i] = -INFINITY;
    }
}

/* Put (score, id) into the hole at the root of a heap of `count` and let it sink. */
static void sink(const struct topk *top, size_t count, float score, uint64_t id)
{
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && topk_worse(top->scores[child + 1], top->ids[child + 1],
                                            top->scores[child], top->ids[child]))
            child++;
        if (!topk_worse(top->scores[child], top->ids[child], score, id)) break;
        top->scores[at] = top->scores[child];
        top->ids[at] = top->ids[child];
        at = child;
    }
    top->scores[at] = score;
    top->ids[at] = id;
}

void topk_replace(const struct topk *top, float score, uint64_t id)
{
    sink(top, top->k, score, id);
}

void topk_sort(const struct topk *top)
{
    for (size_t last = top->k - 1; last > 0; last--) {
        float score = top->scores[last];
        uint64_t id = top->ids[last];
        top->scores[last] = top->scores[0];
        top->ids[last] = top->ids[0];
        sink(top, last, score, id);
    }
}

static void swap(const struct topk *all, size_t a, size_t b)
{
    uint64_t id = all->ids[a];
    float score = all->scores[a];
    all->ids[a] = all->ids[b];
    all->scores[a] = all->scores[b];
    all->ids[b] = id;
    all->scores[b] = score;
}

static bool better_at(const struct topk *all, size_t a, size_t b)
{
    return topk_worse(all->scores[b], all->ids[b], all->scores[a], all->ids[a]);
}

/* Entries begin … end-1 (three at least): those better than a pivot to the front. Returns its
 * place. */
static size_t divide(const struct topk *all, size_t begin, size_t end)
{
    size_t middle = begin + (end - begin) / 2, last = end - 1, place = begin;
    if (better_at(all, middle, begin)) swap(all, middle, begin);
    if (better_at(all, last, begin)) swap(all, last, begin);
    if (better_at(all, middle, last)) swap(all, middle, last); /* the median stands last */
    for (size_t i = begin; i < last; i++)
        if (better_at(all, i, last)) swap(all, i, place++);
    swap(all, place, last);
    return place;
}

void topk_select(const struct topk *all, size_t count)
{
    size_t begin = 0, end = all->k;
    while (count > begin && count < end && end - begin > 2) {
        size_t place = divide(all, begin, end);
        if (place + 1 == count || place == count) return;
        if (place < count) begin = place + 1;
        else end = place;
    }
    if (count == begin + 1 && end == begin + 2 && better_at(all, begin + 1, begin))
        swap(all, begin, begin + 1);
}
