/* SPDX-License-Identifier: Apache-2.0 */
/* encode.h — the inner loops that make planes: rotate, project, code and pack (planes.h has the
 * layout).
 *
 * Rows are coded cluster by cluster, 16 at a time, so that everything but the rows themselves stays
 * in the first-level cache. Twins may sum in another order than the reference and
 * so differ by one code where a value lies on the border of two cells.
 *
 * Shapes   rows (count, D) fp32, contiguous; D a multiple of 8, ≤ 1024
 * Threads  pure
 * Errors   none: the caller has checked
 * Tests    tests/kernels/test_encode.c: every level against the reference
 */
#ifndef MEMD_INDEX_KERNELS_ENCODE_H
#define MEMD_INDEX_KERNELS_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ENCODE_ROWS = 16 }; /* of a tile */

/* The signed Hadamard rotation of rotation.h, in place. */
struct encode_rotate_args {
    float *rows; /* (count, D) */
    size_t count, head_dim;
    const uint8_t *signs[2]; /* (D / 8) bits of the first and of the second pass */
    bool invert;
};
typedef void encode_rotate_fn(const struct encode_rotate_args *args);

/* Some rows of a matrix. */
struct encode_rows {
    const float *rows;     /* (…, D) */
    const uint16_t *order; /* (count) */
    size_t count, head_dim;
};

/* ret_dots[i] = rows[order[i]] · direction. direction (D), ret_dots (count) */
typedef void encode_project_fn(const struct encode_rows *rows, const float *direction,
                               float *ret_dots);

/* ret_sum = Σ_i factors[i] rows[order[i]]. factors (count), ret_sum (D) */
typedef void encode_combine_fn(const struct encode_rows *rows, const float *factors,
                               float *ret_sum);

/* Rows as fp32, and sum += Σ of them. */
struct encode_load_args {
    const void *rows; /* (count, D), finite; may be out itself */
    size_t stride_bytes;
    uint32_t dtype; /* enum dtype */
    size_t count, head_dim;
    float *out; /* (count, D) */
    float *sum; /* (D) */
};
typedef void encode_load_fn(const struct encode_load_args *args);

/* One step of the power iteration: direction ← Σ_i (p_i - mean p) rows[order[i]], p_i = row_i ·
 * direction, factors brought to at most 1 (all 0 where all rows are equal). dots (count) scratch,
 * direction (D) */
typedef void encode_steer_fn(const struct encode_rows *rows, float *dots, float *direction);

/* Reorder `order` so that the smaller half of dots comes first, each half in the order it had. The
 * upper 22 bits of a dot count, then the row. dots (count) is destroyed; count ≤ 1024, even */
typedef void encode_split_fn(float *dots, uint16_t *order, size_t count);

/* rows = (rows - mean) * factor in place. ret_square (D) = Σ rows² before the factor */
struct encode_centre_args {
    float *rows; /* (count, D) */
    size_t count, head_dim;
    const float *mean, *factor; /* (D) */
    float *square;              /* (D) out */
};
typedef void encode_centre_fn(const struct encode_centre_args *args);

/* Where the codes go: of the first tile; those of the others follow. */
struct encode_tile {
    uint8_t *hi;    /* 8 D bytes per tile */
    uint16_t *step; /* fp16 per row */
    uint8_t *lo;    /* D / 2 bytes at lo + i * lo_stride_bytes, row i */
    size_t lo_stride_bytes;
    void *mean; /* (D) u8 codes of a centroid, or s8 codes of a mean value, per tile */
    float *mean_scale, *spread; /* one number per tile */
};

struct encode_keys_args {
    const float *rows;       /* (1024, D) keys in the metric they are clustered in */
    const uint16_t *order;   /* (count) */
    size_t count;            /* a multiple of 16 */
    const float *factor;     /* (D) from the metric into the space of codes, before rotation */
    const float *weight;     /* (D) of a square in the metric, for the spread */
    const uint8_t *signs[2]; /* as in encode_rotate_args */
    size_t head_dim;
    float *scratch; /* (17, D) */
    struct encode_tile tile;
};
typedef void encode_keys_fn(const struct encode_keys_args *args);

struct encode_values_args {
    const void *rows; /* (1024, D) as stored */
    size_t stride_bytes;
    uint32_t dtype;        /* enum dtype */
    const uint16_t *order; /* (count) */
    size_t count;          /* a multiple of 16 */
    const uint8_t *signs[2];
    size_t head_dim;
    float *scratch; /* (17, D) */
    struct encode_tile tile;
};
typedef void encode_values_fn(const struct encode_values_args *args);

encode_rotate_fn encode_rotate_ref, encode_rotate_avx2, encode_rotate_avx512, encode_rotate_neon;
encode_project_fn encode_project_ref, encode_project_avx2, encode_project_avx512,
    encode_project_neon;
encode_combine_fn encode_combine_ref, encode_combine_avx2, encode_combine_avx512,
    encode_combine_neon;
encode_load_fn encode_load_ref, encode_load_avx2, encode_load_avx512, encode_load_neon;
encode_steer_fn encode_steer_ref, encode_steer_avx2, encode_steer_avx512, encode_steer_neon;
encode_split_fn encode_split_ref, encode_split_avx2, encode_split_avx512, encode_split_neon;
encode_centre_fn encode_centre_ref, encode_centre_avx2, encode_centre_avx512, encode_centre_neon;
encode_keys_fn encode_keys_ref, encode_keys_avx2, encode_keys_avx512, encode_keys_neon;
encode_values_fn encode_values_ref, encode_values_avx2, encode_values_avx512, encode_values_neon;

/* The smallest fp16 ≥ value, for value ≥ 0; 0x7c00 (infinity) above 65504 and for NaN. */
uint16_t encode_step(float value);

#endif
