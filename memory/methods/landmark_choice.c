/* SPDX-License-Identifier: Apache-2.0 */
/* landmark_choice.c — old landmarks stand at one position, so their scores are one scan with the
 * query turned by the distance to it; the last k are scored one by one.
 *
 * Where heads or tokens choose together, all of them are asked before any block is read: a choice
 * is a task of its own, and its shares are compared as logarithms, in which shares that are nearly
 * 1 still differ. */
#include "memory/methods/landmark.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/blocks.h"
#include "memory/methods/methods.h"

enum { WAVE = 16 }; /* shared choices that are made at a time */

static int uneven(const struct landmark_asking *asking, const struct landmark_extent *extent,
                  struct error *err)
{
    const struct landmarks *landmarks = asking->landmarks;
    size_t odd = (size_t)landmarks->even[extent->first + extent->count - 1];
    return error_set(err, MEMD_EUNSUPPORTED,
                     "landmark: stingy positions need blocks of one "
                     "length; the one that ends at token %" PRIu64 " has another than the one "
                     "before it",
                     landmarks->ends[odd]);
}

int landmark_extent(const struct landmark_asking *asking, size_t query,
                    struct landmark_extent *ret_extent, struct error *err)
{
    const struct attend_args *args = &asking->reading->attend;
    const struct landmarks *landmarks = asking->landmarks;
    uint64_t limit = args->limits[query], tokens = landmarks->base.tokens;
    if (limit > tokens) limit = tokens;
    struct landmark_extent extent = { .end = limit };
    extent.position = args->positions == NULL ? limit : args->positions[query];
    size_t below = landmarks_below(landmarks, limit);
    if (below > 0 && landmarks->ends[below - 1] == extent.position && extent.position + 1 == limit)
        extent.end = landmarks->ends[--below]; /* the query is the landmark of its own block */
    extent.begin = landmarks_begin(landmarks, below);
    extent.first = asking->most != 0 && below > asking->most ? below - (size_t)asking->most : 0;
    extent.count = below - extent.first;
    extent.k = extent.count < asking->k ? extent.count : asking->k;
    if (asking->stingy && extent.count > 0) {
        if (landmarks->even[below - 1] > extent.first) return uneven(asking, &extent, err);
        extent.length = extent.begin - landmarks_begin(landmarks, below - 1);
        if (extent.position < extent.begin)
            return error_set(err, MEMD_EINVAL,
                             "landmark: a query at position %" PRIu64
                             " sees blocks up to token %" PRIu64,
                             extent.position, extent.begin);
    }
    *ret_extent = extent;
    return 0;
}

void landmark_turn(const struct rope *rope, const float *q, uint64_t distance, float *ret_q)
{
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    memcpy(ret_q, q, rope->head_dim * sizeof *q);
    rope_angles(rope, distance, cos, sin);
    rope_apply(rope, cos, sin, ret_q, 1);
    for (size_t d = 0; rope->magnitude != 1.0 && d < rope->head_dim; d++)
        ret_q[d] = (float)((double)ret_q[d] * rope->magnitude);
}

uint64_t landmark_old_distance(const struct landmark_extent *extent)
{
    return extent->position - extent->begin + extent->k * extent->length + 1;
}

void landmark_score(const struct landmark_asking *asking, const struct landmark_extent *extent,
                    size_t head, const float *q, float *turned, float *ret_scores)
{
    const struct landmarks *landmarks = asking->landmarks;
    size_t g = head / asking->group, old = extent->count;
    if (asking->rope == NULL) {
        landmarks_scores(landmarks, g, q, extent->first, old, ret_scores);
        return;
    }
    if (!asking->stingy) {
        float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
        memcpy(turned, q, landmarks->head_dim * sizeof *q);
        rope_angles(asking->rope, extent->position, cos, sin);
        rope_apply(asking->rope, cos, sin, turned, 1);
        landmarks_scores(landmarks, g, turned, extent->first, old, ret_scores);
        return;
    }
    old -= extent->k;
    if (old > 0) landmark_turn(asking->rope, q, landmark_old_distance(extent), turned);
    landmarks_scores(landmarks, g, turned, extent->first, old, ret_scores);
    for (size_t i = old; i < extent->count; i++) {
        size_t block = extent->first + i;
        landmark_turn(asking->rope, q, extent->position - landmarks->ends[block], turned);
        landmarks_scores(landmarks, g, turned, block, 1, ret_scores + i);
    }
}

void landmark_choose(const struct landmark_extent *extent, const float *scores, float *best,
                     uint64_t *ret_ids)
{
    struct blocks_wanted wanted = { .best = extent->k };
    blocks_choose(scores, extent->count, &wanted, best, ret_ids);
    for (size_t j = 0; j < extent->k; j++) ret_ids[j] += extent->first;
}

/* ---- one choice for several heads or tokens ---- */

