/* SPDX-License-Identifier: Apache-2.0 */
/* pca.c — in the order of execution: A = Q T Qᵀ by reflections, T = Z Λ Zᵀ by rotations.
 * Eigenvectors are the columns of Q Z and are kept as rows of its transpose throughout, so that
 * reflections and rotations go along rows, which lie together in memory.
 */
#include "index/pca.h"

#include <math.h>
#include <string.h>

void pca_add(const float *x, size_t n, size_t dim, double *moments)
{
    for (size_t row = 0; row < n; row++, x += dim)
        for (size_t i = 0; i < dim; i++) {
            double factor = (double)x[i];
            for (size_t j = i; j < dim; j++) moments[i * dim + j] += factor * (double)x[j];
        }
}

/* The unit vector v for which (I - 2 v vᵀ) x is ±|x| in its first entry and zero in the others; in
 * place. Returns that entry. v is zero where nothing is to do. */
static double reflector(double *x, size_t n)
{
    double length = 0.0, rest = 0.0;
    for (size_t i = 0; i < n; i++) length = hypot(length, x[i]);
    for (size_t i = 1; i < n; i++) rest += fabs(x[i]);
    double first = x[0], entry = first > 0.0 ? -length : length;
    if (rest == 0.0) {
        memset(x, 0, n * sizeof *x);
        return first;
    }
    x[0] -= entry; /* of the same sign: nothing cancels */
    double norm = 0.0;
    for (size_t i = 0; i < n; i++) norm = hypot(norm, x[i]);
    for (size_t i = 0; i < n; i++) x[i] /= norm;
    return entry;
}

/* The n × n block at `a` (rows `stride` apart), symmetric: H A H with H = I - 2 v vᵀ. p (n) */
static void reflect_both(double *a, size_t stride, const double *v, size_t n, double *p)
{
    double product = 0.0;
    for (size_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < n; j++) sum += a[i * stride + j] * v[j];
        p[i] = sum;
        product += sum * v[i];
    }
    for (size_t i = 0; i < n; i++) p[i] = 2.0 * (p[i] - product * v[i]);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) a[i * stride + j] -= v[i] * p[j] + p[i] * v[j];
}

/* The n rows of r (each `dim` long): H times them. t (dim) */
static void reflect_rows(double *r, size_t dim, const double *v, size_t n, double *t)
{
    memset(t, 0, dim * sizeof *t);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < dim; j++) t[j] += v[i] * r[i * dim + j];
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < dim; j++) r[i * dim + j] -= 2.0 * v[i] * t[j];
}

/* a becomes T: its diagonal in d, below it e (e[i] joins i and i + 1); r becomes Qᵀ. t (dim) */
static void tridiagonalise(double *a, size_t dim, double *d, double *e, double *r)
{
    double *t = e + dim;
    memset(r, 0, dim * dim * sizeof *r);
    for (size_t i = 0; i < dim; i++) r[i * dim + i] = 1.0;
    for (size_t k = 0; k + 1 < dim; k++) {
        size_t n = dim - k - 1;
        double *v = a + k * dim + k + 1; /* the row is the column, as a is symmetric */
        d[k] = a[k * dim + k];
        e[k] = reflector(v, n);
        reflect_both(v + dim, dim, v, n, t);
        reflect_rows(r + (k + 1) * dim, dim, v, n, t);
    }
    d[dim - 1] = a[dim * dim - 1];
    e[dim - 1] = 0.0;
}

/* The first place from l on that is not joined to the next one any more. */
static size_t end_of_block(const double *d, const double *e, size_t l, size_t dim)
{
    for (size_t m = l; m + 1 < dim; m++) {
        double size = fabs(d[m]) + fabs(d[m + 1]);
        if (fabs(e[m]) + size == size) return m;
    }
    return dim - 1;
}

/* Rows i and i + 1 of r turn by (c, s). */
static void rotate_rows(double *r, size_t dim, size_t i, double c, double s)
{
    double *low = r + i * dim, *high = low + dim;
    for (size_t j = 0; j < dim; j++) {
        double x = high[j];
        high[j] = s * low[j] + c * x;
        low[j] = c * low[j] - s * x;
    }
}

/* One QL step with an implicit shift on the block l … m. */
static void step(double *d, double *e, double *r, size_t dim, size_t l, size_t m)
{
    double g = (d[l + 1] - d[l]) / (2.0 * e[l]), h = hypot(g, 1.0);
    double s = 1.0, c = 1.0, p = 0.0;
    g = d[m] - d[l] + e[l] / (g + copysign(h, g));
    for (size_t i = m; i-- > l;) {
        double f = s * e[i], b = c * e[i];
        h = hypot(f, g);
        e[i + 1] = h;
        if (h == 0.0) { /* the block has come apart */
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        s = f / h;
        c = g / h;
        g = d[i + 1] - p;
        h = (d[i] - g) * s + 2.0 * c * b;
        p = s * h;
        d[i + 1] = g + p;
        g = c * h - b;
        rotate_rows(r, dim, i, c, s);
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

static void diagonalise(double *d, double *e, double *r, size_t dim)
{
    for (size_t l = 0; l < dim; l++) {
        size_t m = end_of_block(d, e, l, dim);
        for (int steps = 0; m != l && steps < PCA_STEPS_MAX; steps++) {
            step(d, e, r, dim, l, m);
            m = end_of_block(d, e, l, dim);
        }
    }
}

/* Rows of r by descending d, equal ones in their order, into ret_rows. */
static void sort(const double *d, const double *r, size_t dim, double *ret_values,
                 double *ret_rows)
{
    for (size_t i = 0; i < dim; i++) {
        size_t place = 0;
        for (size_t j = 0; j < dim; j++) place += d[j] > d[i] || (d[j] == d[i] && j < i);
        ret_values[place] = d[i];
        memcpy(ret_rows + place * dim, r + i * dim, dim * sizeof *r);
    }
}

void pca_solve(double *moments, size_t dim, double *ret_values, double *scratch)
{
    double *r = scratch, *d = r + dim * dim, *e = d + dim; /* and dim more behind e */
    for (size_t i = 0; i < dim; i++)
        for (size_t j = 0; j < i; j++) moments[i * dim + j] = moments[j * dim + i];
    tridiagonalise(moments, dim, d, e, r);
    diagonalise(d, e, r, dim);
    sort(d, r, dim, ret_values, moments);
}

size_t pca_count(const double *values, size_t dim, double share)
{
    double sum = 0.0, some = values[0];
    size_t count = 1;
    for (size_t i = 0; i < dim; i++) sum += values[i];
    while (count < dim && some < share * sum) some += values[count++];
    return count;
}
