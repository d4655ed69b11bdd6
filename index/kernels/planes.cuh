/* SPDX-License-Identifier: Apache-2.0 */
/* planes.cuh — what the kernels of planes.cu share: where things stand in a payload, sums over a
 * tile, the rotation of codes.
 */
#ifndef MEMD_INDEX_KERNELS_PLANES_CUH
#define MEMD_INDEX_KERNELS_PLANES_CUH

#include "attention/cuda/simt.h"
#include "index/kernels/planes_launch.h"

enum {
    RUN_THREADS = 128,
    RUN_WARPS = RUN_THREADS / SIMT_WARP,
    RUN_OWNED = LAUNCH_QUERIES / RUN_WARPS,     /* query rows of a warp */
    RUN_DIMS = LAUNCH_HEAD_DIM / RUN_THREADS,   /* dimensions of a thread */
    HALF = PLANES_CLUSTER,                      /* lanes of a tile */
};
#define NIBBLES 0x0F0F0F0FU
#define LO_SHARE (1.0F / 256.0F) /* of hi's error, squared */

/* Sum over the 16 lanes of a tile; every one of them gets it. */
SIMT_DEVICE float tile_sum(float value)
{
    for (unsigned lane = HALF / 2; lane > 0; lane /= 2)
        value += __shfl_xor_sync(SIMT_ALL, value, lane);
    return value;
}

SIMT_DEVICE float tile_least(float value)
{
    for (unsigned lane = HALF / 2; lane > 0; lane /= 2)
        value = fminf(value, __shfl_xor_sync(SIMT_ALL, value, lane));
    return value;
}

SIMT_DEVICE const float *floats_at(const struct planes_run *run, size_t offset)
{
    return (const float *)(const void *)(run->hi + offset);
}

SIMT_DEVICE float step_of(const struct planes_run *run, size_t offset, unsigned place)
{
    return simt_from_fp16(((const uint16_t *)(const void *)(run->hi + offset))[place]);
}

SIMT_DEVICE uint32_t word_at(const unsigned char *bytes, size_t word)
{
    return ((const uint32_t *)(const void *)bytes)[word];
}

/* The rotation of index/rotation.h, or its inverse, of `count` rows (count, D) in shared memory.
 * The inverse begins with a barrier, both end with one. */
SIMT_DEVICE void rotate_rows(const struct planes_launch *args, float *rows, uint32_t count,
                             bool invert)
{
    uint32_t dims = args->head_dim, size = 8;
    while (size * 2 <= dims) size *= 2;
    uint32_t passes = size < dims ? 2 : 1;
    float norm = 1.0F / sqrtf((float)size);
    for (uint32_t i = 0; i < passes; i++) {
        uint32_t pass = invert ? passes - 1 - i : i, base = pass == 0 ? 0 : dims - size;
        const uint8_t *signs = args->signs + pass * 128;
        for (uint32_t at = threadIdx.x; at < count * size && !invert; at += RUN_THREADS) {
            uint32_t d = at % size;
            float *x = rows + at / size * dims + base + d;
            if ((signs[d / 8] >> d % 8 & 1) != 0) *x = -*x;
        }
        for (uint32_t half = 1; half < size; half *= 2) {
            __syncthreads();
            for (uint32_t at = threadIdx.x; at < count * size / 2; at += RUN_THREADS) {
                uint32_t pair = at % (size / 2), d = pair / half * 2 * half + pair % half;
                float *x = rows + at / (size / 2) * dims + base + d;
                float a = x[0], b = x[half];
                x[0] = a + b;
                x[half] = a - b;
            }
        }
        __syncthreads();
        for (uint32_t at = threadIdx.x; at < count * size; at += RUN_THREADS) {
            uint32_t d = at % size;
            float *x = rows + at / size * dims + base + d;
            bool negated = invert && (signs[d / 8] >> d % 8 & 1) != 0;
            *x *= negated ? -norm : norm;
        }
        __syncthreads();
    }
}

#endif
