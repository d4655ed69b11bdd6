/* SPDX-License-Identifier: Apache-2.0 */
/* streaming.h — attention sinks and a window, everything in between dropped: what an index has to
 * be better than.
 *
 * StreamingLLM (Xiao et al., arXiv 2309.17453 §3.2): the first `sinks` tokens and the newest
 * `window`, as if nothing had ever been in between. Keys are cached before rotation and rotated by
 * their place *in the cache*, so that a model never sees a distance it was not trained on: n kept
 * keys at 0 … n-1, a query behind them at n (rule cache-index of positions.h). Faithful: set,
 * positions, 4 sinks. Ours: the window is a number of tokens with a default that the paper does not
 * have (it fills the model's context), a query may be asked with any limit, and nothing is deleted.
 *
 * Keys that came rotated keep their original positions: the set is the paper's then, the distances
 * are the true ones. `positions = original` asks for that elsewhere, too.
 *
 * There is nothing to build: the type has no `build`, and attend and search take no version.
 *
 * Cost     O(sinks + window) per query
 * Errors   as pick.h
 * Quality  mass and error unknown (NaN) once anything is dropped (until then cache-index is the
 *          original position, and the answer exact); max_bytes is not looked at
 * Tests    tests/unit/test_streaming.c
 */
#ifndef MEMD_INDEX_STREAMING_H
#define MEMD_INDEX_STREAMING_H

#include "index/layer_index.h"

enum streaming_option {
    STREAMING_SINKS,
    STREAMING_WINDOW,
    STREAMING_POSITIONS,
    STREAMING_OPTIONS,
};

extern const struct layer_index_type streaming_type;

#endif
