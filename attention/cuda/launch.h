/* SPDX-License-Identifier: Apache-2.0 */
/* launch.h — what the kernels of attention/kernels/x.cu are asked to do.
 *
 * Work is a list. A *run* is up to LAUNCH_QUERIES query rows of one KV head over some rows of K and
 * V; the host cuts contexts, heads and long stretches into runs, so that one launch does everything
 * of a step whatever it consists of, with a block per run. Each run writes partials (o, lse) of its
 * own into a pool of them; a second launch merges, row by row, whichever of the pool belong
 * together: splits, window, retrieved rows, estimates of an index, the client's own window.
 *
 * Pointers are what the device can read: its own memory, or pinned memory of the host. A launch
 * only queues work on its stream, allocates nothing and waits for nothing, so that it can be
 * captured into a graph.
 *
 * Shapes   as commented; Q query rows (scaled, rotated, fp32), R rows of the pool
 * Types    K and V fp32 | fp16 | bf16 each; arithmetic and results fp32; natural log; the empty set
 *          is (0, -inf)
 * Limits   head_dim even, ≤ LAUNCH_HEAD_DIM; queries of a run 1 … LAUNCH_QUERIES
 * Errors   launchers: 0 or MEMD_EDEVICE. What a kernel does wrong is known when its stream is
 *          waited for
 * Tests    tests/simt/test_partial.c and its neighbours: emulated, against the references of the
 *          same base names and float64
 */
#ifndef MEMD_ATTENTION_CUDA_LAUNCH_H
#define MEMD_ATTENTION_CUDA_LAUNCH_H

#include <stdint.h>

enum { LAUNCH_QUERIES = 8, LAUNCH_HEAD_DIM = 256 };

/* Rotations of attention/rope.h in a form that needs no double: pair i turns by turns[i] / 2^64 of
 * a full turn per position, so that position * turns[i] modulo 2^64, which is what unsigned
 * multiplication gives, is the angle without its full turns, exactly. */
struct launch_rope {
    const uint64_t *turns; /* (rotary_dims / 2); NULL: nothing is rotated */
    uint32_t rotary_dims;
    uint32_t pairing;      /* enum rope_pairing */
    float magnitude;
};

/* K and V of a run, row t at base + t * stride. */
struct launch_rows {
    const void *k, *v;
    uint32_t k_stride_bytes, v_stride_bytes;
    uint32_t k_dtype, v_dtype; /* enum dtype */
};

struct partial_run {
    struct launch_rows rows;
    uint32_t count;    /* rows 0 … count-1, maybe none */
    uint32_t query;    /* first of the run's query rows */
    uint32_t queries;
    uint32_t result;   /* first of its rows in the pool; `queries` of them */
    uint64_t position; /* of row 0; query m sees rows at positions < limits[m] */
};

struct partial_launch {
    const struct partial_run *runs; /* (count) */
    uint32_t count, head_dim;
    const float *q;                 /* (Q, D) */
    const uint64_t *limits;         /* (Q) */
    float *o;                       /* (R, D) pool */
    float *lse;                     /* (R) */
};

struct gather_run {
    struct launch_rows rows;
    const uint32_t *ids;       /* (count) numbers of rows */
    const uint64_t *positions; /* (count) of these rows: what limits compare with, and RoPE */
    uint32_t count, query, queries, result; /* as above */
};

struct gather_launch {
    const struct gather_run *runs; /* (count) */
    uint32_t count, head_dim;
    struct launch_rope rope; /* of keys that are stored unrotated */
    const float *q;          /* (Q, D) */
    const uint64_t *limits;  /* (Q) */
    float *o;                /* (R, D) pool */
    float *lse;              /* (R) */
};

/* Row i of the answer is the merge of the pool's rows parts[begin[i]] … parts[begin[i + 1] - 1]. */
struct merge_launch {
    const uint32_t *begin; /* (count + 1) */
    const uint32_t *parts; /* (begin[count]) */
    uint32_t count, head_dim;
    const float *o, *lse;  /* (R, D), (R) pool */
    float *ret_o, *ret_lse; /* (count, D), (count) */
};

/* Rows to fp32, rotated by their positions and multiplied. */
struct rope_launch {
    const void *rows;          /* row t at rows + t * stride_bytes */
    uint32_t stride_bytes, dtype;
    const uint64_t *positions; /* (count) */
    uint32_t count, head_dim;
    struct launch_rope rope;
    float scale;
    float *out;                /* row t at out + t * out_stride, in floats */
    uint32_t out_stride;
};

/* Stages of progressive attention on a device, and their arguments: index/kernels/planes_launch.h,
 * which this folder knows by name alone. */
struct planes_launch;
enum planes_stage {
    PLANES_SCORE,
    PLANES_WEIGH,
    PLANES_JUDGE,
    PLANES_CHOOSE,
    PLANES_PICK,
    PLANES_DECODE,
    PLANES_STAGES
};

#ifdef __cplusplus
extern "C" {
#endif
/* stream: a cudaStream_t. A count of 0 is nothing to do. */
int partial_launch(const struct partial_launch *args, void *stream);
int gather_partial_launch(const struct gather_launch *args, void *stream);
int merge_launch(const struct merge_launch *args, void *stream);
int rope_launch(const struct rope_launch *args, void *stream);
int planes_score_launch(const struct planes_launch *args, void *stream);
int planes_weigh_launch(const struct planes_launch *args, void *stream);
int planes_judge_launch(const struct planes_launch *args, void *stream);
int planes_choose_launch(const struct planes_launch *args, void *stream);
int planes_pick_launch(const struct planes_launch *args, void *stream);
int planes_decode_launch(const struct planes_launch *args, void *stream);
#ifdef __cplusplus
}
#endif

/* The references, kernels/x.c: plain loops and double sums, on the host. That of partial_launch is
 * partial_ref (kernels/partial.h), run by run. */
void gather_partial_ref(const struct gather_launch *args);
void merge_ref(const struct merge_launch *args);
void rope_ref(const struct rope_launch *args);

#endif
