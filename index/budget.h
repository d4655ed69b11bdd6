/* SPDX-License-Identifier: Apache-2.0 */
/* budget.h — how many tokens of a prompt each layer keeps, and each of its heads.
 *
 * With C = capacity - window tokens besides the newest `window`:
 *
 *     const     SnapKV: C in every layer
 *     pyramid   PyramidKV: many in low layers, few in high ones. From 2C - C/β in layer 0 down in
 *               equal steps, towards C/β in the last
 *     heads     a capacity for each KV head, its window included, that a client uploaded for one
 *               layer or for all of them; in place of both others
 *
 * A prompt shorter than the capacity is kept whole; the pyramid is uniform below a prompt of 2C. A
 * layer cannot keep more than there is: then the highest budget is all of it, and the lowest what
 * that leaves of 2C.
 *
 * Divisions are those of integers, as published, and so the step is too small: layers together keep
 * more than L·C (4.6 % more with C 120 and 32 layers). It is kept for faithfulness; what is kept in
 * truth is what `context_compress` and the layer's facts say.
 *
 * Capacities of heads come from a profile of a model that somebody has measured (which heads look
 * far back, which only around them). A head may keep no more than its window.
 *
 * Source   PyramidKV (Cai et al., arXiv 2406.02069) §4.2 and its code (Zefan-Cai/KVCache-Factory);
 *          SnapKV (arXiv 2404.14469). Ours: a model of one layer has no step
 * Threads  pure
 * Errors   MEMD_EINVAL a capacity that is none
 * Tests    tests/unit/test_budget.c
 */
#ifndef MEMD_INDEX_BUDGET_H
#define MEMD_INDEX_BUDGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct tensor;

#define BUDGET_ALL UINT64_MAX /* keep the whole prompt */

struct budget {
    uint64_t capacity, window; /* tokens of a layer; of them, the newest; window < capacity */
    uint64_t beta;             /* ≥ 1, of the pyramid */
    uint32_t layers;
};

/* Tokens kept besides the newest `window`, of a prompt of so many; or BUDGET_ALL. */
uint64_t budget_const(const struct budget *budget, uint64_t tokens);
uint64_t budget_pyramid(const struct budget *budget, uint32_t layer, uint64_t tokens);

/* The tensor with the capacities, as methods declare it (index/params.h). */
#define BUDGET_CAPACITY                                                               \
    {                                                                                 \
        "capacity", "G",                                                              \
            "tokens of a prompt that each KV head keeps, instead of what parameters " \
            "say"                                                                     \
    }

/* ret_kept (G): the same of each head, from `capacities` (G), FP32. */
int budget_heads(const struct tensor *capacities, uint64_t window, uint64_t tokens,
                 uint64_t *ret_kept, struct error *err);

/* kept (G): `past` in place of BUDGET_ALL. False when that was so of all of them. */
bool budget_chooses(uint64_t *kept, size_t heads, uint64_t past);

#endif
