/* SPDX-License-Identifier: Apache-2.0 */
/* scan.h — how attend and every exact search go over the stored past: which queries together, which
 * rows.
 *
 * The queries of a call are regrouped so that all that share a KV head stand together, scaled,
 * rotated and in fp32: (G, n, H/G, D). A *block* is some consecutive queries of one KV head; the
 * rows of the views, numbered 0 … rows-1 over all views and cut at the largest limit, are handed
 * out in *runs*. Each row is read once per block. When the keys are stored unrotated, a run is a
 * tile of rotated fp32 keys instead of a pointer into the view.
 *
 * Memory   nothing is allocated: the caller brings `q`, a cursor has its tile inside (64 KiB of
 *          stack)
 * Threads  a scan is shared by many workers after scan_init; a cursor belongs to one
 * Errors   whatever `stop` or `admit` returned, from scan_stopped
 * Tests    tests/unit/test_attend.c, tests/unit/test_exact.c
 */
#ifndef MEMD_ATTENTION_SCAN_H
#define MEMD_ATTENTION_SCAN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/attend.h"

struct error;

struct scan {
    const struct attend_args *args;
    size_t heads, group; /* H, H / G */
    size_t head_dim;
    size_t queries; /* n of this scan: all of args, or a range of them */
    size_t first;   /* index in args of query 0 */
    uint64_t limit_max; /* largest limit of these queries */
    size_t rows;    /* over all views, cut at limit_max */
    float *q;       /* (G, n, H/G, D) scaled, rotated */
    unsigned parts; /* VIEW_K, VIEW_V: what is read of a run; both after scan_init */
    atomic_int stopped; /* 0, or the code that `stop` or `admit` gave */
};

/* Regroup the queries first … first + queries - 1 of args into q (queries * H * D floats). */
void scan_init(struct scan *scan, const struct attend_args *args, size_t first, size_t queries,
               float *q);

enum {
    SCAN_RUN_ROWS = 1024,    /* of one run at most: how often `stop` is asked */
    SCAN_TILE_FLOATS = 16384, /* of rotated keys: 64 KiB, in an L2 cache */
};

/* Consecutive rows of one view. */
struct scan_run {
    const void *k, *v;
    size_t k_stride_bytes, v_stride_bytes;
    uint32_t k_dtype, v_dtype; /* enum dtype */
    size_t rows;
    uint64_t position; /* of row 0 */
};

/* Rows begin … end-1 of one KV head. Lives on the worker's stack; do not copy. */
struct scan_cursor {
    struct scan *scan;
    const struct view *view, *view_end;
    size_t view_row;  /* next row of *view */
    size_t left;      /* rows until `end` */
    _Alignas(64) float tile[SCAN_TILE_FLOATS]; /* rotated keys (rows, D) */
};

void scan_open(struct scan_cursor *cursor, struct scan *scan, size_t kv_head, size_t begin,
               size_t end);

/* The next run; false at the end or when the scan was stopped. */
bool scan_next(struct scan_cursor *cursor, struct scan_run *ret_run);

/* May these rows of a view be read? False stops the scan. For who reads single rows beside it;
 * scan_next has asked. */
bool scan_admit(struct scan *scan, const struct view *view, size_t row, size_t count,
                unsigned parts);

/* How many rows of a run does query `i` of the scan see? */
uint32_t scan_visible(const struct scan *scan, size_t i, const struct scan_run *run);

/* 0, or the code that ended the scan, with a text. */
int scan_stopped(struct scan *scan, struct error *err);

#endif
