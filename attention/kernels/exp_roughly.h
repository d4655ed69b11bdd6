/* SPDX-License-Identifier: Apache-2.0 */
/* exp_roughly.h — exp of a number to two digits, for what is only compared and drawn by.
 *
 * The bits of a float, read as a whole number, are nearly the logarithm of its value to the base 2,
 * so those of exp(a) are nearly EXP_UNIT a + EXP_ZERO. Three instructions where vec_exp takes
 * fifteen. Within 3.1 % (EXP_ZERO lies 0.043 2^23 below the bits of 1, which halves the error), and
 * never smaller for a larger a.
 *
 * Source   Schraudolph, A fast, compact approximation of the exponential function (1999)
 * Tests    tests/kernels/test_clusters.c
 */
#ifndef MEMD_ATTENTION_KERNELS_EXP_ROUGHLY_H
#define MEMD_ATTENTION_KERNELS_EXP_ROUGHLY_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXP_UNIT 12102203.16F  /* 2^23 / ln 2 */
#define EXP_ZERO 1064992512.0F /* (127 - 0.0437) 2^23 */

/* The reference: a in -87 … 87. */
static inline float exp_roughly(float a)
{
    int32_t bits = (int32_t)lrint((double)EXP_UNIT * (double)a + (double)EXP_ZERO);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
