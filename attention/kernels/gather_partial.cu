/* SPDX-License-Identifier: Apache-2.0 */
/* gather_partial.cu — attention over a list of rows: what an index picked, at most a few thousand.
 *
 * Rows lie anywhere behind a base address, in device memory or in pinned memory of the host; keys
 * that are stored unrotated are rotated by their positions while they come into shared memory.
 *
 * Grid     one block per run (a part of a list, of one KV head)
 * Block    rows.cuh; a row is still read by neighbouring threads together, so that 2 D bytes of it
 *          come in whole sectors wherever it lies
 * Shared   rows.cuh: 22 KB at D = 128
 *
 * Shapes, types: attention/cuda/launch.h. reference: gather_partial.c
 */
#include "attention/kernels/rows.cuh"

SIMT_KERNEL(gather_partial, struct gather_launch)
{
    SIMT_SHARED(float, shared);
    const struct gather_run *run = &args.runs[blockIdx.x];
    struct rows_task task;
    task.rows = run->rows;
    task.ids = run->ids;
    task.positions = run->positions;
    task.position = 0;
    task.count = run->count;
    task.queries = run->queries;
    task.head_dim = args.head_dim;
    task.rope = args.rope;
    task.q = args.q + (size_t)run->query * args.head_dim;
    task.limits = args.limits + run->query;
    task.o = args.o + (size_t)run->result * args.head_dim;
    task.lse = args.lse + run->result;
    rows_attend(&task, shared);
}

SIMT_LAUNCHER int gather_partial_launch(const struct gather_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(gather_partial, args->count, ROWS_THREADS,
                       rows_shared_bytes(args->head_dim), stream, *args);
}
