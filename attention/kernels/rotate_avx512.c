/* SPDX-License-Identifier: Apache-2.0 */
/* rotate_avx512.c — rotate_tile.h in AVX-512; head_dim as in partial_avx512.c. */
#include "attention/kernels/rotate.h"

#include "attention/kernels/vec_avx512.h"

#include "attention/kernels/rotate_tile.h"

void rotate_avx512(const struct rotate_args *args)
{
    if (rotate_dim(args) % VEC_FLOATS == 0) rotate_rows(args);
    else rotate_avx2(args);
}
