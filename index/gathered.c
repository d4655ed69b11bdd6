/* SPDX-License-Identifier: Apache-2.0 */
/* gathered.c — a block of scores none of which would be collected is passed over at once. */
#include "index/gathered.h"

#include <math.h>

#include "index/topk.h"

enum {
    LOOK = 16,    /* scores that are compared at once */
    HALVINGS = 16
};

void gathered_clear(struct gathered *gathered, uint64_t *ids, float *scores, size_t room)
{
    *gathered = (struct gathered){ ids, scores, 0, room, -INFINITY };
}

void gathered_keep(struct gathered *gathered)
{
    if (gathered->count <= gathered->room) return;
    struct topk all = { gathered->ids, gathered->scores, gathered->count };
    topk_select(&all, gathered->room);
    gathered->count = gathered->room;
    float least = gathered->scores[0];
    for (size_t i = 1; i < gathered->count; i++)
        if (gathered->scores[i] < least) least = gathered->scores[i];
    gathered_raise(gathered, least);
}

void gathered_raise(struct gathered *gathered, float least)
{
    if (least > gathered->least) gathered->least = least;
}

static size_t count_from(const struct gathered *gathered, float least)
{
    int count = 0; /* of a few hundred: the compiler makes vectors of it */
    for (size_t i = 0; i < gathered->count; i++) count += gathered->scores[i] >= least;
    return (size_t)count;
}

/* Throw away about half, without a branch that cannot be foreseen: halve the interval of scores
 * until little more than the best r lie above. */
static void thin(struct gathered *gathered)
{
    float low = gathered->scores[0], high = low;
    for (size_t i = 1; i < gathered->count; i++) {
        low = gathered->scores[i] < low ? gathered->scores[i] : low;
        high = gathered->scores[i] > high ? gathered->scores[i] : high;
    }
    for (size_t i = 0, above = gathered->count;
         i < HALVINGS && above > gathered->room + gathered->room / 8; i++) {
        float middle = 0.5F * low + 0.5F * high;
        size_t count = count_from(gathered, middle);
        if (count < gathered->room) {
            high = middle;
        } else {
            low = middle;
            above = count;
        }
    }
    gathered_raise(gathered, low);
    size_t kept = 0;
    for (size_t i = 0; i < gathered->count; i++) {
        gathered->scores[kept] = gathered->scores[i];
        gathered->ids[kept] = gathered->ids[i];
        kept += gathered->scores[kept] >= low;
    }
    gathered->count = kept;
    if (kept > gathered->room + gathered->room / 2) gathered_keep(gathered); /* many alike */
}

static void collect(struct gathered *gathered, float score, uint64_t id)
{
    gathered->ids[gathered->count] = id;
    gathered->scores[gathered->count++] = score;
    if (gathered->count == GATHERED_TIMES * gathered->room) thin(gathered);
}

void gathered_offer(struct gathered *gathered, const float *scores, size_t count, uint64_t first)
{
    for (size_t at = 0; at < count; at += LOOK) {
        size_t some = count - at < LOOK ? count - at : LOOK;
        int any = 0;
        for (size_t i = 0; i < some; i++) any |= scores[at + i] >= gathered->least;
        if (any == 0) continue;
        for (size_t i = at; i < at + some; i++)
            if (scores[i] >= gathered->least) collect(gathered, scores[i], first + i);
    }
}

void gathered_take(struct gathered *gathered, const float *scores, uint64_t bits,
                   const uint64_t *entries)
{
    for (; bits != 0; bits &= bits - 1) {
        unsigned i = (unsigned)__builtin_ctzll(bits);
        if (scores[i] >= gathered->least) collect(gathered, scores[i], entries[i]);
    }
}
