/* SPDX-License-Identifier: Apache-2.0 */
/* plane.h — the inner loops over planes.h: score and weigh tiles of 16 tokens for all query heads
 * of a KV head at once.
 *
 * The coded dot products are integers: queries are int8 (one scale per query head and segment),
 * K-hi codes unsigned nibbles, so a tile is a handful of multiply-adds (vpmaddubsw, vpdpbusd) with
 * a lane per token, and no sum goes across lanes.
 *
 *     score[m][i] = scale[m] * step_i * (dot(code_i, q8[m]) - 7.5 * sum[m]) + offset[m]
 *
 * Shapes   M query rows that share the KV head; tiles: `count` numbers of tiles (0 … 63) of one
 *          segment, ascending, or NULL for 0 … count-1; results of the i-th tile of the list stand
 *          at [m * stride + 16 i …]; stride in floats, a multiple of 16, rows 64-byte aligned
 * Types    results fp32
 * Errors   none: the caller has checked (planes_open)
 * Threads  pure
 * Tests    tests/kernels/test_plane.c: every level against the reference, all D that are multiples
 *          of 8, odd lists
 */
#ifndef MEMD_INDEX_KERNELS_PLANE_H
#define MEMD_INDEX_KERNELS_PLANE_H

#include <stddef.h>
#include <stdint.h>

enum {
    PLANE_TILE = 16,  /* tokens of a tile, or centroids */
    PLANE_TILES = 64, /* of a segment */
};

/* Number of the `at`-th tile of a list. */
static inline size_t plane_tile(const uint16_t *tiles, size_t at)
{
    return tiles == NULL ? at : tiles[at];
}

/* The queries of one block in the space of one segment. */
struct plane_queries {
    const int8_t *q8;     /* (M, D) codes of q', |code| ≤ 127 */
    const float *scale;   /* (M) q' ≈ scale * q8; the attention scale is in it */
    const float *offset;  /* (M) attention scale * q · key_mean */
    const int32_t *sum;   /* (M) Σ_d q8 */
    size_t count;         /* M ≥ 1 */
    size_t head_dim;      /* D, a multiple of 8 */
};

/* Query rows into the space of a segment: q' = H S (q / balance), rounded to int8, and what goes
 * with them. Every segment has its own balance of channels and its own mean. */
struct plane_turn_args {
    const float *q;                        /* (M, D), the attention scale in it */
    const float *balance, *key_mean;       /* (D) */
    const float *query_square;             /* (D) of the observed queries; NULL: all alike */
    float floor;                           /* least query_square that counts, of their mean */
    const uint8_t *signs[2];               /* rotation.h */
    size_t queries, head_dim;
    float *turned;                         /* (M, D) out: q' */
    int8_t *q8;                            /* (M, D) out: q' ≈ scale * q8 */
    float *scale, *offset;                 /* (M) out: offset = q · key_mean */
    float *deviation;                      /* (M) out: sqrt(mean of q² / query_square) */
    float *square;                         /* (M) out: |q'|² */
    int32_t *sum;                          /* (M) out: Σ q8 */
};
typedef void plane_turn_fn(const struct plane_turn_args *args);

struct plane_score_args {
    const struct plane_queries *queries;
    const uint8_t *key_hi;     /* K-hi of the segment */
    const uint16_t *key_scale; /* (1024) fp16: 16 s, the step of hi */
    const uint16_t *tiles;     /* (count) or NULL */
    size_t count, stride;
    const uint8_t *soon;       /* codes that are read next, asked for meanwhile; or NULL */
    float *scores;             /* (M, stride) out */
};
typedef void plane_score_fn(const struct plane_score_args *args);

struct plane_centroid_args {
    const struct plane_queries *queries;
    const uint8_t *centroids; /* 7-bit codes: value = scale (n - 63.5) */
    const float *scale;       /* (64) */
    const uint8_t *soon;      /* as many codes that are scored next, fetched meanwhile; or NULL */
    float *scores;            /* (M, 64) out */
};
typedef void plane_centroid_fn(const struct plane_centroid_args *args);

/* The same of some centroids only, whose codes lie row by row; the others are not read, and their
 * scores stay. */
struct plane_dot_args {
    const struct plane_queries *queries;
    uint64_t clusters;   /* bits */
    const uint8_t *codes; /* (64, D) */
    const float *scale;  /* (64) */
    float *scores;       /* (M, 64) out, where the bit is set */
};
typedef void plane_dot_fn(const struct plane_dot_args *args);

/* Something is added to 64 scores of each query row, and which of them are large enough is told as
 * bits: a stream of scores of which few are wanted is looked through without a branch for each. */
struct plane_above_args {
    float *scores;      /* (M, 64) in, out: scores + extra */
    const float *extra; /* (64); NULL: nothing is added, and nothing written */
    const float *least; /* (M) */
    size_t queries;
    uint64_t *above;    /* (M) out: bit i where score i ≥ least */
};
typedef void plane_above_fn(const struct plane_above_args *args);

/* What a cluster may hold. s is the deviation of the scores inside it, deviation[m] *
 * sqrt(key_spread[c]), and its logarithms are
 *
 *     of its mass per token  centre + min(s², spread_most) / 2
 *     of its priority        centre + min(deviations * s, above_most)
 */
struct plane_reach {
    float spread_most, deviations, above_most;
};

