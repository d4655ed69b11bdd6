/* SPDX-License-Identifier: Apache-2.0 */
/* bucketed.h — the approximate top-k of Memorizing Transformers and Neurocache, and the neighbours
 * of hits.
 *
 * Entry i of a ring belongs to bucket i mod B. The best entry of each bucket wins, and the best k
 * of the winners are the result: what one maximum over a reshaped array gives on an accelerator. It
 * loses an entry that shares its bucket with a better one, and models that were trained with it may
 * expect that; so it is here to the letter. Two of B ≥ k buckets are usual: B = k (Memorizing), and
 * B = min(max(k, 512), entries) (Neurocache).
 *
 * A hit's neighbours are the entries around it: of `width` w (even, or 1 for the hit alone) the
 * offsets -w/2+1 … w/2, clipped to the ring and not wrapped, so that an entry may stand twice.
 *
 * Shapes   ids, scores (B)
 * Ties     the lower entry, within a bucket and among winners
 * Source   google-research/meliad, transformer/memory_layer.py; alisafaya/neurocache,
 *          src/neurocache/cache/ondevice.py
 * Threads  pure
 * Tests    tests/unit/test_bucketed.c
 */
#ifndef MEMD_INDEX_BUCKETED_H
#define MEMD_INDEX_BUCKETED_H

#include <stddef.h>
#include <stdint.h>

struct topk;

struct bucketed {
    uint64_t *ids; /* (B) INDEX_NONE: nothing was offered to the bucket */
    float *scores; /* (B) */
    size_t buckets;
};

void bucketed_clear(const struct bucketed *bucketed);

/* scores (count) of entries first, first + 1, …; in any order of calls. */
void bucketed_offer(const struct bucketed *bucketed, const float *scores, size_t count,
                    uint64_t first);

/* The winners into `top` (k of any size), best first. */
void bucketed_best(const struct bucketed *bucketed, const struct topk *top);

/* ret_ids (width): entries around `hit` < entries, in the order of their offsets. */
void bucketed_neighbours(uint64_t hit, size_t width, uint64_t entries, uint64_t *ret_ids);

#endif
