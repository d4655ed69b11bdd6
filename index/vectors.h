/* SPDX-License-Identifier: Apache-2.0 */
/* vectors.h — the nearest of a ring of states: the search of Neurocache.
 *
 * A layer keeps a state of W numbers of each token (methods.h): views of one head, whose K is the
 * first half of a state and whose V is the second. A ring of m slots holds the newest m of them:
 * slot s holds the newest token whose position is s modulo m, so that nothing but the number of
 * tokens has to be known of it, and it can be read as of any earlier number.
 *
 *     metric   score of a state c for a query q, the higher the nearer
 *     l2       2 q·c - |c|²  (|q|² less the squared distance)
 *     dot      q·c
 *
 * Slots that nothing was written to have the score VECTORS_UNWRITTEN, below every other, and are
 * found when there are fewer states than k: the published code reads zeros there, and what stands
 * beside such a slot may be a state.
 *
 * A ring may also be a list of positions (lru.h): slot s then holds the s-th of them.
 *
 * Search is exact (the best k), bucketed (bucketed.h), or sketched (sketches.h): the best `rerank`
 * guesses in the best `probes` cells are scored exactly, and of those the best k are found. Ties:
 * the lower slot. A query that sees fewer than SKETCHES_SAMPLE states, or not many more than
 * `rerank`, is answered exactly all the same.
 *
 * |c|² of all states and their sketches are a fold (fold.h) that is only added to.
 *
 * Shapes   q (n, W) fp32; ret_slots, ret_scores (n, k) best first
 * Cost     search: every state of the ring, or its sketch, is read once per VECTORS_BATCH queries
 * Memory   fold: 4 bytes a state, and S + 4 where there are sketches; search: heaps or buckets of a
 * batch for each piece of the ring,
 *          from the arena
 * Threads  a search splits the ring over the pool
 * Errors   MEMD_ENOMEM · what `stop` says
 * Tests    tests/unit/test_vectors.c
 */
#ifndef MEMD_INDEX_VECTORS_H
#define MEMD_INDEX_VECTORS_H

#include <stddef.h>
#include <stdint.h>

#include "index/fold.h"
#include "index/grown.h"
#include "index/sketches.h"

struct arena;

enum { VECTORS_BATCH = 16 };
#define VECTORS_UNWRITTEN (-1e8F)

enum vectors_metric { VECTORS_L2, VECTORS_DOT };

struct vectors {
    struct fold base;
    struct grown squares; /* (1, tokens) fp32 */
    struct sketches sketches;
};

/* fold_type.open, .free and .advance. sketch: dimensions of sketches; 0 = there are to be none. */
int vectors_new(const struct fold_type *type, size_t width, size_t sketch,
                struct vectors **ret_vectors, struct error *err);
void vectors_free(struct fold *fold); /* NULL is fine */
int vectors_advance(struct vectors *vectors, const struct fold_source *source, uint64_t end,
                    struct error *err);

/* Which token a slot of a ring of m holds when `written` tokens were: its position, or INDEX_NONE.
 * */
uint64_t vectors_position(uint64_t slots, uint64_t written, uint64_t slot);

struct vectors_args {
    const struct vectors *vectors;
    struct rows rows;       /* of one head, W/2 dimensions */
    const float *q;         /* (n, W) */
    const uint64_t *limits; /* (n) tokens that each query sees; at most those in the fold. With
                             * `listed` so many slots, at most m */
    const uint64_t *listed; /* ascending positions of the states in the slots, or NULL: slot p mod m
                             * holds p, of the newest m. Then rerank is 0 */
    size_t queries;         /* n */
    uint64_t slots;         /* m */
    size_t k;
    size_t buckets; /* 0 = exact; m is a multiple of it, and it is at least k */
    size_t rerank;  /* 0 = all are scored exactly; at least k, and buckets is 0 */
    size_t probes;  /* of SKETCHES_CELLS, with rerank: all = no cell is passed over */
    enum vectors_metric metric;
    struct pool *pool;      /* may be NULL */
    int (*stop)(void *arg); /* may be NULL */
    void *stop_arg;
};

/* INDEX_NONE only where the ring has fewer than k slots, or where products of finite numbers are
 * none. *ret_states: how many states were read. */
int vectors_search(const struct vectors_args *args, struct arena *arena, uint64_t *ret_slots,
                   float *ret_scores, uint64_t *ret_states, struct error *err);

/* States at `positions` as fp32, zeros where INDEX_NONE. ret_states (count, W) */
void vectors_load(const struct rows *rows, const uint64_t *positions, size_t count,
                  float *ret_states);

/* ret_products (n, count) = q · rows; q (n, W), rows (count, W) fp32, W a multiple of 8. */
void vectors_products(const float *q, size_t queries, const float *rows, size_t count, size_t width,
                      float *ret_products);

#endif
