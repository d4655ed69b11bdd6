/* SPDX-License-Identifier: Apache-2.0 */
/* pca.h — principal components of keys: the few directions in which they differ most, and so most
 * of what a product with a query can be.
 *
 * Second moments, not covariances: the mean is not subtracted, because what is to be approximated
 * are products q·k and not distances from a centre.
 *
 * The eigensolver is ours and small: Householder reflections bring the matrix to three diagonals,
 * QL steps with implicit shifts take those to one. It is deterministic, and bounded: an eigenvalue
 * that has not settled after PCA_STEPS_MAX steps is left as it is. Then rows are not quite
 * eigenvectors, but still orthonormal, which is all that a caller relies on. Rejected: LAPACK (a
 * dependency for one call, and answers that differ from build to build), Jacobi rotations (several
 * times the work).
 *
 * Shapes   moments (D, D), row-major
 * Cost     add: n D² / 2 multiplications; solve: about 9 D³ operations, one thread; some
 *          milliseconds with D 128, two seconds with D 1,024
 * Threads  pure
 * Source   Bowdler, Martin, Reinsch, Wilkinson, "The QR and QL algorithms for symmetric matrices"
 *          (1968); Loki (arXiv 2406.02542) §4 for what it is used for
 * Tests    tests/unit/test_pca.c
 */
#ifndef MEMD_INDEX_PCA_H
#define MEMD_INDEX_PCA_H

#include <stddef.h>

enum { PCA_STEPS_MAX = 64 }; /* for one eigenvalue; two are usual */

/* moments += Σ x xᵀ over x (n, D); the lower half is not written until pca_solve. */
void pca_add(const float *x, size_t n, size_t dim, double *moments);

/* Eigenvalues of the symmetric matrix whose upper half is in `moments`, descending, and the
 * eigenvectors as rows, in `moments` itself. ret_values (D), scratch (D (D + 3)) */
void pca_solve(double *moments, size_t dim, double *ret_values, double *scratch);

/* How many of the first values (descending, D) have at least this share (0 … 1) of their sum; one
 * at least. */
size_t pca_count(const double *values, size_t dim, double share);

#endif
