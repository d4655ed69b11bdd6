/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c — two arrays that are filled from the front. */
#include "index/plan.h"

#include <assert.h>
#include <math.h>

#include "base/arena.h"
#include "base/error.h"

int plan_init(struct plan *plan, struct arena *arena, struct error *err)
{
    *plan = (struct plan){
        .runs = arena_alloc(arena, PLAN_RUNS_MAX * sizeof *plan->runs),
        .groups = arena_alloc(arena, PLAN_GROUPS_MAX * sizeof *plan->groups),
    };
    if (plan->runs == NULL || plan->groups == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for a reading plan");
    plan->groups[plan->group_count++] = (struct plan_group){ .merge = PLAN_JOINT, .weight = 1 };
    return 0;
}

static bool continues(const struct plan_run *last, const struct plan_run *run)
{
    bool same = last->query == run->query && last->head == run->head &&
                last->heads == run->heads && last->group == run->group &&
                last->kind == run->kind && last->query_placed == run->query_placed;
    if (!same || last->first + last->count != run->first) return false;
    if (last->placed == PLAN_UNPLACED) return run->placed == PLAN_UNPLACED;
    return last->placed + last->count == run->placed;
}

void plan_add(struct plan *plan, const struct plan_run *run)
{
    if (run->count == 0) return;
    struct plan_run entry = *run;
    entry.group = plan->group;
    entry.share = NAN;
    struct plan_run *last = plan->run_count == 0 ? NULL : &plan->runs[plan->run_count - 1];
    if (last != NULL && continues(last, &entry)) {
        last->count += entry.count;
        return;
    }
    plan->cut = plan->cut || plan->run_count == PLAN_RUNS_MAX;
    if (!plan->cut) plan->runs[plan->run_count++] = entry;
}

uint32_t plan_begin(struct plan *plan, uint32_t query, uint32_t head, enum plan_merge merge)
{
    assert(plan->group == 0 && merge != PLAN_JOINT);
    plan->cut = plan->cut || plan->group_count == PLAN_GROUPS_MAX;
    if (plan->group_count == PLAN_GROUPS_MAX) return 0;
    plan->group = (uint32_t)plan->group_count++;
    plan->groups[plan->group] = (struct plan_group){ .query = query, .head = head, .merge = merge,
                                                     .weight = 1 };
    return plan->group;
}

void plan_end(struct plan *plan)
{
    plan->group = 0;
}

void plan_weigh(struct plan *plan, uint32_t group, float weight)
{
    if (group != 0) plan->groups[group].weight = weight;
}
