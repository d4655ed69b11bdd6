/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.h — the exact best k tokens of each query head, the tail dropped: what every index that
 * looks for the top k would answer if it never missed.
 *
 * Sinks and window are read as by the others; among the rest every key is scored, the best k of a
 * query head are attended to, and the mass of what was left out is known exactly. Its bytes are
 * those of a scan of all keys: it bounds errors, not costs.
 *
 * There is nothing to build: the type has no `build`, and attend and search take no version.
 *
 * Cost     O(T D) per query head
 * Errors   as pick.h
 * Quality  mass exact; predicted error unknown (NaN) once anything is dropped; max_bytes is not
 *          looked at. search looks at every key.
 * Tests    tests/unit/test_streaming.c
 */
#ifndef MEMD_INDEX_ORACLE_H
#define MEMD_INDEX_ORACLE_H

#include "index/layer_index.h"

enum oracle_option { ORACLE_K, ORACLE_SINKS, ORACLE_WINDOW, ORACLE_OPTIONS };

extern const struct layer_index_type oracle_type;

#endif
