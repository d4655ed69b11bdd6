/* SPDX-License-Identifier: Apache-2.0 */
/* neurocache.h — attention over retrieved states, for neurocache.c (which has the source of it).
 *
 * Keys and values of a layer are made of states when they are read: K = W_k c, V = W_v c. With the
 * layout `transposed`, KV head g has rows g of both, so its softmax needs neither: a query is
 * brought into the space of states, W_kᵀ q, and the weighted mean of states back, W_v c̄ — the same
 * sums in another order, at 2 D W multiplications for a head instead of 2 D W for each state.
 *
 * The published code takes the rows (n, G·D) of n states that were projected and *views* them as
 * (G, n, D): head g sees the flattened rows gn … gn+n-1, row p of which is block p mod G of state
 * p div G. Models trained with it need that (`raw-view`); there keys and values are really made.
 *
 * Threads  split over the pool by queries and KV heads
 * Errors   MEMD_ENOMEM · what `stop` says
 * Tests    tests/unit/test_neurocache.c
 */
#ifndef MEMD_MEMORY_NEUROCACHE_H
#define MEMD_MEMORY_NEUROCACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/softmax.h"
#include "index/rows.h"

struct arena;
struct error;
struct reading;

struct neurocache_attention {
    const struct reading *reading;
    struct rows rows;         /* states */
    const float *key, *value; /* (G, D, W) */
    size_t kv_heads;          /* G of the model */
    const uint64_t *found;    /* (n, set) positions, INDEX_NONE: a row of zeros */
    size_t set;               /* k * neighbours */
    size_t window;            /* tokens whose sets are read together */
    bool raw_view, zero_rows;
};

int neurocache_attend(const struct neurocache_attention *attention, struct arena *arena,
                      const struct partial *ret_partial, struct error *err);

#endif
