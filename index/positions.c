/* SPDX-License-Identifier: Apache-2.0 */
/* positions.c — counting kept tokens, and the one sentence with which other rules are refused. */
#include "index/positions.h"

#include <assert.h>
#include <stddef.h>

#include "base/error.h"

static const char *const names[] = {
    [POSITIONS_ORIGINAL] = "original", [POSITIONS_CACHE_INDEX] = "cache-index",
    [POSITIONS_ZERO] = "zero",         [POSITIONS_CONSTANT] = "constant",
    [POSITIONS_NONE] = "none",         [POSITIONS_STINGY] = "stingy",
};

enum position_rule positions_rule(const enum position_rule *rules, double choice, bool rotates)
{
    if (choice == 0.0 && !rotates) return POSITIONS_ORIGINAL;
    return rules[(size_t)choice];
}

int positions_check(const char *owner, enum position_rule rule, bool rotates, struct error *err)
{
    if (rotates || rule == POSITIONS_ORIGINAL) return 0;
    return error_set(err, MEMD_EUNSUPPORTED,
                     "%s: positions is %s, which needs keys that memd rotates: a model with a rope "
                     "and without rotated; this model's keys come as they are and stay at their "
                     "original positions",
                     owner, names[rule]);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

uint64_t positions_before(const struct kept_range *kept, uint64_t position)
{
    assert(kept->sinks <= kept->begin && kept->begin <= kept->limit);
    uint64_t before = least(position, kept->sinks);
    if (position > kept->begin) before += least(position, kept->limit) - kept->begin;
    if (position > kept->limit) before += position - kept->limit;
    return before;
}
