/* SPDX-License-Identifier: Apache-2.0 */
/* rotate.h — read keys that are stored unrotated: widen to fp32 and turn each row by its position.
 * Without a rope they are only widened.
 *
 * Shapes   rows: `count` rows of D elements, row i at rows + i * stride_bytes, any float dtype, any
 *          alignment, at position + i or at positions[i]; out (count, D) fp32
 * Cost     O(count * D); sin and cos only once per ROTATE_RUN rows
 * Errors   none: the caller has checked
 * Tests    tests/kernels/test_rotate.c against kernels/rotate.c
 */
#ifndef MEMD_ATTENTION_KERNELS_ROTATE_H
#define MEMD_ATTENTION_KERNELS_ROTATE_H

#include <stddef.h>
#include <stdint.h>

struct rope;

struct rotate_args {
    const struct rope *rope; /* NULL: no row is turned */
    size_t head_dim;         /* D, where rope is NULL */
    const void *rows;        /* (count, D) */
    size_t stride_bytes;
    uint32_t dtype; /* enum dtype */
    size_t count;
    uint64_t position; /* of row 0 */
    const uint64_t *positions; /* (count), not NULL: of each row instead */
    float *out;        /* (count, D) */
};

typedef void rotate_fn(const struct rotate_args *args);

rotate_fn rotate_ref, rotate_avx2, rotate_avx512, rotate_neon;

#endif
