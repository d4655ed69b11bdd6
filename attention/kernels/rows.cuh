/* SPDX-License-Identifier: Apache-2.0 */
/* rows.cuh — one block's attention of up to 8 query rows over some rows of K and V, each row read
 * once: what partial.cu and gather_partial.cu share.
 *
 * Block    128 threads. Rows go by in tiles of 32:
 *              keys      all threads bring the tile into shared memory, widened to fp32 and rotated
 *              scores    a warp owns query rows warp and warp + 4; a lane is a row of the tile, so
 *                        that the largest score and the sum of weights are one warp reduction each
 *              values    a thread owns dimensions thread and thread + 128 of all query rows; values
 *                        come straight from memory, neighbours read neighbours
 *          with one barrier behind keys and one behind scores. Keys may be overwritten as soon as
 *          scores are done, weights as soon as the next keys have come: no third barrier.
 * Shared   q (8, D), keys (32, D + 1), weights (8, 32), scale (8): 42.3 KB at D = 256. The odd
 *          stride of keys lets 32 lanes read 32 rows without a bank conflict.
 * State    online softmax (arXiv 1805.02867 algorithm 3): the largest score so far and the sum in
 *          the registers of the warp that owns the query row, sums of values in those of the thread
 *          that owns the dimension.
 *
 * A block with D < 128 leaves threads idle over the values; what that costs is not yet measured on
 * a GPU.
 */
#ifndef MEMD_ATTENTION_KERNELS_ROWS_CUH
#define MEMD_ATTENTION_KERNELS_ROWS_CUH

#include "attention/cuda/launch.h"
#include "attention/cuda/simt.h"
#include "attention/kernels/turn.cuh"

enum {
    ROWS_THREADS = 128,
    ROWS_WARPS = ROWS_THREADS / SIMT_WARP,
    ROWS_TILE = SIMT_WARP,
    ROWS_OWNED = LAUNCH_QUERIES / ROWS_WARPS,         /* query rows of a warp */
    ROWS_DIMS = LAUNCH_HEAD_DIM / ROWS_THREADS,       /* dimensions of a thread */
};

struct rows_task {
    struct launch_rows rows;
    const uint32_t *ids;       /* (count), or NULL: rows 0 … count - 1 */
    const uint64_t *positions; /* (count), or NULL: position + row */
    uint64_t position;
    uint32_t count, queries, head_dim;
    struct launch_rope rope;
    const float *q;         /* (queries, D) */
    const uint64_t *limits; /* (queries) */
    float *o, *lse;         /* (queries, D), (queries) */
};

struct rows_shared {
    float *q;       /* (8, D) */
    float *keys;    /* (32, D + 1) */
    float *weights; /* (8, 32) */
    float *scale;   /* (8): what sums so far are worth now */
};

/* Registers of a thread. */
struct rows_state {
    float max[ROWS_OWNED], sum[ROWS_OWNED];
    float acc[LAUNCH_QUERIES][ROWS_DIMS];
};

static inline size_t rows_shared_bytes(uint32_t head_dim)
{
    size_t floats = (size_t)LAUNCH_QUERIES * head_dim + (size_t)ROWS_TILE * (head_dim + 1) +
                    LAUNCH_QUERIES * ROWS_TILE + LAUNCH_QUERIES;
    return floats * sizeof(float);
}

SIMT_DEVICE struct rows_shared rows_carve(float *shared, uint32_t head_dim)
{
    struct rows_shared at;
    at.q = shared;
    at.keys = at.q + (size_t)LAUNCH_QUERIES * head_dim;
    at.weights = at.keys + (size_t)ROWS_TILE * (head_dim + 1);
    at.scale = at.weights + LAUNCH_QUERIES * ROWS_TILE;
    return at;
}

SIMT_DEVICE const void *rows_at(const struct rows_task *task, const void *base,
                                uint32_t stride_bytes, uint32_t row)
{
    size_t number = task->ids == NULL ? row : task->ids[row];
    return (const unsigned char *)base + number * stride_bytes;
}

SIMT_DEVICE uint64_t rows_position(const struct rows_task *task, uint32_t row)
{
    return task->positions == NULL ? task->position + row : task->positions[row];
}

SIMT_DEVICE void rows_begin(const struct rows_task *task, const struct rows_shared *shared,
                            struct rows_state *state)
{
    for (unsigned i = threadIdx.x; i < task->queries * task->head_dim; i += ROWS_THREADS)
        shared->q[i] = task->q[i];
    SIMT_UNROLL
    for (unsigned i = 0; i < ROWS_OWNED; i++) {
        state->max[i] = -INFINITY;
        state->sum[i] = 0.0F;
    }
    SIMT_UNROLL
    for (unsigned m = 0; m < LAUNCH_QUERIES; m++) {
        SIMT_UNROLL
        for (unsigned i = 0; i < ROWS_DIMS; i++) state->acc[m][i] = 0.0F;
    }
}

