/* SPDX-License-Identifier: Apache-2.0 */
/* ranked.h — what tests of "the best k" compare with: everything, sorted. */
#ifndef MEMD_TESTS_RANKED_H
#define MEMD_TESTS_RANKED_H

#include <stdint.h>

struct ranked {
    double score; /* holds a float's exactly */
    uint64_t id;
};

/* For qsort: the larger score first, of equal ones the lower id. */
static inline int better_first(const void *a, const void *b)
{
    const struct ranked *left = a, *right = b;
    if (left->score != right->score) return left->score > right->score ? -1 : 1;
    return left->id < right->id ? -1 : left->id > right->id;
}

#endif
