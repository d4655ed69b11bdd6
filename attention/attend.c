/* SPDX-License-Identifier: Apache-2.0 */
/* attend.c — cut the work into tasks (KV head, block of queries, split of rows), run them, merge
 * the splits.
 *
 * How it is cut depends on the shapes only, never on the pool: the same question over the same
 * views gets the same bits on one thread and on many. Query blocks are as large as an L2 cache
 * allows (queries and accumulators stay in it while the rows stream by), so that a decode step
 * reads every row once and a batch of hundreds of queries a few times. Rows are split only while
 * there are too few tasks to feed a machine.
 *
 * Very large batches go through in waves, so that scratch is bounded (about 24 MiB) and not n * H *
 * D.
 *
 * Rejected: splits by thread count (answers that depend on the host), atomics on one shared
 * accumulator, keeping all scores (n * H * T floats) for a two-pass softmax.
 */
#include "attention/attend.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/cuda/accelerator.h"
#include "attention/scan.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"

enum {
    BLOCK_FLOATS = 32 * 1024, /* queries of one block times D: 128 KiB, as much again for acc */
    WAVE_FLOATS = 2 << 20,    /* queries of one wave times H * D: 8 MiB */
    TASKS_WANTED = 64,
    SPLIT_ROWS_MIN = 512,
};

/* One wave: some queries, everything their tasks share. */
struct wave {
    struct scan scan;
    const struct backend *backend;
    size_t block_queries, blocks; /* per KV head */
    size_t split_rows, splits;
    size_t rows;    /* of one split: queries * H, in the order of scan.q */
    float *o;       /* (splits, G, n, H/G, D) */
    float *lse;     /* (splits, G, n, H/G) */
    float *max, *sum; /* the same */
    uint32_t *visible; /* the same: every task has its own stretch */
};

static size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t at_least_one(size_t value)
{
    return value == 0 ? 1 : value;
}

/* How many queries of one KV head go over the rows together. */
static size_t block_queries(const struct attend_args *args)
{
    size_t group = args->q.shape[1] / args->kv_heads;
    return at_least_one(BLOCK_FLOATS / (group * args->q.shape[2]));
}

static size_t wave_queries(const struct attend_args *args)
{
    size_t wanted = at_least_one(WAVE_FLOATS / (args->q.shape[1] * args->q.shape[2]));
    size_t block = block_queries(args);
    wanted = divide_up(wanted, block) * block;
    return wanted < args->q.shape[0] ? wanted : args->q.shape[0];
}

/* Splits for `queries` queries over `rows` rows: a function of shapes only. */
static size_t split_count(const struct attend_args *args, size_t queries, size_t rows)
{
    size_t tasks = args->kv_heads * divide_up(queries, block_queries(args));
    size_t wanted = divide_up(TASKS_WANTED, tasks);
    size_t possible = at_least_one(rows / SPLIT_ROWS_MIN);
    return wanted < possible ? wanted : possible;
}

/* One task: idx = (g * blocks + block) * splits + split. */
static void run_task(void *arg, size_t idx)
{
    struct wave *wave = arg;
    struct scan *scan = &wave->scan;
    size_t split = idx % wave->splits, rest = idx / wave->splits;
    size_t g = rest / wave->blocks, first = rest % wave->blocks * wave->block_queries;
    size_t queries = scan->queries - first;
    if (queries > wave->block_queries) queries = wave->block_queries;
    size_t begin = split * wave->split_rows, end = begin + wave->split_rows;
    if (begin > scan->rows) begin = scan->rows;
    if (end > scan->rows) end = scan->rows;

    size_t row = (g * scan->queries + first) * scan->group; /* of scan.q */
    size_t at = split * wave->rows + row;                   /* of the split's results */
    struct partial out = { .o = wave->o + at * scan->head_dim, .lse = wave->lse + at,
                           .rows = queries * scan->group, .head_dim = scan->head_dim };
    struct partial_args args = { .q = scan->q + row * scan->head_dim, .visible = wave->visible + at,
                                 .queries = out.rows, .head_dim = scan->head_dim,
                                 .max = wave->max + at, .sum = wave->sum + at, .acc = out.o };
    memset(out.o, 0, out.rows * out.head_dim * sizeof *out.o);
    for (size_t m = 0; m < out.rows; m++) {
        args.max[m] = -INFINITY;
        args.sum[m] = 0.0F;
    }
    struct scan_cursor cursor;
    struct scan_run run;
    scan_open(&cursor, scan, g, begin, end);
    while (scan_next(&cursor, &run)) {
        for (size_t m = 0; m < out.rows; m++)
            wave->visible[at + m] = scan_visible(scan, first + m / scan->group, &run);
        args.k = run.k;
        args.v = run.v;
        args.k_stride_bytes = run.k_stride_bytes;
        args.v_stride_bytes = run.v_stride_bytes;
        args.k_dtype = run.k_dtype;
        args.v_dtype = run.v_dtype;
        args.tokens = run.rows;
        wave->backend->partial(&args);
    }
    partial_finish(args.max, args.sum, &out);
}