/* Rows first … first + rows - 1 into shared memory. */
SIMT_DEVICE void rows_bring_keys(const struct rows_task *task, const struct rows_shared *shared,
                                 uint32_t first, uint32_t rows)
{
    uint32_t dims = task->head_dim, dtype = task->rows.k_dtype, stride = task->rows.k_stride_bytes;
    uint32_t pairs = task->rope.turns == NULL ? 0 : task->rope.rotary_dims / 2;
    for (unsigned i = threadIdx.x; i < rows * pairs; i += ROWS_THREADS) {
        unsigned row = i / pairs;
        const void *key = rows_at(task, task->rows.k, stride, first + row);
        uint64_t position = rows_position(task, first + row);
        struct turned_pair pair = turn_load(&task->rope, i % pairs, position, key, dtype);
        shared->keys[row * (dims + 1) + pair.a] = pair.x;
        shared->keys[row * (dims + 1) + pair.b] = pair.y;
    }
    uint32_t plain = dims - 2 * pairs;
    for (unsigned i = threadIdx.x; i < rows * plain; i += ROWS_THREADS) {
        unsigned row = i / plain, d = 2 * pairs + i % plain;
        const void *key = rows_at(task, task->rows.k, stride, first + row);
        shared->keys[row * (dims + 1) + d] = simt_load(key, dtype, d);
    }
}

/* The tile's scores for the query rows of this warp: weights, and what was summed before scaled. */
SIMT_DEVICE void rows_score(const struct rows_task *task, const struct rows_shared *shared,
                            struct rows_state *state, uint32_t first, uint32_t rows)
{
    unsigned lane = threadIdx.x % SIMT_WARP;
    SIMT_UNROLL
    for (unsigned i = 0; i < ROWS_OWNED; i++) {
        unsigned m = threadIdx.x / SIMT_WARP + i * ROWS_WARPS;
        if (m >= task->queries) break;
        float score = -INFINITY;
        if (lane < rows && rows_position(task, first + lane) < task->limits[m]) {
            const float *q = shared->q + m * task->head_dim;
            const float *key = shared->keys + lane * (task->head_dim + 1);
            score = 0.0F;
            for (unsigned d = 0; d < task->head_dim; d++) score += q[d] * key[d];
        }
        float top = fmaxf(state->max[i], simt_warp_max(score));
        bool empty = top == -INFINITY; /* no -inf - -inf */
        float weight = empty ? 0.0F : expf(score - top);
        float scale = empty ? 1.0F : expf(state->max[i] - top);
        state->sum[i] = state->sum[i] * scale + simt_warp_sum(weight);
        state->max[i] = top;
        shared->weights[m * ROWS_TILE + lane] = weight;
        if (lane == 0) shared->scale[m] = scale;
    }
}

/* The tile's values, by their weights, into the dimensions of this thread. */
SIMT_DEVICE void rows_weigh(const struct rows_task *task, const struct rows_shared *shared,
                            struct rows_state *state, uint32_t first, uint32_t rows)
{
    SIMT_UNROLL
    for (unsigned i = 0; i < ROWS_DIMS; i++) {
        unsigned d = threadIdx.x + i * ROWS_THREADS;
        if (d >= task->head_dim) break;
        SIMT_UNROLL
        for (unsigned m = 0; m < LAUNCH_QUERIES; m++)
            if (m < task->queries) state->acc[m][i] *= shared->scale[m];
        for (unsigned row = 0; row < rows; row++) {
            const void *from = rows_at(task, task->rows.v, task->rows.v_stride_bytes, first + row);
            float value = simt_load(from, task->rows.v_dtype, d);
            SIMT_UNROLL
            for (unsigned m = 0; m < LAUNCH_QUERIES; m++)
                if (m < task->queries)
                    state->acc[m][i] += shared->weights[m * ROWS_TILE + row] * value;
        }
    }
}

/* (o, lse) of the query rows. */
SIMT_DEVICE void rows_end(const struct rows_task *task, const struct rows_shared *shared,
                          const struct rows_state *state)
{
    __syncthreads(); /* scale was read by the last tile */
    SIMT_UNROLL
    for (unsigned i = 0; i < ROWS_OWNED; i++) {
        unsigned m = threadIdx.x / SIMT_WARP + i * ROWS_WARPS;
        if (m >= task->queries || threadIdx.x % SIMT_WARP != 0) break;
        bool empty = state->max[i] == -INFINITY;
        shared->scale[m] = empty ? 0.0F : 1.0F / state->sum[i];
        task->lse[m] = empty ? -INFINITY : state->max[i] + logf(state->sum[i]);
    }
    __syncthreads();
    SIMT_UNROLL
    for (unsigned i = 0; i < ROWS_DIMS; i++) {
        unsigned d = threadIdx.x + i * ROWS_THREADS;
        if (d >= task->head_dim) break;
        SIMT_UNROLL
        for (unsigned m = 0; m < LAUNCH_QUERIES; m++)
            if (m < task->queries)
                task->o[(size_t)m * task->head_dim + d] = state->acc[m][i] * shared->scale[m];
    }
}

SIMT_DEVICE void rows_attend(const struct rows_task *task, float *memory)
{
    struct rows_shared shared = rows_carve(memory, task->head_dim);
    struct rows_state state;
    rows_begin(task, &shared, &state);
    for (uint32_t first = 0; first < task->count; first += ROWS_TILE) {
        uint32_t rows = task->count - first < ROWS_TILE ? task->count - first : ROWS_TILE;
        rows_bring_keys(task, &shared, first, rows);
        __syncthreads();
        rows_score(task, &shared, &state, first, rows);
        __syncthreads();
        rows_weigh(task, &shared, &state, first, rows);
    }
    rows_end(task, &shared, &state);
}

#endif
