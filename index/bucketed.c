/* SPDX-License-Identifier: Apache-2.0 */
/* bucketed.c — consecutive entries lie in consecutive buckets, so a run of scores is laid over the
 * winners and compared place by place. */
#include "index/bucketed.h"

#include <assert.h>
#include <math.h>

#include "index/index.h"
#include "index/topk.h"

void bucketed_clear(const struct bucketed *bucketed)
{
    for (size_t i = 0; i < bucketed->buckets; i++) {
        bucketed->ids[i] = INDEX_NONE;
        bucketed->scores[i] = -INFINITY;
    }
}

/* scores (count) of entries from `first` on, the first of which lies in bucket `at`. */
static void lay_over(const struct bucketed *bucketed, size_t at, const float *scores, size_t count,
                     uint64_t first)
{
    uint64_t *ids = bucketed->ids + at;
    float *best = bucketed->scores + at;
    for (size_t i = 0; i < count; i++) {
        if (!topk_worse(best[i], ids[i], scores[i], first + i)) continue;
        best[i] = scores[i];
        ids[i] = first + i;
    }
}

void bucketed_offer(const struct bucketed *bucketed, const float *scores, size_t count,
                    uint64_t first)
{
    size_t at = (size_t)(first % bucketed->buckets);
    while (count > 0) {
        size_t some = bucketed->buckets - at < count ? bucketed->buckets - at : count;
        lay_over(bucketed, at, scores, some, first);
        scores += some;
        first += some;
        count -= some;
        at = 0;
    }
}

void bucketed_best(const struct bucketed *bucketed, const struct topk *top)
{
    topk_clear(top);
    for (size_t i = 0; i < bucketed->buckets; i++)
        topk_offer(top, bucketed->scores[i], bucketed->ids[i]);
    topk_sort(top);
}

void bucketed_neighbours(uint64_t hit, size_t width, uint64_t entries, uint64_t *ret_ids)
{
    assert(hit < entries && (width == 1 || (width > 0 && width % 2 == 0)));
    uint64_t back = width == 1 ? 0 : width / 2 - 1; /* offsets -back … width-1-back */
    for (uint64_t i = 0; i < width; i++) {
        uint64_t id = hit + i < back ? 0 : hit + i - back;
        ret_ids[i] = id < entries ? id : entries - 1;
    }
}