/* Scratch of a choice that is made. */
struct vote {
    float *q, *turned;       /* (D) */
    float *scores, *highest; /* (landmarks) */
    float *best;             /* (k) */
    int code;
    struct error error;
};

struct votes {
    struct landmark_asking *asking;
    bool over_heads;
    size_t first; /* of this wave */
    struct vote rooms[WAVE];
    uint64_t *ids;  /* (n or H, k) */
    size_t *counts; /* (n or H) */
};

/* scores → their logarithm after a softmax, and the highest that anybody has given so far. */
static void raise_highest(const float *scores, size_t count, bool fresh, float *highest)
{
    float max = -INFINITY;
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) max = fmaxf(max, scores[i]);
    for (size_t i = 0; i < count; i++) sum += exp((double)scores[i] - (double)max);
    double lse = (double)max + log(sum);
    for (size_t i = 0; i < count; i++) {
        float share = (float)((double)scores[i] - lse);
        highest[i] = fresh ? share : fmaxf(highest[i], share);
    }
}

static void load_query(const struct attend_args *args, size_t query, size_t head, float *ret_q)
{
    size_t heads = args->q.shape[1], dim = args->q.shape[2];
    size_t at = (query * heads + head) * dim * dtype_bytes(args->q.dtype);
    backend_widen((const unsigned char *)args->q.data + at, args->q.dtype, 1, dim, ret_q);
    for (size_t d = 0; d < dim; d++) ret_q[d] *= args->scale;
}

/* Choice `first + at`: of a token by all heads, or of a head by all tokens. */
static void vote(void *arg, size_t at)
{
    struct votes *votes = arg;
    const struct landmark_asking *asking = votes->asking;
    const struct attend_args *args = &asking->reading->attend;
    struct vote *room = &votes->rooms[at];
    struct landmark_extent extent = { 0 }, one;
    size_t item = votes->first + at;
    size_t voters = votes->over_heads ? args->q.shape[1] : args->q.shape[0];
    for (size_t i = 0; i < voters; i++) {
        size_t query = votes->over_heads ? item : i, head = votes->over_heads ? i : item;
        room->code = landmark_extent(asking, query, &one, &room->error);
        if (room->code < 0) return;
        if (i > 0 && (one.first != extent.first || one.count != extent.count)) {
            room->code = error_set(&room->error, MEMD_EINVAL,
                                   "landmark: tokens that choose "
                                   "together must see the same blocks");
            return;
        }
        extent = one;
        load_query(args, query, head, room->q);
        landmark_score(asking, &extent, head, room->q, room->turned, room->scores);
        raise_highest(room->scores, extent.count, i == 0, room->highest);
    }
    landmark_choose(&extent, room->highest, room->best, votes->ids + item * asking->k);
    votes->counts[item] = extent.k;
}

static int reserve_votes(struct votes *votes, size_t items, struct arena *arena, struct error *err)
{
    struct landmark_asking *asking = votes->asking;
    size_t dim = asking->landmarks->head_dim, count = asking->landmarks->count + 1;
    size_t floats = 2 * dim + 2 * count + asking->k;
    votes->ids = arena_calloc(arena, items, asking->k * sizeof *votes->ids);
    votes->counts = arena_calloc(arena, items, sizeof *votes->counts);
    bool full = votes->ids == NULL || votes->counts == NULL;
    for (size_t i = 0; i < WAVE && i < items && !full; i++) {
        struct vote *room = &votes->rooms[i];
        room->q = arena_calloc(arena, floats, sizeof(float));
        full = room->q == NULL;
        if (full) break;
        room->turned = room->q + dim;
        room->scores = room->turned + dim;
        room->highest = room->scores + count;
        room->best = room->highest + count;
    }
    return full ? error_set(err, MEMD_ENOMEM, "no memory for %zu choices of blocks", items) : 0;
}

int landmark_choose_together(struct landmark_asking *asking, struct arena *arena, struct error *err)
{
    const struct attend_args *args = &asking->reading->attend;
    struct votes votes = { .asking = asking, .over_heads = asking->share == LANDMARK_OVER_HEADS };
    size_t items = args->q.shape[votes.over_heads ? 0 : 1];
    int rc = reserve_votes(&votes, items, arena, err);
    for (; rc == 0 && votes.first < items; votes.first += WAVE) {
        size_t some = items - votes.first < WAVE ? items - votes.first : WAVE;
        pool_for(args->pool, some, vote, &votes);
        for (size_t i = 0; i < some && rc == 0; i++)
            if (votes.rooms[i].code < 0)
                rc = error_set(err, votes.rooms[i].code, "%s", votes.rooms[i].error.text);
        if (rc == 0 && args->stop != NULL && args->stop(args->stop_arg) != 0)
            rc = error_set(err, args->stop(args->stop_arg), "ended while choosing blocks");
    }
    asking->shared = votes.ids;
    asking->counts = votes.counts;
    return rc;
}
