/* SPDX-License-Identifier: Apache-2.0 */
/* votes.h — how much attention the last queries of a prompt give to every token before them: what
 * SnapKV takes for what the answer will need.
 *
 * Each of the last `window` queries spreads a softmax over the whole prompt, causal inside the
 * window. The vote of a token is the sum of what it receives from all of them; tokens of the window
 * take their share of each softmax, but are not voted on: they are kept anyway.
 *
 * The queries' rows of weights are never there as a whole. Keys are read twice, in tiles: once for
 * the largest score and the sum of each row, once to add up weights. So a prompt of a million
 * tokens costs one float per token and query head, not `window` of them.
 *
 * Shapes   q (at least window, H, D), of the prompt's last tokens; votes (heads, H/G, tokens -
 *          window)
 * Cost     2 H window tokens D multiplications, split over the pool by KV head and 2,048 tokens
 * Memory   scratch from the arena: the window's queries, and two numbers per row and piece
 * Exact    rows in fp32, sums of a row in double; the same however many threads there are
 * Threads  any
 * Errors   MEMD_ENOMEM · what `stop` says
 * Source   SnapKV (Li et al., arXiv 2404.14469) §4.1 and its code. There the weights are rounded to
 *          the model's dtype before they are added up; here they are not
 * Tests    tests/unit/test_votes.c
 */
#ifndef MEMD_INDEX_VOTES_H
#define MEMD_INDEX_VOTES_H

#include <stddef.h>
#include <stdint.h>

#include "base/tensor.h"
#include "index/rows.h"

struct arena;
struct error;
struct pool;

enum { VOTES_WINDOW_MAX = 1024 };

struct votes_args {
    struct rows rows; /* rope: keys and queries are unrotated */
    size_t kv_heads, query_heads;
    float scale;
    uint64_t tokens;  /* of the prompt, > window */
    struct tensor q;  /* (≥ window, H, D); the last `window` of them count */
    size_t window;    /* 1 … VOTES_WINDOW_MAX */
    struct pool *pool;
    int (*stop)(void *arg); /* as in attend_args; may be NULL */
    void *stop_arg;
};

/* Votes of the query heads of KV heads first … first+heads-1. ret_votes (heads, H/G, tokens -
 * window) */
int votes_count(const struct votes_args *args, size_t first, size_t heads, struct arena *arena,
                float *ret_votes, struct error *err);

#endif
