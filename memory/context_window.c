/* SPDX-License-Identifier: Apache-2.0 */
/* context_window.c — what a context tells the accelerator: its layers, what was appended, what was
 * cut off.
 *
 * A window is a cache of rows that are here too, so nothing depends on being told in time: a step
 * fetches what was not fed (attention/cuda/accelerator.h). What must not be forgotten is a cut,
 * before other rows come to the same positions; it is told while `use` is held exclusively, and
 * without `lock`, which a step may take while it holds the accelerator's own.
 */
#include "attention/cuda/accelerator.h"
#include "memory/catalog_state.h"

void context_open_windows(struct context *context)
{
    struct accelerator *accelerator = context->catalog->accelerator;
    if (accelerator == NULL || context->shape.state_width > 0) return;
    struct window_shape shape = { .kv_heads = context->shape.heads,
                                  .head_dim = (uint32_t)context->shape.head_dim,
                                  .dtype = context->record->model.dtype,
                                  .rope = context->rope };
    for (uint32_t i = 0; i < context->record->model.layers; i++)
        context->layers[i].window = window_new(accelerator, &shape);
}

void context_feed_window(struct context *context, const struct append_layer *part, size_t skip)
{
    struct layer *layer = &context->layers[part->layer];
    if (layer->window == NULL || part->k.shape[0] == skip) return;
    struct tensor k = part->k, v = part->v;
    size_t row_bytes = k.shape[1] * k.shape[2] * dtype_bytes(k.dtype);
    k.data = (const unsigned char *)k.data + skip * row_bytes;
    v.data = (const unsigned char *)v.data + skip * row_bytes;
    k.shape[0] -= skip;
    v.shape[0] -= skip;
    window_feed(layer->window, part->position + skip, &k, &v);
}

void context_cut_windows(struct context *context)
{
    for (uint32_t i = 0; i < context->record->model.layers; i++) {
        struct layer *layer = &context->layers[i];
        if (layer->window != NULL) window_cut(layer->window, layer_tokens(layer));
    }
}
