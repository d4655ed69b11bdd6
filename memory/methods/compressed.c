/* SPDX-License-Identifier: Apache-2.0 */
/* compressed.c — lists of ids into pick; runs of them are read as ranges, since pooled choices keep
 * neighbours together. */
#include "memory/methods/compressed.h"

#include <assert.h>

#include "index/cut.h"
#include "index/pick.h"

enum { RANGE_MIN = 16 }; /* consecutive rows that are worth a call */

uint64_t *compressed_keep(const float *scores, size_t n, size_t k, uint64_t *ret_ids)
{
    struct cut cut = cut_largest(scores, n, k);
    for (size_t i = 0; i < n; i++)
        if (cut_takes(&cut, scores[i])) *ret_ids++ = i;
    return ret_ids;
}

/* Ids of a head that lie below the limit. */
static size_t below(const uint64_t *ids, size_t count, uint64_t limit)
{
    size_t begin = 0;
    while (begin < count) {
        size_t middle = begin + (count - begin) / 2;
        if (ids[middle] < limit) begin = middle + 1;
        else count = middle;
    }
    return begin;
}

/* ids (count) ascending, for one head of the group or PICK_GROUP */
static void read_ids(struct pick *pick, size_t head, const uint64_t *ids, size_t count)
{
    size_t listed = 0, at = 0;
    while (at < count) {
        size_t end = at + 1;
        while (end < count && ids[end] == ids[end - 1] + 1) end++;
        if (end - at >= RANGE_MIN) {
            pick_list(pick, head, ids + listed, at - listed);
            pick_span(pick, head, ids[at], ids[end - 1] + 1);
            listed = end;
        }
        at = end;
    }
    pick_list(pick, head, ids + listed, count - listed);
}

/* Head `kept` of the selection, for `head` of the group or PICK_GROUP. */
static void read_kept(struct pick *pick, const struct selection *selection, size_t kept,
                      size_t head)
{
    const uint64_t *ids = selection->ids + selection->first[kept];
    size_t all = (size_t)(selection->first[kept + 1] - selection->first[kept]);
    size_t count = below(ids, all, pick->limit);
    read_ids(pick, head, ids, count);
    if (count < (pick->limit < selection->tokens ? pick->limit : selection->tokens))
        pick_dropped(pick, head);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const struct selection *selection = pick->call->version;
    size_t heads = pick->call->args->attend.q.shape[1], kv_heads = heads / pick->group;
    if (selection->heads == kv_heads) {
        read_kept(pick, selection, pick->kv_head, PICK_GROUP);
    } else {
        assert(selection->heads == heads);
        for (size_t m = 0; m < pick->group; m++)
            read_kept(pick, selection, pick->kv_head * pick->group + m, m);
    }
    pick_range(pick, selection->tokens, pick->limit);
    return 0;
}

int compressed_pick(const struct reading *reading, struct arena *arena, struct pick_call *ret_call,
                    struct error *err)
{
    (void)arena;
    (void)err;
    if (reading->selection == NULL) return 1;
    ret_call->task = task;
    ret_call->version = reading->selection;
    return 0;
}
