/* SPDX-License-Identifier: Apache-2.0 */
/* rotate_tile.h — rotate with carried angles, written once for all instruction sets.
 *
 * The angles of the next row follow from those of this row by one complex multiplication per pair,
 * in double: after ROTATE_RUN rows they have drifted by about 1e-14, far below fp32, and start
 * afresh from sin and cos. That is ten times cheaper than sin and cos per row and needs no table
 * over positions (at 128K tokens and 64 pairs: 64 MiB). The loops are plain C, which compilers
 * vectorise with the flags of the including file.
 */
#ifndef MEMD_ATTENTION_KERNELS_ROTATE_TILE_H
#define MEMD_ATTENTION_KERNELS_ROTATE_TILE_H

#include <math.h>

#include "attention/kernels/rotate.h"
#include "attention/kernels/tile.h"
#include "attention/rope.h"

enum { ROTATE_RUN = 64 };

/* cos and sin of every pair, without magnitude. */
struct angles {
    double cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
};

static void angles_at(const struct rope *rope, double position, struct angles *ret_angles)
{
    for (size_t i = 0; i < rope->rotary_dims / 2; i++) {
        double angle = position * rope->inv_freq[i];
        ret_angles->cos[i] = cos(angle);
        ret_angles->sin[i] = sin(angle);
    }
}

static void angles_advance(const struct rope *restrict rope, struct angles *restrict angles)
{
    size_t pairs = rope->rotary_dims / 2;
    for (size_t i = 0; i < pairs; i++) {
        double c = angles->cos[i], s = angles->sin[i];
        angles->cos[i] = c * rope->step_cos[i] - s * rope->step_sin[i];
        angles->sin[i] = s * rope->step_cos[i] + c * rope->step_sin[i];
    }
}

/* a, b (pairs): the two halves of a row */
static void turn_halves(const struct angles *restrict angles, double magnitude, float *restrict a,
                        float *restrict b, size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        float c = (float)(angles->cos[i] * magnitude), s = (float)(angles->sin[i] * magnitude);
        float x = a[i], y = b[i];
        a[i] = x * c - y * s;
        b[i] = y * c + x * s;
    }
}

/* x (2 * pairs) */
static void turn_neighbours(const struct angles *restrict angles, double magnitude,
                            float *restrict x, size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        float c = (float)(angles->cos[i] * magnitude), s = (float)(angles->sin[i] * magnitude);
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = b * c + a * s;
    }
}

static void rotate_rows(const struct rotate_args *args)
{
    const struct rope *rope = args->rope;
    size_t pairs = rope->rotary_dims / 2;
    struct rows rows = { args->rows, args->stride_bytes, args->dtype };
    tile_widen(&rows, args->count, rope->head_dim, args->out);
    struct angles now;
    for (size_t row = 0; row < args->count; row++) {
        float *x = args->out + row * rope->head_dim;
        if (row % ROTATE_RUN == 0) angles_at(rope, (double)(args->position + row), &now);
        else angles_advance(rope, &now);
        if (rope->pairing == ROPE_PAIR_HALF)
            turn_halves(&now, rope->magnitude, x, x + pairs, pairs);
        else turn_neighbours(&now, rope->magnitude, x, pairs);
    }
}

#endif
