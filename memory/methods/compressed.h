/* SPDX-License-Identifier: Apache-2.0 */
/* compressed.h — answers from a prompt of which a part was kept: what SnapKV, PyramidKV and L2-norm
 * compression share once they have chosen.
 *
 * A query reads the kept tokens below its limit and everything behind the prompt, at their original
 * positions. A layer that is not compressed is read as a whole, like the published code before a
 * prompt reaches its capacity.
 *
 * Quality  how many rows were read is counted; the mass of those that were dropped is unknown (NaN)
 * Threads  as methods.h
 * Tests    tests/unit/test_snapkv.c, tests/unit/test_l2norm.c
 */
#ifndef MEMD_MEMORY_METHODS_COMPRESSED_H
#define MEMD_MEMORY_METHODS_COMPRESSED_H

#include "memory/methods/methods.h"

/* method->pick */
int compressed_pick(const struct reading *reading, struct arena *arena, struct pick_call *ret_call,
                    struct error *err);

/* The k best of scores (n) of tokens 0 … n-1, for a head of a selection that has room for them;
 * returns where the next id goes. */
uint64_t *compressed_keep(const float *scores, size_t n, size_t k, uint64_t *ret_ids);

#endif
