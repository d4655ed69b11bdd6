/* SPDX-License-Identifier: Apache-2.0 */
/* positions.h — position rules: where a method that reads a part of the past rotates its keys and
 * its query.
 *
 * RoPE shows a model distances. Attention over everything shows it the true ones; a method that
 * keeps some tokens of a long past may show others, so that a model never meets a distance which it
 * was not trained on. Published methods use few rules:
 *
 *     rule         key of token t           query                      used by
 *     original     t                        its own position           SnapKV, RetrievalAttention
 *     cache-index  kept tokens before t     kept tokens before it      StreamingLLM §3.2
 *     contiguous   the same over chosen chunks                        LongHeads
 *     zero         0                        tokens since the memory    Extended Mind, LongLLaMA
 *     constant     0                        a fixed distance           InfLLM
 *     none         not rotated              not rotated                Memorizing Transformers
 *     stingy       old blocks at one place  its own position           Landmark Attention
 *
 * "Before it" counts, for a query asked with a limit, the kept tokens below the limit and all
 * positions between limit and query: what stands there is not in the memory, it is the window that
 * the client attends to itself, with the distances that it uses anyway. So a query at its limit
 * sits at n, right behind n kept keys, and one that is stored as the last kept token at n - 1.
 * "Since the memory" is the same count with nothing kept. Contiguous is no rule of its own: each
 * run of chunks is read under cache-index, with the shift that moves it behind the one before.
 *
 * A key can be moved only where memd rotates it: the model has a rope and is not `rotated`.
 * Everywhere else only original is there, and other rules are refused when a context is opened.
 * Undoing the client's rotation was rejected: an opaque model does not say which one it was; where
 * it is known, 16-bit keys were rounded after it, and turned back they are not the keys that the
 * model made; and nothing tells whether the query was rotated for the same rule. An answer from
 * such keys would be wrong without a word.
 *
 * YaRN's magnitude belongs to the rotation: rules zero and constant multiply by it, none does not.
 *
 * Threads  pure
 * Errors   MEMD_EUNSUPPORTED the rule needs keys that memd rotates
 * Tests    tests/unit/test_positions.c, tests/unit/test_streaming.c
 */
#ifndef MEMD_INDEX_POSITIONS_H
#define MEMD_INDEX_POSITIONS_H

#include <stdbool.h>
#include <stdint.h>

struct error;

enum position_rule {
    POSITIONS_ORIGINAL,
    POSITIONS_CACHE_INDEX,
    POSITIONS_ZERO,
    POSITIONS_CONSTANT,
    POSITIONS_NONE,
    POSITIONS_STINGY, /* pick_place knows it as cache-index */
};

/* A method's parameter `positions` is a choice whose first name is "auto": the rule of the method's
 * source where keys are rotated by memd, original elsewhere. rules[choice] is what each name means,
 * rules[0] that of the source. */
enum position_rule positions_rule(const enum position_rule *rules, double choice, bool rotates);

/* May a context be opened with this choice? `owner` is the method, for the text. */
int positions_check(const char *owner, enum position_rule rule, bool rotates, struct error *err);

/* What is kept of a past: tokens 0 … sinks-1 and begin … limit-1, sinks ≤ begin ≤ limit. */
struct kept_range {
    uint64_t sinks, begin, limit;
};

/* Kept tokens before `position`, and positions between the limit and it. */
uint64_t positions_before(const struct kept_range *kept, uint64_t position);

/* How rows that are read next are rotated, and the query that they are read for. */
struct placement {
    enum position_rule rule;
    uint64_t query; /* position of the query; nothing under rule none */
    uint64_t shift; /* cache-index: the key of token t is at t - shift, modulo 2^64, so that keys
                     * can also be moved towards the query (Landmark's stingy positions) */
};

#endif
