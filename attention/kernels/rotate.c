/* SPDX-License-Identifier: Apache-2.0 */
/* rotate.c — reference and oracle of the twins rotate_<isa>.c: every row by its own sin and cos. */
#include "attention/kernels/rotate.h"

#include "attention/rope.h"
#include "base/half.h"

void rotate_ref(const struct rotate_args *args)
{
    const struct rope *rope = args->rope;
    size_t head_dim = rope == NULL ? args->head_dim : rope->head_dim;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t row = 0; row < args->count; row++) {
        const unsigned char *from = (const unsigned char *)args->rows + row * args->stride_bytes;
        float *out = args->out + row * head_dim; /* (D) */
        half_load(from, args->dtype, head_dim, out);
        if (rope == NULL) continue;
        uint64_t position = args->positions == NULL ? args->position + row : args->positions[row];
        rope_angles(rope, position, cos, sin);
        rope_apply(rope, cos, sin, out, 1);
    }
}
