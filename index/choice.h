/* SPDX-License-Identifier: Apache-2.0 */
/* choice.h — the best k of a scan for each query head of a task, and the mass of everything that
 * was scanned: what indexes share that look at every key and read few.
 *
 *     choice_clear; for each run of rows: pick_scores, choice_weigh, choice_offer;
 *     pick_list(pick, m, choice.ids …);  pick->mass = choice_share
 *
 * What a token is ranked by need not be what it weighs: Extended Mind ranks by cosine. Because all
 * scores were seen, the share of the softmax that the chosen rows have is known and not guessed.
 *
 * Shapes   scores (CHOICE_FLOATS) of a run for all heads; ids, ranks (group, k)
 * Memory   choice_bytes of a task's scratch
 * Cost     O(1) per token and head, O(log k) for one that gets in
 * Threads  one task
 * Tests    tests/unit/test_streaming.c, tests/unit/test_extended_mind.c
 */
#ifndef MEMD_INDEX_CHOICE_H
#define MEMD_INDEX_CHOICE_H

#include <stddef.h>
#include <stdint.h>

#include "index/pick.h"

enum { CHOICE_FLOATS = 8192 };

struct choice {
    float *scores;     /* (CHOICE_FLOATS) room for the scores of a run */
    float *max;        /* (group) of all scores that were weighed */
    double *sum;       /* (group) of exp(score - max) */
    uint64_t *ids;     /* (group, k) of the best, INDEX_NONE where there are fewer */
    float *top_scores; /* (group, k) what they were ranked by */
    size_t k, group;
};

/* The state of a head before rows are read into it that were weighed too. */
struct choice_steady {
    float max, sum;
};

size_t choice_bytes(size_t group, size_t k);
/* In scratch of choice_bytes, cleared. */
struct choice choice_at(void *scratch, size_t group, size_t k);

struct topk choice_top(const struct choice *choice, size_t m);

/* scores (count), added to the mass of head m. */
void choice_weigh(const struct choice *choice, size_t m, const float *scores, size_t count);

/* ranks (count) of tokens position, position + 1, … for head m. */
void choice_offer(const struct choice *choice, size_t m, const float *ranks, size_t count,
                  uint64_t position);

/* Share of head m's softmax that was read, of what was weighed and what the state had before. */
float choice_share(const struct choice *choice, const struct pick *pick, size_t m,
                   struct choice_steady before);

#endif
