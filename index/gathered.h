/* SPDX-License-Identifier: Apache-2.0 */
/* gathered.h — the best r of a long stream of scores, unordered: those that may be among them are
 * collected, and as soon as there are GATHERED_TIMES r the worse ones are thrown away. A heap of
 * hundreds costs more: 27 ms instead of 9 for 16 queries in 131,072 states.
 *
 * A stream that is cut into parts for several threads is gathered part by part and merged by
 * offering one part's entries to another. A part that knows a score of which r entries elsewhere
 * are at least as good may be told (gathered_raise): what is worse would be thrown away in the end,
 * so the best r do not depend on whether and when that happened.
 *
 * Shapes   ids, scores (GATHERED_TIMES r)
 * Ties     the lower id
 * Cost     about r ln(n / r) entries of n in random order are collected
 * Threads  none
 * Tests    tests/unit/test_gathered.c
 */
#ifndef MEMD_INDEX_GATHERED_H
#define MEMD_INDEX_GATHERED_H

#include <stddef.h>
#include <stdint.h>

enum { GATHERED_TIMES = 2 };

struct gathered {
    uint64_t *ids;
    float *scores;
    size_t count, room; /* room: r */
    float least;        /* worse than this need not be collected */
};

/* Nothing yet, in memory of the caller. */
void gathered_clear(struct gathered *gathered, uint64_t *ids, float *scores, size_t room);

/* scores (count) of entries first, first + 1, … */
void gathered_offer(struct gathered *gathered, const float *scores, size_t count, uint64_t first);

/* scores, entries (64): those whose bit is set, of which some may be worse than `least` by now. */
void gathered_take(struct gathered *gathered, const float *scores, uint64_t bits,
                   const uint64_t *entries);

/* r entries elsewhere are at least as good. */
void gathered_raise(struct gathered *gathered, float least);

/* Keep the best r. */
void gathered_keep(struct gathered *gathered);

#endif
