/* SPDX-License-Identifier: Apache-2.0 */
/* plane_miss_avx512.c — plane_miss_tile.h in AVX-512; head_dim that is not a multiple of 16 is left
 * to AVX2. */
#include "index/kernels/plane.h"

#include "attention/kernels/vec_avx512.h"

#include "index/kernels/plane_miss_tile.h"

void plane_miss_avx512(const struct plane_miss_args *args)
{
    if (args->head_dim % VEC_FLOATS == 0) miss_clusters(args);
    else plane_miss_avx2(args);
}
