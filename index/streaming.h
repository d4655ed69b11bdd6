/* SPDX-License-Identifier: Apache-2.0 */
/* streaming.h — attention sinks and a window, everything in between dropped: what an index has to
 * be better than.
 *
 * The set of StreamingLLM (Xiao et al., arXiv 2309.17453 §3.2): the first `sinks` tokens and the
 * newest `window`. Positions differ from the paper: there keys are cached before rotation and
 * rotated by their place *in the cache*, so that a model never sees a distance it was not trained
 * on. Here keys keep the positions they were stored with, because the engine that sent them goes on
 * counting: the set is the paper's, the distances are the true ones.
 *
 * There is nothing to build: the type has no `build`, and attend and search take no version.
 *
 * Cost     O(sinks + window) per query
 * Errors   as pick.h
 * Quality  mass and error unknown (NaN) once anything is dropped; max_bytes is not looked at
 * Tests    tests/unit/test_streaming.c
 */
#ifndef MEMD_INDEX_STREAMING_H
#define MEMD_INDEX_STREAMING_H

#include "index/layer_index.h"

enum streaming_option { STREAMING_SINKS, STREAMING_WINDOW, STREAMING_OPTIONS };

extern const struct layer_index_type streaming_type;

#endif