/* Merge the splits into the first one and put its rows in the caller's order (n, H). */
static void merge_splits(const struct wave *wave, const struct partial *ret_partial)
{
    const struct scan *scan = &wave->scan;
    size_t head_dim = scan->head_dim;
    struct partial into = { .o = wave->o, .lse = wave->lse, .rows = wave->rows,
                            .head_dim = head_dim };
    for (size_t split = 1; split < wave->splits; split++) {
        struct partial part = into;
        part.o += split * wave->rows * head_dim;
        part.lse += split * wave->rows;
        partial_merge(&into, &part);
    }
    for (size_t row = 0; row < wave->rows; row++) {
        size_t j = row % scan->group, i = row / scan->group % scan->queries;
        size_t g = row / (scan->group * scan->queries);
        size_t to = (scan->first + i) * scan->heads + g * scan->group + j;
        memcpy(ret_partial->o + to * head_dim, into.o + row * head_dim, head_dim * sizeof *into.o);
        ret_partial->lse[to] = into.lse[row];
    }
}

static int run_wave(struct wave *wave, const struct partial *ret_partial, struct error *err)
{
    struct scan *scan = &wave->scan;
    const struct attend_args *args = scan->args;
    wave->block_queries = block_queries(args);
    wave->blocks = divide_up(scan->queries, wave->block_queries);
    wave->splits = split_count(args, scan->queries, scan->rows);
    wave->split_rows = divide_up(scan->rows, wave->splits);
    wave->rows = scan->queries * scan->heads;
    pool_for(args->pool, args->kv_heads * wave->blocks * wave->splits, run_task, wave);
    int rc = scan_stopped(scan, err);
    if (rc == 0) merge_splits(wave, ret_partial);
    return rc;
}

/* Scratch for the largest wave: `rows` result rows over all splits. */
static int allocate(struct wave *wave, const struct attend_args *args, size_t rows, float **ret_q,
                    struct arena *arena, struct error *err)
{
    size_t head_dim = args->q.shape[2];
    size_t queries = wave_queries(args) * args->q.shape[1];
    float *q = arena_alloc_aligned(arena, queries * head_dim * sizeof *q, 64);
    wave->o = arena_alloc_aligned(arena, rows * head_dim * sizeof *wave->o, 64);
    wave->lse = arena_alloc(arena, rows * sizeof *wave->lse);
    wave->max = arena_alloc(arena, rows * sizeof *wave->max);
    wave->sum = arena_alloc(arena, rows * sizeof *wave->sum);
    wave->visible = arena_alloc(arena, rows * sizeof *wave->visible);
    if (q == NULL || wave->o == NULL || wave->lse == NULL || wave->max == NULL ||
        wave->sum == NULL || wave->visible == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for attention of %zu query heads over %zu "
                         "result rows", queries, rows);
    *ret_q = q;
    return 0;
}

static size_t view_tokens(const struct attend_args *args)
{
    size_t tokens = 0;
    for (size_t i = 0; i < args->view_count; i++) tokens += args->views[i].tokens;
    return tokens;
}

int attend(const struct attend_args *args, struct arena *arena, const struct partial *ret_partial,
           struct error *err)
{
    size_t queries = args->q.shape[0], heads = args->q.shape[1];
    assert(ret_partial->rows == queries * heads);
    assert(ret_partial->head_dim == args->q.shape[2]);
    size_t tokens = view_tokens(args);
    if (queries == 0) return 0;
    if (tokens == 0) {
        partial_clear(ret_partial);
        return 0;
    }
    if (args->device != NULL && args->device->answered) return 0;
    if (args->device != NULL) {
        int answered = accelerator_attend(args, ret_partial, err);
        if (answered != ACCELERATOR_DECLINED) return answered;
    }
    size_t step = wave_queries(args);
    size_t last = queries % step == 0 ? step : queries % step; /* the smallest wave splits most */
    size_t rows = step * split_count(args, step, tokens);
    size_t rows_last = last * split_count(args, last, tokens);
    if (rows < rows_last) rows = rows_last;
    struct wave wave = { .backend = backend_get() };
    float *q = NULL;
    int rc = allocate(&wave, args, rows * heads, &q, arena, err);
    for (size_t first = 0; rc == 0 && first < queries; first += step) {
        size_t count = queries - first < step ? queries - first : step;
        scan_init(&wave.scan, args, first, count, q);
        rc = run_wave(&wave, ret_partial, err);
    }
    return rc;
}
