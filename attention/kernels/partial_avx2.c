/* SPDX-License-Identifier: Apache-2.0 */
/* partial_avx2.c — partial_tile.h in AVX2. */
#include "attention/kernels/partial.h"

#include "attention/kernels/vec_avx2.h"

#include "attention/kernels/partial_tile.h"

void partial_avx2(const struct partial_args *args)
{
    partial_tiles(args);
}
