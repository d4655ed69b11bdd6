/* SPDX-License-Identifier: Apache-2.0 */
/* plane_means_avx512.c — plane_means_tile.h in AVX-512; head_dim that is not a multiple of 16 is
 * left to AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#include "index/kernels/plane_means_tile.h"

void plane_means_avx512(const struct plane_means_args *args)
{
    if (args->head_dim % VEC_FLOATS == 0) means_tiles(args);
    else plane_means_avx2(args);
}
