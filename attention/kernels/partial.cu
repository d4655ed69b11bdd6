/* SPDX-License-Identifier: Apache-2.0 */
/* partial.cu — split-K flash decoding: attention of query rows over runs of rows, a block per run.
 *
 * Grid     one block per run; the host splits long stretches into runs, so that a single token over
 *          a long window still fills the device (Flash-Decoding), and merges them by merge.cu
 * Block    rows.cuh: 128 threads, all query heads of a KV head over each row together
 * Shared   rows.cuh: 22 KB at D = 128
 * Reads    K and V once per run, whatever the number of its query rows
 *
 * Shapes, types: attention/cuda/launch.h. reference: partial.c
 */
#include "attention/kernels/rows.cuh"

SIMT_KERNEL(partial, struct partial_launch)
{
    SIMT_SHARED(float, shared);
    const struct partial_run *run = &args.runs[blockIdx.x];
    struct rows_task task;
    task.rows = run->rows;
    task.ids = NULL;
    task.positions = NULL;
    task.position = run->position;
    task.count = run->count;
    task.queries = run->queries;
    task.head_dim = args.head_dim;
    task.rope.turns = NULL;
    task.q = args.q + (size_t)run->query * args.head_dim;
    task.limits = args.limits + run->query;
    task.o = args.o + (size_t)run->result * args.head_dim;
    task.lse = args.lse + run->result;
    rows_attend(&task, shared);
}

SIMT_LAUNCHER int partial_launch(const struct partial_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(partial, args->count, ROWS_THREADS, rows_shared_bytes(args->head_dim),
                       stream, *args);
}
