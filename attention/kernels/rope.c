/* SPDX-License-Identifier: Apache-2.0 */
/* rope.c — reference and oracle of rope.cu: every row by its own sin and cos, in double. */
#include <assert.h>

#include "attention/cuda/launch.h"
#include "attention/kernels/turned.h"
#include "base/half.h"

void rope_ref(const struct rope_launch *args)
{
    assert(args->head_dim <= LAUNCH_HEAD_DIM);
    for (size_t t = 0; t < args->count; t++) {
        const unsigned char *from = (const unsigned char *)args->rows + t * args->stride_bytes;
        float row[LAUNCH_HEAD_DIM], *out = args->out + t * args->out_stride; /* (D) */
        double x[LAUNCH_HEAD_DIM] = { 0.0 };
        half_load(from, args->dtype, args->head_dim, row);
        for (uint32_t d = 0; d < args->head_dim; d++) x[d] = (double)row[d];
        turned(&args->rope, args->positions[t], x);
        for (uint32_t d = 0; d < args->head_dim; d++) out[d] = (float)((double)args->scale * x[d]);
    }
}
