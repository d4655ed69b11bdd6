/* SPDX-License-Identifier: Apache-2.0 */
/* score_avx512.c — score_tile.h in AVX-512. A head_dim that is not a multiple of 16 goes to AVX2,
 * which every such CPU has too: a masked last vector would slow down all others. */
#include "attention/kernels/score.h"

#include "attention/kernels/vec_avx512.h"

#include "attention/kernels/score_tile.h"

void score_avx512(const struct score_args *args)
{
    if (args->head_dim % VEC_FLOATS == 0) score_tiles(args);
    else score_avx2(args);
}
