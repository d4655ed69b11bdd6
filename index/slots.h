/* SPDX-License-Identifier: Apache-2.0 */
/* slots.h — a fixed number of running means of similar keys and values: what CAMELoT keeps of a
 * past instead of its tokens.
 *
 * One `struct slots` is the memory of one KV head. Each used slot stands for some tokens: the mean
 * of their keys, the mean of their values, how many they are, and when the last of them came.
 * Tokens are written one after the other, and each sees what the one before it did:
 *
 *     nearest = the used slot with the largest cosine of its mean key and the token's key
 *     cosine > R   the token is familiar: both means take it in, the count grows by one
 *     otherwise    the token is novel: it takes the place of the slot that went longest without a
 *                  token, unused slots first; what that slot stood for is lost
 *
 * Ties (nearest, longest) go to the lower slot. A vector without length has cosine 0 to everything,
 * and cosines are held to -1 … 1. So R ≥ 1 merges nothing (the newest M tokens, exactly), R < -1
 * everything (one mean).
 *
 * A read asks with *keys* too, those of the window's tokens: the nearest slot of each.
 *
 * Source   CAMELoT (He et al., arXiv 2402.13449): slots, running means, novelty, replacement of the
 *          oldest, read by the nearest key. Neither the paper's text nor code was at hand; ours are
 *          cosine, one memory per KV head, and the ties. M and R have no verified defaults
 * Shapes   K, V (M, D), M 1 … SLOTS_MAX, D a multiple of 8; keys and values fp32 | fp16 | bf16
 * Cost     a token: M * D multiplications and O(M) to find the oldest, with the score kernel of the
 *          backend (tests/bench/bench_slots.c)
 * Memory   slots_new: 12 M D bytes and 16 M; scratch of the caller
 * Threads  a write is alone; reads may run beside each other
 * Errors   MEMD_ENOMEM · MEMD_ECORRUPT from slots_decode. Keys and values are finite (an append
 *          has checked)
 * Exact    the state after a sequence of tokens does not depend on how it was cut into writes. It
 *          does depend on the instruction set, by the last bit of a cosine
 * Tests    tests/unit/test_slots.c; tests/golden/test_slots.py, float64 NumPy on keys of a model
 */
#ifndef MEMD_INDEX_SLOTS_H
#define MEMD_INDEX_SLOTS_H

#include <stddef.h>
#include <stdint.h>

struct error;
struct view;

enum {
    SLOTS_MAX = 65536,
    SLOTS_BLOCK = 16, /* tokens whose cosines are computed together */
};

struct slots_shape {
    size_t slots;    /* M */
    size_t head_dim; /* D */
    double novelty;  /* R: a cosine above it is familiar */
};

/* Fields are for reading; slots.c changes them. Slots 0 … used-1 are in use. */
struct slots {
    struct slots_shape shape;
    size_t used;
    float *k, *v;      /* (M, D) means; zero where unused */
    float *unit;       /* (M, D) k at length 1; zero where k is */
    uint64_t *counts;  /* (M) tokens in the mean */
    uint64_t *updated; /* (M) `written` when the newest of them was in, 0 = unused: the age of a
                        * slot is written - updated */
    uint64_t written;  /* tokens ever */
    uint64_t merged;   /* of them, those that a slot took in */
    uint64_t replaced; /* slots that lost their tokens to a novel one */
    uint64_t lost;     /* those tokens: counts + lost = written */
};

/* All unused. */
int slots_new(const struct slots_shape *shape, struct slots **ret_slots, struct error *err);
/* NULL is fine. */
void slots_free(struct slots *slots);
void slots_freep(struct slots **slots);
/* Make `to`, of the same shape, what `from` is. */
void slots_copy(struct slots *to, const struct slots *from);

/* Floats of scratch that writing and reading need, 64-byte aligned. */
size_t slots_scratch_floats(const struct slots_shape *shape);

/* All tokens of the view, oldest first; its position is not looked at. ret_slots (tokens): the slot
 * that each went to; may be NULL. */
void slots_write(struct slots *slots, const struct view *tokens, float *scratch,
                 uint32_t *ret_slots);

/* The nearest slot of each token of a window; something must have been written. Values of the view
 * are not looked at. ret_slots (tokens) */
void slots_nearest(const struct slots *slots, const struct view *window, float *scratch,
                   uint32_t *ret_slots);

/* Everything as bytes, little-endian: u32 version, u32 M, u32 D, u32 used, f64 R, u64 written,
 * merged, replaced, lost, then of the used ones K (used, D), V (used, D) f32, counts and updated
 * u64. ret_data (slots_bytes) */
size_t slots_bytes(const struct slots *slots);
void slots_encode(const struct slots *slots, unsigned char *ret_data);
/* Into slots of the same shape. MEMD_ECORRUPT: other bytes; then they are as before. */
int slots_decode(struct slots *slots, const void *data, size_t bytes, struct error *err);

#endif
