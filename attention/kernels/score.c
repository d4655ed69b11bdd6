/* SPDX-License-Identifier: Apache-2.0 */
/* score.c — reference and oracle of the twins score_<isa>.c: plain loops, double sums. */
#include "attention/kernels/score.h"

#include <assert.h>

#include "base/half.h"
#include "base/tensor.h"
#include "proto/limits.h"

void score_ref(const struct score_args *args)
{
    assert(args->head_dim <= LIMIT_HEAD_DIM);
    assert(dtype_is_float(args->dtype));
    for (size_t row = 0; row < args->tokens; row++) {
        float key[LIMIT_HEAD_DIM];
        const unsigned char *at = (const unsigned char *)args->k + row * args->k_stride_bytes;
        half_load(at, args->dtype, args->head_dim, key);
        for (size_t m = 0; m < args->queries; m++) {
            const float *q = args->q + m * args->head_dim; /* (D) */
            double sum = 0.0;
            for (size_t d = 0; d < args->head_dim; d++) sum += (double)q[d] * (double)key[d];
            args->scores[m * args->tokens + row] = (float)sum;
        }
    }
}
