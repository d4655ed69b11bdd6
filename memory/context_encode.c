/* SPDX-License-Identifier: Apache-2.0 */
/* context_encode.c — hidden states become states where they come in, so that behind this file there
 * is one width: what is stored, compared and searched is what the method's own encoder made. */
#include <inttypes.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "memory/catalog_state.h"

static int encode(struct context *context, struct encoding *encoding, struct arena *arena,
                  float *ret_states, struct error *err)
{
    pthread_rwlock_rdlock(&context->use);
    encoding->params = context_params(context);
    int rc = context->method->encode(encoding, arena, ret_states, err);
    pthread_rwlock_unlock(&context->use);
    return rc;
}

int context_encode_states(struct context *context, uint32_t layer, struct arena *arena,
                          struct tensor *states, struct error *err)
{
    size_t width = context->shape.state_width, n = states->shape[0], bad = 0;
    if (states->shape[1] == width) return 0;
    if (context->method->encode == NULL || n == 0)
        return error_set(err, MEMD_ESHAPE,
                         "states of layer %" PRIu32 " are (%zu, %zu), not (n, %zu)", layer, n,
                         states->shape[1], width);
    size_t given = tensor_elements(states);
    if (half_find_nonfinite(states->data, states->dtype, given, &bad) != given)
        return error_set(err, MEMD_ENONFINITE, "%zu numbers of hidden states are NaN or infinite",
                         bad);
    float *made = arena_calloc(arena, n, width * sizeof *made);
    void *stored = arena_calloc(arena, n, width * dtype_bytes(context->shape.dtype));
    if (made == NULL || stored == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu states", n);
    struct encoding encoding = { .given = *states, .options = context->options, .layer = layer };
    int rc = encode(context, &encoding, arena, made, err);
    if (rc < 0) return rc;
    half_store(made, n * width, context->shape.dtype, stored);
    *states = (struct tensor){ stored, context->shape.dtype, 2, { n, width } };
    return 0;
}
