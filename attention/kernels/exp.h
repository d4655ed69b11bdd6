/* SPDX-License-Identifier: Apache-2.0 */
/* exp.h — exp of a vector of numbers ≤ 0, within 2e-7 of the value, over the vocabulary of
 * vec_<isa>.h.
 *
 * x = n ln 2 + r with |r| ≤ ln 2 / 2 and ln 2 in two parts (Cody and Waite), a polynomial of degree
 * 6 in r (the coefficients of Cephes' expf), times 2^n. Below -88 the result is 0, also for -inf;
 * NaN stays NaN.
 *
 * Source   Moshier, Cephes Mathematical Library, single/expf.c
 * Tests    tests/kernels/test_partial.c, "exp"
 */
#ifndef MEMD_ATTENTION_KERNELS_EXP_H
#define MEMD_ATTENTION_KERNELS_EXP_H

static inline vec vec_exp(vec x)
{
    x = vec_max(vec_set(-88.0F), x);
    vec n = vec_round(vec_mul(x, vec_set(1.44269504F)));
    vec r = vec_fma(n, vec_set(-0.693359375F), x);
    r = vec_fma(n, vec_set(2.12194440e-4F), r);
    vec p = vec_fma(r, vec_set(1.9875691500e-4F), vec_set(1.3981999507e-3F));
    p = vec_fma(p, r, vec_set(8.3334519073e-3F));
    p = vec_fma(p, r, vec_set(4.1665795894e-2F));
    p = vec_fma(p, r, vec_set(1.6666665459e-1F));
    p = vec_fma(p, r, vec_set(5.0000001201e-1F));
    p = vec_fma(p, vec_mul(r, r), vec_add(r, vec_set(1.0F)));
    return vec_scale2(p, n);
}

#endif
