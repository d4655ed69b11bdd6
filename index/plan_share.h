/* SPDX-License-Identifier: Apache-2.0 */
/* plan_share.h — how much of an answer each run of its plan is: what "why was this read" comes down
 * to.
 *
 * The share of a run is the softmax mass of its rows, rotated as the plan says, in the softmax that
 * they entered, times the weight of its group. Rows of a method's state are not here to be scored:
 * NaN.
 *
 *     joint     of the answer's lse, where nothing is gated; so what clusters estimate is left over
 *     gated     of the group's own softmax, times its weight; what all gates of a head leave is the
 *               weight of its joint rows
 *     separate  of the group's own softmax
 *
 * Cost     as exact attention over the rows of the plan without their values, one thread, plainly
 * Threads  pure
 * Errors   MEMD_ENOMEM · what `stop` or `admit` of args return
 * Tests    tests/unit/test_plan_share.c
 */
#ifndef MEMD_INDEX_PLAN_SHARE_H
#define MEMD_INDEX_PLAN_SHARE_H

struct arena;
struct attend_args;
struct error;
struct plan;

/* Fill in `share` of all runs: the mean over the heads of a run. lse (n, H) of the answer. */
int plan_share(struct plan *plan, const struct attend_args *args, const float *lse,
               struct arena *arena, struct error *err);

#endif
