/* SPDX-License-Identifier: Apache-2.0 */
/* plane_dot_avx512.c — plane_dot_tile.h in AVX-512; head_dim that is not a multiple of 16 is
 * left to AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#include "index/kernels/plane_dot_tile.h"

void plane_dot_avx512(const struct plane_dot_args *args)
{
    if (args->queries->head_dim % VEC_FLOATS == 0) dot_centroids(args);
    else plane_dot_avx2(args);
}
