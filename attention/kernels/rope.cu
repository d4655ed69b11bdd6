/* SPDX-License-Identifier: Apache-2.0 */
/* rope.cu — rows widened to fp32, rotated by their positions and multiplied: queries before a step,
 * unrotated keys when they enter the resident window.
 *
 * Grid     one block per 4 rows: a warp per row
 * Block    128 threads; a lane takes every 32nd pair, then every 32nd of the dimensions that are
 *          not rotated
 * Shared   none
 *
 * Shapes, types: attention/cuda/launch.h. reference: rope.c
 */
#include "attention/kernels/turn.cuh"

enum { ROPE_THREADS = 128, ROPE_ROWS = ROPE_THREADS / SIMT_WARP };

SIMT_KERNEL(rope, struct rope_launch)
{
    unsigned row = blockIdx.x * ROPE_ROWS + threadIdx.x / SIMT_WARP;
    if (row >= args.count) return;
    const void *from = (const unsigned char *)args.rows + (size_t)row * args.stride_bytes;
    float *to = args.out + (size_t)row * args.out_stride;
    uint32_t pairs = args.rope.turns == NULL ? 0 : args.rope.rotary_dims / 2;
    for (unsigned i = threadIdx.x % SIMT_WARP; i < pairs; i += SIMT_WARP) {
        struct turned_pair pair =
            turn_load(&args.rope, i, args.positions[row], from, args.dtype);
        to[pair.a] = args.scale * pair.x;
        to[pair.b] = args.scale * pair.y;
    }
    for (unsigned d = 2 * pairs + threadIdx.x % SIMT_WARP; d < args.head_dim; d += SIMT_WARP)
        to[d] = args.scale * simt_load(from, args.dtype, d);
}

SIMT_LAUNCHER int rope_launch(const struct rope_launch *args, void *stream)
{
    if (args->count == 0) return 0;
    uint32_t grid = (args->count + ROPE_ROWS - 1) / ROPE_ROWS;
    return SIMT_LAUNCH(rope, grid, ROPE_THREADS, 0, stream, *args);
}
