/* SPDX-License-Identifier: Apache-2.0 */
/* rotate_tile.h — rotate with carried angles, written once for all instruction sets.
 *
 * The angles of the next row follow from those of this row by one complex multiplication per pair,
 * in double: after ROTATE_RUN rows they have drifted by about 1e-14, far below fp32, and start
 * afresh from sin and cos. That is ten times cheaper than sin and cos per row and needs no table
 * over positions (at 128K tokens and 64 pairs: 64 MiB). Rows that are not neighbours are reached by
 * turns of 2, 4, 8 … positions, forwards or backwards, one multiplication for each bit of the gap:
 * chosen rows of a long past cost two to five times as much as a run. The loops are plain C, which
 * compilers vectorise with the flags of the including file.
 */
#ifndef MEMD_ATTENTION_KERNELS_ROTATE_TILE_H
#define MEMD_ATTENTION_KERNELS_ROTATE_TILE_H

#include <math.h>
#include <string.h>

#include "attention/kernels/rotate.h"
#include "attention/kernels/tile.h"
#include "attention/rope.h"

enum { ROTATE_RUN = 64, ROTATE_TURNS = 20 };

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

/* cos, sin (pairs) of what they advance by */
static void angles_advance(struct angles *restrict angles, const double *restrict cos,
                           const double *restrict sin, size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        double c = angles->cos[i], s = angles->sin[i];
        angles->cos[i] = c * cos[i] - s * sin[i];
        angles->sin[i] = s * cos[i] + c * sin[i];
    }
}

static void angles_retreat(struct angles *restrict angles, const double *restrict cos,
                           const double *restrict sin, size_t pairs)
{
    for (size_t i = 0; i < pairs; i++) {
        double c = angles->cos[i], s = angles->sin[i];
        angles->cos[i] = c * cos[i] + s * sin[i];
        angles->sin[i] = s * cos[i] - c * sin[i];
    }
}

/* Turns by 2^j positions; those that were needed so far. */
struct turns {
    size_t count;
    struct angles by[ROTATE_TURNS];
};

/* One more: twice the last one. */
static void turns_add(const struct rope *rope, struct turns *turns)
{
    size_t pairs = rope->rotary_dims / 2;
    struct angles *turn = &turns->by[turns->count];
    const double *cos = turns->count == 0 ? rope->step_cos : turn[-1].cos;
    const double *sin = turns->count == 0 ? rope->step_sin : turn[-1].sin;
    memcpy(turn->cos, cos, pairs * sizeof *cos);
    memcpy(turn->sin, sin, pairs * sizeof *sin);
    if (turns->count++ > 0) angles_advance(turn, cos, sin, pairs);
}

/* From the angles of one position to those of another, or afresh where it is far. */
static void angles_move(const struct rope *rope, struct turns *turns, uint64_t from, uint64_t to,
                        struct angles *angles)
{
    size_t pairs = rope->rotary_dims / 2;
    uint64_t gap = to > from ? to - from : from - to;
    if (to - from == 1) {
        angles_advance(angles, rope->step_cos, rope->step_sin, pairs);
        return;
    }
    if (gap >> ROTATE_TURNS != 0) {
        angles_at(rope, (double)to, angles);
        return;
    }
    for (size_t j = 0; gap >> j != 0; j++) {
        if (j == turns->count) turns_add(rope, turns);
        if ((gap >> j & 1) == 0) continue;
        if (to > from) angles_advance(angles, turns->by[j].cos, turns->by[j].sin, pairs);
        else angles_retreat(angles, turns->by[j].cos, turns->by[j].sin, pairs);
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

static size_t rotate_dim(const struct rotate_args *args)
{
    return args->rope == NULL ? args->head_dim : args->rope->head_dim;
}

static void rotate_rows(const struct rotate_args *args)
{
    const struct rope *rope = args->rope;
    struct rows rows = { args->rows, args->stride_bytes, args->dtype };
    tile_widen(&rows, args->count, rotate_dim(args), args->out);
    if (rope == NULL) return;
    size_t pairs = rope->rotary_dims / 2;
    struct angles now;
    struct turns turns;
    uint64_t position = 0;
    turns.count = 0;
    for (size_t row = 0; row < args->count; row++) {
        float *x = args->out + row * rope->head_dim;
        uint64_t before = position;
        position = args->positions == NULL ? args->position + row : args->positions[row];
        if (row % ROTATE_RUN == 0) angles_at(rope, (double)position, &now);
        else angles_move(rope, &turns, before, position, &now);
        if (rope->pairing == ROPE_PAIR_HALF)
            turn_halves(&now, rope->magnitude, x, x + pairs, pairs);
        else turn_neighbours(&now, rope->magnitude, x, pairs);
    }
}

#endif
