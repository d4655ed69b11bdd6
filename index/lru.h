/* SPDX-License-Identifier: Apache-2.0 */
/* lru.h — a ring of m states from which the least recently used leave: Neurocache's eviction=lru.
 *
 * Positions of the states that are held, ascending, and for each a stamp: the number of tokens that
 * had been written when it was last used. A token is used when it is written (its stamp is its
 * position) and when it is retrieved. When a token is written and m are held, the one with the
 * least stamp leaves, of equal ones the lowest position; the rest keep their order, the new one
 * stands at the end. Slot i is the i-th position.
 *
 * The published code writes n tokens at once and then drops the n least. That is the same: no stamp
 * is above the number of tokens written, so none of the n leaves before all that were there have.
 * So a ring is a function of what was retrieved at which number of tokens, however the writes were
 * cut, and retrievals between two writes may come in any order. Different: the published code
 * stamps a write as a whole with the number of tokens before it (after it, as long as the ring is
 * not full) and leaves open who of equals leaves.
 *
 * Writes change nothing until somebody looks: they are made up for by lru_advance. So `tokens` need
 * not be what is stored, and is not, but for the number at the last retrieval; what was written
 * after that can be cut off again without a trace.
 *
 * Cost     advance: 33 passes over m stamps at most; use: log m
 * Threads  none
 * Errors   MEMD_ECORRUPT from lru_decode
 * Source   alisafaya/neurocache, src/neurocache/cache/ondevice.py (ordering = LRU)
 * Tests    tests/unit/test_lru.c
 */
#ifndef MEMD_INDEX_LRU_H
#define MEMD_INDEX_LRU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

struct lru {
    uint64_t tokens;     /* written, as far as this ring knows */
    size_t slots, count; /* m; states that are held */
    uint64_t *positions; /* (m), `count` of them ascending */
    uint64_t *stamps;    /* (m) position ≤ stamp ≤ tokens */
};

/* Empty, in memory of lru_room bytes. */
size_t lru_room(size_t slots);
void lru_init(struct lru *lru, size_t slots, void *room);
/* `to` has as many slots. */
void lru_copy(const struct lru *from, struct lru *to);

/* Tokens lru->tokens … tokens-1 were written. */
void lru_advance(struct lru *lru, uint64_t tokens);

/* positions (count) were retrieved when `tokens` tokens were written; INDEX_NONE and what is not
 * held any more are passed over. Did anything change? */
bool lru_use(struct lru *lru, uint64_t tokens, const uint64_t *positions, size_t count);

/* How many of the states lie below `limit`: the slots 0 … that many - 1. */
size_t lru_below(const struct lru *lru, uint64_t limit);

/* Would the ring of the first `tokens` tokens need no state that left? */
bool lru_can_cut(const struct lru *lru, uint64_t tokens);
/* Keep what is held of the first `tokens` tokens, used at the latest then. */
void lru_cut(struct lru *lru, uint64_t tokens);

/* Little-endian u64: tokens, slots, count, positions (count), stamps (count). */
size_t lru_encoded_bytes(const struct lru *lru);
void lru_encode(const struct lru *lru, unsigned char *ret_data);
/* Into a ring that was made for as many slots; after an error that is empty. */
int lru_decode(const void *data, size_t bytes, struct lru *lru, struct error *err);
/* Is it one, of any number of slots? */
bool lru_is_sound(const void *data, size_t bytes, uint64_t *ret_tokens);

#endif
