/* SPDX-License-Identifier: Apache-2.0 */
/* merge.cu — log-sum-exp merge of partials: row by row, whichever of the pool belong together.
 *
 * Splits of a run, the window, retrieved rows, estimates and the client's own partial are rows of
 * one pool, and an answer is a list of them: how many and of what kind makes no difference here.
 *
 * Grid     one block per row of the answer
 * Block    128 threads; every thread finds the largest lse and the sum by itself (the lists are
 *          short and come from the cache), then owns dimensions thread and thread + 128
 * Shared   none
 *
 * Two empty parts are the only trap: -inf - -inf. A list that is empty, or of empty parts, gives
 * (0, -inf). Of an empty part nothing but its lse is read: its o may never have been written.
 *
 * Shapes, types: attention/cuda/launch.h. reference: merge.c; the algebra: attention/softmax.h
 */
#include "attention/cuda/launch.h"
#include "attention/cuda/simt.h"

enum { MERGE_THREADS = 128 };

SIMT_KERNEL(merge, struct merge_launch)
{
    uint32_t begin = args.begin[blockIdx.x], end = args.begin[blockIdx.x + 1];
    float top = -INFINITY, sum = 0.0F;
    for (uint32_t i = begin; i < end; i++) top = fmaxf(top, args.lse[args.parts[i]]);
    bool empty = top == -INFINITY;
    for (uint32_t i = begin; i < end && !empty; i++) sum += expf(args.lse[args.parts[i]] - top);
    for (uint32_t d = threadIdx.x; d < args.head_dim; d += MERGE_THREADS) {
        float value = 0.0F;
        for (uint32_t i = begin; i < end && !empty; i++) {
            uint32_t part = args.parts[i];
            if (args.lse[part] == -INFINITY) continue; /* whatever stands there */
            value += expf(args.lse[part] - top) * args.o[(size_t)part * args.head_dim + d];
        }
        args.ret_o[(size_t)blockIdx.x * args.head_dim + d] = empty ? 0.0F : value / sum;
    }
    if (threadIdx.x == 0) args.ret_lse[blockIdx.x] = empty ? -INFINITY : top + logf(sum);
}

SIMT_LAUNCHER int merge_launch(const struct merge_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    return SIMT_LAUNCH(merge, args->count, MERGE_THREADS, 0, stream, *args);
}
