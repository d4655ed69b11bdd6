/* SPDX-License-Identifier: Apache-2.0 */
/* simt.h — one kernel source for the GPU and for the CPU.
 *
 * A kernel file (kernels/x.cu) is plain C in the words of CUDA: threadIdx, __syncthreads,
 * __shfl_xor_sync, __dp4a. nvcc compiles it for the device. A C compiler compiles the same text as
 * C17, and tests/simt/emulator.c runs it: every thread of a block is a fiber, barriers count
 * arrivals, shuffles exchange through two alternating slots. So kernels are tested, under
 * sanitizers too, on machines without a GPU, which is where nearly all changes to them are made.
 *
 * What the emulation cannot show: races between blocks, divergent shuffle masks, memory ordering,
 * speed. Instructions that it does not know (tensor cores, asynchronous copies) therefore belong
 * into a second kernel beside the plain one, never into it.
 *
 * Rules for kernel files
 *     - the common subset of C17 and C++17: casts are written out, no compound literals;
 *     - a kernel is SIMT_KERNEL(name, struct its_launch) with one argument `args`, a struct by
 *       value, the same that its launcher gets; SIMT_LAUNCH(name, …) in the SIMT_LAUNCHER of the
 *       file starts it;
 *     - SIMT_SHARED(type, name) is the one dynamic array of shared memory of the block, whose bytes
 *       the launch says; carve it up by hand. The emulator fills it with NaN before every block;
 *     - 16-bit floats are uint16_t and are widened by simt_load.
 *
 * Errors   launchers return 0 or MEMD_EDEVICE: the device refused the launch (its reason is the
 *          runtime's last error). Emulated: a barrier that not all threads reach, a write behind
 *          shared memory (tests/simt/emulator.h)
 * Tests    tests/simt
 */
#ifndef MEMD_ATTENTION_CUDA_SIMT_H
#define MEMD_ATTENTION_CUDA_SIMT_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "base/tensor.h"

enum { SIMT_WARP = 32 };
#define SIMT_ALL 0xFFFFFFFFU /* all lanes of a warp */

#ifdef __CUDACC__

#include <cuda_fp16.h>

#define SIMT_DEVICE static __device__ inline
#define SIMT_LAUNCHER extern "C"
#define SIMT_UNROLL _Pragma("unroll")
#define SIMT_KERNEL(name, type) static __global__ void name##_kernel(const type args)
#define SIMT_SHARED(type, name)                      \
    extern __shared__ unsigned char simt_shared_[];  \
    type *name = (type *)(void *)simt_shared_
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, args)                           \
    (kernel##_kernel<<<(grid), (block), (shared_bytes), (cudaStream_t)(stream)>>>(args),       \
     cudaPeekAtLastError() == cudaSuccess ? 0 : (int)MEMD_EDEVICE)

SIMT_DEVICE float simt_from_fp16(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}

#else

#define SIMT_DEVICE static inline
#define SIMT_LAUNCHER
#define SIMT_UNROLL
#define SIMT_KERNEL(name, type)                   \
    static void name##_kernel(const type args);   \
    static void name##_thread(const void *args)   \
    {                                             \
        name##_kernel(*(const type *)args);       \
    }                                             \
    static void name##_kernel(const type args)
#define SIMT_SHARED(type, name) type *name = (type *)simt_here.shared
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, args) \
    ((void)(stream), simt_launch(kernel##_thread, &(args), (grid), (block), (shared_bytes)))

/* What the running fiber is. Set by the emulator before it continues; read by kernels. */
struct simt_coordinate {
    unsigned x;
};
struct simt_here {
    struct simt_coordinate thread, block, block_dim, grid_dim;
    void *shared;
};
extern struct simt_here simt_here;

#define threadIdx simt_here.thread
#define blockIdx simt_here.block
#define blockDim simt_here.block_dim
#define gridDim simt_here.grid_dim

/* One launch of `grid` blocks of `block` threads, one after another. Returns 0 or MEMD_EDEVICE. */
int simt_launch(void (*thread)(const void *args), const void *args, unsigned grid, unsigned block,
                size_t shared_bytes);
/* All threads of the block arrive before any goes on. `line` is where it stands in the source. */
void simt_barrier(int line);
/* Lane L gives `value` and gets that of lane L ^ lane_mask. All 32 lanes take part. */
uint32_t simt_exchange(uint32_t value, unsigned lane_mask);

SIMT_DEVICE float simt_exchange_float(float value, unsigned lane_mask)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = simt_exchange(bits, lane_mask);
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define __syncthreads() simt_barrier(__LINE__)
#define __shfl_xor_sync(mask, value, lane_mask) \
    ((void)(mask), simt_exchange_float(value, lane_mask))

/* Four signed bytes times four signed bytes, added to sum. */
SIMT_DEVICE int __dp4a(int a, int b, int sum)
{
    for (int shift = 0; shift < 32; shift += 8)
        sum += (int)(int8_t)((unsigned)a >> shift) * (int)(int8_t)((unsigned)b >> shift);
    return sum;
}

/* sin and cos of pi x. */
SIMT_DEVICE void sincospif(float x, float *ret_sin, float *ret_cos)
{
    const double pi = 3.14159265358979323846;
    *ret_sin = (float)sin(pi * (double)x);
    *ret_cos = (float)cos(pi * (double)x);
}

/* Threads are fibers of one thread: nothing comes in between. */
SIMT_DEVICE unsigned long long atomicAdd(unsigned long long *at, unsigned long long more)
{
    unsigned long long before = *at;
    *at = before + more;
    return before;
}

SIMT_DEVICE float simt_from_fp16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000U) << 16, magnitude = bits & 0x7FFFU;
    uint32_t wide = magnitude << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    value *= 0x1p112F; /* the exponents lie 112 apart; subnormals come out right */
    if (magnitude >= 0x7C00U) value = magnitude == 0x7C00U ? INFINITY : NAN;
    memcpy(&wide, &value, sizeof wide);
    wide |= sign;
    memcpy(&value, &wide, sizeof value);
    return value;
}

#endif

SIMT_DEVICE float simt_from_bf16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Element d of a row, widened. The branch is the same for all threads of a block. */
SIMT_DEVICE float simt_load(const void *row, uint32_t dtype, unsigned d)
{
    if (dtype == DTYPE_FP16) return simt_from_fp16(((const uint16_t *)row)[d]);
    if (dtype == DTYPE_BF16) return simt_from_bf16(((const uint16_t *)row)[d]);
    return ((const float *)row)[d];
}

/* Over the 32 lanes of a warp; every lane gets the result, and the same bits. */
SIMT_DEVICE float simt_warp_max(float value)
{
    for (unsigned lane = SIMT_WARP / 2; lane > 0; lane /= 2)
        value = fmaxf(value, __shfl_xor_sync(SIMT_ALL, value, lane));
    return value;
}

SIMT_DEVICE float simt_warp_sum(float value)
{
    for (unsigned lane = SIMT_WARP / 2; lane > 0; lane /= 2)
        value += __shfl_xor_sync(SIMT_ALL, value, lane);
    return value;
}

#endif
