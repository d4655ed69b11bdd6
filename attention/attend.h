/* SPDX-License-Identifier: Apache-2.0 */
/* attend.h — exact attention of a batch of queries over views of the stored past.
 *
 * Computes the partial (o, lse) of softmax.h over all tokens of the views that lie below each
 * query's limit. Rotates queries and keys on the fly when the views hold unrotated keys. Does not
 * choose tokens, does not know storage.
 *
 * Shapes   q (n, H, D) of any float dtype; positions, limits (n); out.o (n, H, D), out.lse (n, H)
 *          views: view_count per KV head, views[g * view_count + i], the same tokens for every g
 * Types    k, v fp32 | fp16 | bf16; arithmetic and results fp32; natural log
 * Cost     O(n H T D); each K and V row is read once per block of queries of its KV head; split
 *          over `pool` by KV head and by runs of rows, the splits merged exactly
 * Memory   nothing retained; scratch from `arena`
 * Threads  any, concurrently; the views stay pinned by the caller for the call
 *          An accelerator is asked first where there is one; the result is the same but for the
 *          order of sums
 * Errors   MEMD_ENOMEM arena limit · MEMD_ECANCELLED / MEMD_EDEADLINE by `stop` · by `admit`
 * Tests    tests/unit/test_attend.c, tests/golden; oracle kernels/partial.c
 */
#ifndef MEMD_ATTENTION_ATTEND_H
#define MEMD_ATTENTION_ATTEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/softmax.h"
#include "attention/view.h"
#include "base/tensor.h"

struct accelerator;
struct arena;
struct error;
struct pool;
struct rope;
struct window;

/* A device that is asked before the CPU (attention/cuda/accelerator.h), and what came of it. Of one
 * call at a time. */
struct attend_device {
    struct accelerator *accelerator;
    struct window *window; /* of these very rows, or NULL: all of them have to travel */
    bool insist; /* asked for by name: however many rows have to travel, they do */
    /* What else is stored of the same layer, where the views of the call are a part of it: the
     * window is filled from all of it. NULL: the views are all. */
    const struct attend_args *whole;
    /* It was asked already, together with others (accelerator_attend_all): the answer is in the
     * memory that attend is given. */
    bool answered;
    uint64_t resident; /* out: tokens below the limits that were read where they are */
};

struct attend_args {
    struct tensor q;            /* (n, H, D) */
    const uint64_t *positions;  /* (n), for rope; may be NULL when rope is */
    const uint64_t *limits;     /* (n): a query sees tokens at positions < limit */
    float scale;
    const struct rope *rope;    /* not NULL: views and q are unrotated, rotate both while reading */
    const struct view *views;   /* (G, view_count) */
    size_t kv_heads, view_count;
    struct pool *pool;          /* NULL: this thread alone */
    struct attend_device *device; /* asked before the CPU; NULL: the CPU alone */
    /* Asked now and then on any worker: a non-zero code ends the work with that error. May be
     * NULL. */
    int (*stop)(void *arg);
    void *stop_arg;
    /* Asked before rows row … row + count - 1 of a view are read, K (VIEW_K), V (VIEW_V) or both,
     * on any worker, for every run of rows: a non-zero code ends the work with that error, and no
     * byte of them was used. NULL: all rows may be read. */
    int (*admit)(void *arg, const struct view *view, size_t row, size_t count, unsigned parts);
    void *admit_arg;
};

/* out: rows = n * H, memory of the caller. */
int attend(const struct attend_args *args, struct arena *arena, const struct partial *ret_partial,
           struct error *err);

#endif