/* The largest of both logarithms in a segment. */
struct plane_rank_args {
    struct plane_reach reach;
    const float *centre;     /* (M, 64) scores of the centroids */
    const float *deviation;  /* (M) */
    const float *key_spread; /* (64) ≥ 0 */
    size_t queries;
    float *mass_top, *priority_top; /* (M) out */
};
typedef void plane_rank_fn(const struct plane_rank_args *args);

/* Logarithms of priorities over a shift below this count as this. */
#define PLANE_RANK_LEAST (-87.0F)

/* Both logarithms over a shift (they are at most 0 then), exponentials of them, of those of
 * priorities roughly (attention/kernels/exp_roughly.h); times sqrt(value_spread). */
struct plane_estimate_args {
    struct plane_reach reach;
    const float *centre;                     /* (M, 64) */
    const float *deviation;                  /* (M) */
    const float *key_spread, *value_spread;  /* (64) ≥ 0 */
    const float *mass_shift, *priority_shift; /* (M) */
    size_t queries;
    float *mass, *priority; /* (M, 64) out; masses may take the place of centre */
    float *mass_sum, *priority_sum, *priority_top;   /* (M) out, of the 64 */
};
typedef void plane_estimate_fn(const struct plane_estimate_args *args);

/* scores → weights exp(score - shift[m]) in place, with their sums and sums of squares per tile.
 * score - shift ≤ 40, so that squares are finite; below -88 the weight is 0. */
struct plane_soften_args {
    float *scores;      /* (M, stride) in, weights out */
    const float *shift; /* (M) */
    size_t queries, count, stride; /* tiles */
    float *tile_sum;    /* (M, count) out: Σ w */
    float *tile_square; /* (M, count) out: Σ w² */
};
typedef void plane_soften_fn(const struct plane_soften_args *args);

/* acc += Σ w * residual over the tiles of the list, in the space of values. Weights are rounded to
 * 8 bits against the largest of their tile: they weigh residuals only (docs/decisions/0035). */
struct plane_weigh_args {
    const float *weights;        /* (M, stride), ≥ 0 */
    const uint8_t *value_hi;     /* V-hi of the segment */
    const uint16_t *value_scale; /* (1024) fp16: 16 s */
    const uint16_t *tiles;       /* (count) or NULL */
    size_t queries, head_dim, count, stride;
    const uint8_t *soon;         /* codes that are read next, asked for meanwhile; or NULL */
    float *acc;                  /* (M, D) in, out */
};
typedef void plane_weigh_fn(const struct plane_weigh_args *args);

/* acc += Σ_c mass_c * mean_c over some of the 64 clusters of a segment; the others are not read. */
struct plane_means_args {
    uint64_t clusters;  /* bits */
    const float *mass;  /* (M, 64) */
    const int8_t *means; /* (64, D) */
    const float *scale;  /* (64) */
    size_t queries, head_dim;
    float *acc;          /* (M, D) in, out */
};
typedef void plane_means_fn(const struct plane_means_args *args);

/* What the estimates of some clusters are off by once those were read, of one query row: each by
 * e = values + more (mean - output); the squares of these, and their weighted sum. */
struct plane_miss_args {
    const float *values;        /* (count, stride): Σ w * residual */
    const float *means;         /* (count, D) */
    const float *output;        /* (D) */
    const float *more, *weight; /* (count) */
    size_t count, stride, head_dim;
    float *sum;                 /* (D) out: Σ weight e */
    float *square;              /* (count) out: |e|² */
};
typedef void plane_miss_fn(const struct plane_miss_args *args);

/* One token at 8 bits, still in the spaces of codes: k' (without key_mean) and the residual of v'
 * (without the cluster's mean). */
struct plane_row_args {
    const uint8_t *key_hi, *value_hi, *lo;
    const uint16_t *key_scale, *value_scale;
    size_t place, head_dim;
    float *k, *v; /* (D) out */
};
typedef void plane_row_fn(const struct plane_row_args *args);

plane_turn_fn plane_turn_ref, plane_turn_avx2, plane_turn_avx512, plane_turn_neon;
plane_score_fn plane_score_ref, plane_score_avx2, plane_score_vnni, plane_score_neon;
plane_centroid_fn plane_centroid_ref, plane_centroid_avx2, plane_centroid_vnni, plane_centroid_neon;
plane_dot_fn plane_dot_ref, plane_dot_avx2, plane_dot_avx512, plane_dot_neon;
plane_above_fn plane_above_ref, plane_above_avx2, plane_above_avx512, plane_above_neon;
plane_rank_fn plane_rank_ref, plane_rank_avx2, plane_rank_avx512, plane_rank_neon;
plane_estimate_fn plane_estimate_ref, plane_estimate_avx2, plane_estimate_avx512,
    plane_estimate_neon;
plane_soften_fn plane_soften_ref, plane_soften_avx2, plane_soften_avx512, plane_soften_neon;
plane_weigh_fn plane_weigh_ref, plane_weigh_avx2, plane_weigh_vnni, plane_weigh_neon;
plane_means_fn plane_means_ref, plane_means_avx2, plane_means_avx512, plane_means_neon;
plane_miss_fn plane_miss_ref, plane_miss_avx2, plane_miss_avx512, plane_miss_neon;
plane_row_fn plane_row_ref, plane_row_avx2, plane_row_neon;

#endif
