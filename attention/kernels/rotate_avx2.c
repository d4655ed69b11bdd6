/* SPDX-License-Identifier: Apache-2.0 */
/* rotate_avx2.c — rotate_tile.h in AVX2. */
#include "attention/kernels/rotate.h"

#include "attention/kernels/vec_avx2.h"

#include "attention/kernels/rotate_tile.h"

void rotate_avx2(const struct rotate_args *args)
{
    rotate_rows(args);
}
