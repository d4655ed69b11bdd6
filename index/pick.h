/* SPDX-License-Identifier: Apache-2.0 */
/* pick.h — answers from chosen rows: what every index shares that picks tokens and reads them
 * exactly.
 *
 * A call is cut into tasks, one per query and KV head; a task names sets of positions, disjoint and
 * below the query's limit, and pick reads them: into the running softmax of attend, or into the
 * heaps of search. So the choice of an index is written once for both, and all indexes count what
 * they read in the same place.
 *
 *     middle = pick_steady(pick, sinks, window, covered);    reads the rows that are always read
 *     … choose among middle.begin … middle.end - 1 …
 *     pick_list(pick, PICK_GROUP, positions, count);
 *
 * Rows and query are rotated at their positions. A call that `places` starts with the unrotated
 * query instead and says with pick_place where the query and the rows that it reads next are taken
 * to be (positions.h); so it may read several sets, each under a rule of its own.
 *
 * A query of a batch is a task of its own: these indexes are asked by decoding, one query at a
 * time.
 *
 * Shapes   as index.h; views ascending from position 0 without gaps (rows.h)
 * Memory   scratch of all tasks of a wave from the arena, some MiB at most
 * Threads  tasks run on the pool; a task's functions are called by that task only
 * Errors   MEMD_ENOMEM · what `stop` or a task returns
 * Quality  set to "all was read exactly"; a task that leaves rows out says so with pick_dropped, or
 *          writes pick->mass and pick->predicted itself
 * Tests    tests/unit/test_streaming.c
 */
#ifndef MEMD_INDEX_PICK_H
#define MEMD_INDEX_PICK_H

#include "index/index.h"
#include "index/plan.h"
#include "index/positions.h"
#include "index/rows.h"
#include "index/topk.h"

struct arena;
struct error;
struct pick;

struct pick_call {
    const struct index_args *args;
    int (*task)(struct pick *pick, struct error *err);
    size_t scratch_bytes;  /* for each task */
    bool places;           /* tasks call pick_place before they read; memd rotates the keys */
    const void *version;   /* whatever the tasks need */
    const double *options;
    /* one of the two */
    const struct partial *partial; /* attend: rows = n * H */
    const struct index_hits *hits; /* search: k ≥ 1 */
    struct index_quality *quality; /* may be NULL, and so may its arrays */
    struct plan *plan; /* not NULL: what is read is written down, one task after the other */
};

/* One query of one KV head, on one thread. */
struct pick {
    const struct pick_call *call;
    struct rows rows;
    size_t kv_head, query, group, head_dim;
    uint64_t limit;  /* the query sees positions below; at most the tokens there are */
    const float *q;  /* (group, D) scaled, rotated (where the task placed it) */
    const float *unplaced; /* (group, D) scaled; with `places`: unrotated */
    float *placed;   /* (group, D) with `places` */
    uint64_t turned; /* position that `placed` is rotated to, or PLAN_UNPLACED */
    struct placement placement; /* of what is read next */
    const struct rope *at_zero; /* rotates a key at position 0, NULL: which is the key itself */
    float *max, *sum; /* (group) attend: the running state of kernels/partial.h */
    float *acc;       /* (group, D) attend: the same */
    struct topk *top; /* (group) search */
    uint32_t *visible; /* (group) scratch of pick.c */
    float *mass;       /* (group, INDEX_LEVELS) */
    float *predicted;  /* (group) */
    void *scratch;     /* 64-byte aligned */
    uint64_t read_rows[INDEX_LEVELS], read_bytes[INDEX_LEVELS];
    int stopped; /* what `stop` returned: reading has ended early */
};

/* A running softmax of the group that rows can be read into apart from that of the answer. */
struct pick_state {
    float *max, *sum; /* (group) */
    float *acc;       /* (group, D) */
};

/* Rows that are not of the layer: means, projections. */
struct pick_given {
    const float *k, *v; /* (count, D) fp32, not rotated where memd rotates */
    size_t count;
    uint64_t place;     /* keys are rotated at place, place + 1, …, as the placement's rule says */
    uint64_t id;        /* of the first, for the plan (PLAN_SLOTS) */
};

/* Positions that an index may choose among. */
struct pick_middle {
    uint64_t begin, end;
};

#define PICK_GROUP SIZE_MAX /* all query heads of the KV head */

int pick_run(const struct pick_call *call, struct arena *arena, struct error *err);

/* Where the query and the rows that are read from now on stand. */
void pick_place(struct pick *pick, struct placement placement);

/* All rows begin … end-1, for every head of the group. */
void pick_range(struct pick *pick, uint64_t begin, uint64_t end);
/* The same for one head (0 … group-1), or PICK_GROUP. */
void pick_span(struct pick *pick, size_t head, uint64_t begin, uint64_t end);

/* The rows at `positions` for one head (0 … group-1) or PICK_GROUP. */
void pick_list(struct pick *pick, size_t head, const uint64_t *positions, size_t count);

/* What pick_steady leaves in between; reads nothing. */
struct pick_middle pick_middle(const struct pick *pick, uint64_t sinks, uint64_t window,
                               uint64_t covered);

/* Read the first `sinks` rows, the last `window`, and everything from `covered` on. What is left in
 * between is for the index. */
struct pick_middle pick_steady(struct pick *pick, uint64_t sinks, uint64_t window,
                               uint64_t covered);

/* Rows in memory of the caller, for one head or PICK_GROUP; counted as exact rows. Attend only. */
void pick_rows(struct pick *pick, size_t head, const struct pick_given *given);

/* The rows at `positions`, whose scores for one head are known: their values are read, their keys
 * were (pick_scores, which counted them). */
void pick_scored(struct pick *pick, size_t head, const uint64_t *positions, const float *scores,
                 size_t count);

/* From now on rows are read into `state`, which is cleared; returns where they went before. */
struct pick_state pick_apart(struct pick *pick, struct pick_state state);
/* Back again. */
void pick_together(struct pick *pick, struct pick_state before);

/* Scores of consecutive rows for every head of the group, counted as exact rows read.
 * ret_scores (group, count) */
void pick_scores(struct pick *pick, uint64_t begin, size_t count, float *ret_scores);

/* Join a state over other rows to that of a head: max, sum, acc (D) as in kernels/partial.h. */
void pick_merge(struct pick *pick, size_t head, float max, float sum, const float *acc);

/* Rows were left out for one head (0 … group-1) or PICK_GROUP, and nobody looked at them: error and
 * mass are unknown (NaN). */
void pick_dropped(struct pick *pick, size_t head);

void pick_count(struct pick *pick, enum index_level level, uint64_t rows, uint64_t bytes);

#endif
