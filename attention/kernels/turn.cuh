/* SPDX-License-Identifier: Apache-2.0 */
/* turn.cuh — one pair of a vector, rotated by its position.
 *
 * The angle is formed in integers: a full turn is 2^64, so the product of position and turns wraps
 * around exactly where whole turns fall away. Its two top bits are the nearest quarter, the rest,
 * at most an eighth of a turn either way, goes into fp32 with an error below 2^-26 turns. A float
 * angle at position 10^6 would be off by 0.06 rad, and doubles are slow on most devices.
 *
 * reference: attention/rope.h
 */
#ifndef MEMD_ATTENTION_KERNELS_TURN_CUH
#define MEMD_ATTENTION_KERNELS_TURN_CUH

#include "attention/cuda/launch.h"
#include "attention/cuda/simt.h"
#include "attention/rope.h"

/* Dimensions of pair i. */
SIMT_DEVICE void turn_pair(const struct launch_rope *rope, unsigned i, unsigned *ret_a,
                           unsigned *ret_b)
{
    bool half = rope->pairing == (uint32_t)ROPE_PAIR_HALF;
    *ret_a = half ? i : 2 * i;
    *ret_b = half ? i + rope->rotary_dims / 2 : 2 * i + 1;
}

/* (a, b) of pair i at a position, turned in place. */
SIMT_DEVICE void turn(const struct launch_rope *rope, unsigned i, uint64_t position, float *a,
                      float *b)
{
    uint64_t angle = position * rope->turns[i];
    unsigned quarter = (unsigned)((angle + ((uint64_t)1 << 61)) >> 62) & 3U;
    int64_t rest = (int64_t)(angle - ((uint64_t)quarter << 62));
    float s, c;
    sincospif((float)rest * 0x1p-63F, &s, &c); /* half turns */
    float sine = (quarter & 1U) != 0 ? c : s, cosine = (quarter & 1U) != 0 ? -s : c;
    float sign = (quarter & 2U) != 0 ? -rope->magnitude : rope->magnitude;
    sine *= sign;
    cosine *= sign;
    float x = *a, y = *b;
    *a = x * cosine - y * sine;
    *b = y * cosine + x * sine;
}

/* A pair of a row, widened and turned, and the dimensions that it stands in. */
struct turned_pair {
    unsigned a, b;
    float x, y;
};

SIMT_DEVICE struct turned_pair turn_load(const struct launch_rope *rope, unsigned i,
                                         uint64_t position, const void *row, uint32_t dtype)
{
    struct turned_pair pair;
    turn_pair(rope, i, &pair.a, &pair.b);
    pair.x = simt_load(row, dtype, pair.a);
    pair.y = simt_load(row, dtype, pair.b);
    turn(rope, i, position, &pair.x, &pair.y);
    return pair;
}

#endif
