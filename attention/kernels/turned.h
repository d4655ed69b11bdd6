/* SPDX-License-Identifier: Apache-2.0 */
/* turned.h — a vector rotated by its position, in double: what the references of the CUDA kernels
 * share. Written from struct launch_rope, not from turn.cuh. */
#ifndef MEMD_ATTENTION_KERNELS_TURNED_H
#define MEMD_ATTENTION_KERNELS_TURNED_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/cuda/launch.h"
#include "attention/rope.h"

/* x (D), in place. Whole turns fall away where 64 bits end. */
static inline void turned(const struct launch_rope *rope, uint64_t position, double *x)
{
    const double two_pi = 6.283185307179586476925;
    size_t pairs = rope->turns == NULL ? 0 : rope->rotary_dims / 2;
    for (size_t i = 0; i < pairs; i++) {
        double angle = (double)(position * rope->turns[i]) * 0x1p-64 * two_pi;
        double c = cos(angle) * (double)rope->magnitude, s = sin(angle) * (double)rope->magnitude;
        double *a = rope->pairing == ROPE_PAIR_HALF ? x + i : x + 2 * i;
        double *b = rope->pairing == ROPE_PAIR_HALF ? a + pairs : a + 1;
        double first = *a, second = *b;
        *a = first * c - second * s;
        *b = second * c + first * s;
    }
}

#endif
