/* SPDX-License-Identifier: Apache-2.0 */
/* topk.c — sift down, and a heapsort in place: because the worst is at the root, taking roots off
 * one after the other leaves the best first. */
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
