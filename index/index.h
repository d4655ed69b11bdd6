/* SPDX-License-Identifier: Apache-2.0 */
/* index.h — what every index is asked and what it answers, whatever it is made of.
 *
 * An index knows the rows of one layer and answers two questions about them: attention (a partial
 * (o, lse), with a record of what was read and how wrong it may be) and search (top-k tokens). It
 * never decides correctness alone: the exact rows are always among the arguments, and rows that an
 * index does not cover yet (the open tail, a segment that was just sealed) are read exactly.
 *
 * Levels, from coarse to exact. What an index answers from a level is its business; that it says
 * how much it took from each is everybody's:
 *
 *     clusters   a centroid and a mean value stand for several tokens
 *     hi         4-bit codes of K and V
 *     lo         8-bit codes of K and V
 *     exact      the rows as stored
 *
 * Search rows are ordered by score, ties by lower position, so that every index is deterministic;
 * rows with fewer than k visible tokens are filled with (INDEX_NONE, -inf).
 */
#ifndef MEMD_INDEX_INDEX_H
#define MEMD_INDEX_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/attend.h"

#define INDEX_NONE UINT64_MAX

/* X(NAME, text), coarse to exact. */
#define INDEX_LEVEL_MAP(X)  \
    X(CLUSTERS, "clusters") \
    X(HI, "hi")             \
    X(LO, "lo")             \
    X(EXACT, "exact")

enum index_level {
#define X(name, text) INDEX_##name,
    INDEX_LEVEL_MAP(X)
#undef X
        INDEX_LEVELS,
};

struct index_args {
    struct attend_args attend; /* the queries, and the exact rows as views */
    float target_error; /* wanted relative L2 error of o per query head; 0 = exact */
    uint64_t max_bytes; /* read for the whole call at most, as far as the index can choose;
                         * 0 = no bound */
    struct plan *plan;  /* not NULL: an attend writes down what it reads (plan.h) */
};

/* What an answer was made from; arrays of the caller, per query and query head. */
struct index_quality {
    float *predicted_error; /* (n, H) relative L2 error of o; NaN = this index cannot tell */
    float *mass;            /* (n, H, INDEX_LEVELS) share of the softmax mass answered from each
                             * level; what is missing to 1 was dropped (as far as it is known);
                             * NaN = rows were dropped that nobody looked at */
    bool *limited;          /* (n, H) max_bytes cut it short of target_error */
    uint64_t rows[INDEX_LEVELS];  /* read, over all KV heads; K and V of a token are two rows */
    uint64_t bytes[INDEX_LEVELS];
};

struct index_answer {
    struct partial partial; /* rows = n * H */
    struct index_quality *quality;
};

struct index_hits {
    uint64_t *ids;  /* (n, H, k) token positions */
    float *scores;  /* (n, H, k) scale * q·k */
    size_t k;
};

struct index_found {
    struct index_hits hits;
    struct index_quality *quality; /* may be NULL, and so may its arrays */
};

#endif
