/* SPDX-License-Identifier: Apache-2.0 */
/* planes_launch.h — progressive attention on a device, from planes (index/planes.h) that are
 * resident there: what its kernels are asked to do.
 *
 * Where the CPU opens clusters one by one, a device reads K-hi and V-hi of every token: memory
 * bandwidth is what it has, and rounds of choosing are what it has not. Nothing is left shut then,
 * and the only error is that of codes, which is known (progressive_refine.c). So the same rule
 * picks the same kind of tokens to be read again, at 8 bits or exactly:
 *
 *     score    K-hi of a segment for all query rows              -> scores
 *     weigh    V-hi by the weights of tokens that stay at hi      -> a partial of the pool
 *     …        partials of the window; merge.cu                   -> the answer so far
 *     judge    what each token's codes move that answer by        -> a histogram per query row
 *     choose   thresholds that leave what the target allows       -> two numbers per query row
 *     pick     tokens at and above them: levels, lists, and runs for partial.cu and
 *              gather_partial.cu
 *     decode   tokens at 8 bits                                   -> fp32 rows
 *     weigh    again, where tokens were picked: without them
 *     …        partial.cu over decoded rows, gather_partial.cu over exact rows (pinned memory of
 *              the host), merge.cu                                -> the answer
 *
 * All partials are in the space of queries and values as they are; the rotation of codes is undone
 * inside.
 *
 * Shapes   P runs: a segment of one KV head with up to LAUNCH_QUERIES query rows; Q query rows
 * Limits   D a multiple of 8, ≤ LAUNCH_HEAD_DIM; PLANES_LO_ROWS tokens of a run at 8 bits, further
 *          ones are read exactly where rows are there, and stay at hi where they are not
 * Quality  left: e² per run and query row that stays; sqrt of its sum over runs is the predicted
 *          relative error. Shares of the softmax mass follow from the lse of the partials
 * Tests    tests/simt/test_planes.c against planes.c and float64
 */
#ifndef MEMD_INDEX_KERNELS_PLANES_LAUNCH_H
#define MEMD_INDEX_KERNELS_PLANES_LAUNCH_H

#include <stdint.h>

#include "attention/cuda/launch.h"
#include "index/planes.h"

enum {
    PLANES_LO_ROWS = 32,
    PLANES_BINS = 1024, /* of e²: quarter octaves, as BLOCK_BINS */
};

enum planes_level { PLANES_AT_HI, PLANES_AT_LO, PLANES_AT_EXACT };

struct planes_run {
    const unsigned char *hi; /* payload HI, device */
    const unsigned char *lo; /* payload LO, device or pinned; NULL: none */
    struct launch_rows rows; /* rows 0 … 1023 as stored, pinned; k NULL: none */
    uint64_t position;       /* of row 0 */
    uint32_t query, queries;
    uint32_t result;         /* first of 3 * queries rows of the pool: hi, lo, exact */
};

struct planes_launch {
    const struct planes_run *runs; /* (P) */
    uint32_t count, head_dim, queries; /* P, D, Q */
    struct planes_layout layout;
    const uint8_t *signs; /* (2, 128) rotation_signs */
    const float *q;       /* (Q, D) */
    float target;         /* relative error that codes may leave */
    uint32_t again;       /* weigh: only runs with picked tokens */

    float *scores;        /* (P, 8, 1024) */
    float *square;        /* (P, 8) |q'|² */
    uint8_t *levels;      /* (P, 1024) enum planes_level, by place */
    uint32_t *picked;     /* (P) tokens that do not stay at hi */
    float *left;          /* (P, 8) */
    unsigned long long *histogram; /* (Q, PLANES_BINS) tokens with such an e² */
    float *thresholds;    /* (Q, 2): of e², for lo and for exact */
    const float *total_o, *total_lse; /* (Q, D), (Q): the answer so far */
    float *decoded;       /* (P, PLANES_LO_ROWS, 2, D): K and V */
    uint16_t *lo_places;  /* (P, PLANES_LO_ROWS) */
    struct partial_run *lo_runs;    /* (P) over decoded rows */
    struct gather_run *exact_runs;  /* (P) */
    uint32_t *exact_ids;            /* (P, 1024) */
    uint64_t *exact_positions;      /* (P, 1024) */
    float *o, *lse;       /* (R, D), (R) pool */
};

/* The launchers are in launch.h. The references, planes.c: */
void planes_score_ref(const struct planes_launch *args);
void planes_weigh_ref(const struct planes_launch *args);
void planes_judge_ref(const struct planes_launch *args);
void planes_choose_ref(const struct planes_launch *args);
void planes_pick_ref(const struct planes_launch *args);
void planes_decode_ref(const struct planes_launch *args);

#endif
