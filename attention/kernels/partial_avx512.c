/* SPDX-License-Identifier: Apache-2.0 */
/* partial_avx512.c — partial_tile.h in AVX-512. A head_dim that is not a multiple of 16 goes to
 * AVX2, which every such CPU has too: a masked last vector would slow down all others. */
#include "attention/kernels/partial.h"

#include "attention/kernels/vec_avx512.h"

#include "attention/kernels/partial_tile.h"

void partial_avx512(const struct partial_args *args)
{
    if (args->head_dim % VEC_FLOATS == 0) partial_tiles(args);
    else partial_avx2(args);
}
