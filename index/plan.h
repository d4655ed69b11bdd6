/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h — the reading plan of an answer, kept where somebody asked for it: which rows were read,
 * at which positions, for which heads, and how they entered the softmax.
 *
 * It is written while rows are read (pick.h), so it is what happened and not what was meant. Rows
 * that follow each other, in the past and in their places, are one run. Runs of a group entered the
 * softmax together:
 *
 *     joint     with everything else (group 0)
 *     gated     the softmax of the group alone, times `weight` (Landmark)
 *     separate  the answer is of these rows alone; the client joins it by a gate of its own
 *
 * Memory   arrays of the arena, of fixed capacity; what does not fit sets `cut`
 * Threads  one: a call that keeps a plan runs its tasks one after the other
 * Tests    tests/unit/test_plan.c
 */
#ifndef MEMD_INDEX_PLAN_H
#define MEMD_INDEX_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;
struct error;

enum { PLAN_RUNS_MAX = 65536, PLAN_GROUPS_MAX = 65536 };
#define PLAN_UNPLACED UINT64_MAX /* not rotated at all */

enum plan_merge { PLAN_JOINT, PLAN_GATED, PLAN_SEPARATE };

/* What the ids of a run count. */
enum plan_kind {
    PLAN_TOKENS, /* positions in the layer */
    PLAN_SLOTS,  /* entries of the method's state */
};

struct plan_run {
    uint32_t query, head, heads; /* query heads head … head + heads - 1 of a query */
    uint32_t group;
    enum plan_kind kind;
    uint64_t first, count;       /* ids */
    uint64_t placed;             /* where key `first` was rotated, the others behind it; or
                                  * PLAN_UNPLACED */
    uint64_t query_placed;       /* where the query was rotated */
    float share; /* of the answer, mean of its heads; NaN until plan_share.h looks at it, and where
                  * that cannot tell */
};

struct plan_group {
    uint32_t query, head; /* PLAN_GATED: of one query head */
    enum plan_merge merge;
    float weight;         /* share of the answer that the group has; 1 for joint and separate */
};

struct plan {
    struct plan_run *runs;     /* (PLAN_RUNS_MAX) */
    struct plan_group *groups; /* (PLAN_GROUPS_MAX); group 0 is joint */
    size_t run_count, group_count;
    uint32_t group; /* that runs are of from now on */
    bool cut;       /* more was read than fits */
};

int plan_init(struct plan *plan, struct arena *arena, struct error *err);

/* A run was read; joined to the last one where it continues it. */
void plan_add(struct plan *plan, const struct plan_run *run);

/* From now on runs are of a group of their own; its number, 0 where there is no room. */
uint32_t plan_begin(struct plan *plan, uint32_t query, uint32_t head, enum plan_merge merge);
void plan_end(struct plan *plan); /* of group 0 again */
void plan_weigh(struct plan *plan, uint32_t group, float weight);

#endif
