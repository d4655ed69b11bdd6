/* SPDX-License-Identifier: Apache-2.0 */
/* window.c — the first and the newest rows of a layer, resident on the device.
 *
 * Token-major, (slots, G, D): the rows of an append are contiguous however many heads there are, so
 * that a decode step's append is two copies. A head's rows stand G D apart; a block reads whole
 * 128-byte lines of each all the same.
 *
 * Keys that are stored unrotated are rotated once, when they come, and kept in fp32: half as much
 * memory again instead of sines for every row of every step, and the same numbers as on the CPU,
 * which reads them through a tile of rotated fp32 keys.
 *
 * A window is a cache by position: rows never change, so what is there is right as long as cuts
 * are told. Whoever finds rows missing copies them from the host, out of the views that the query
 * has anyway; so restart, making room and switching need no code of their own. A query over some
 * rows of a layer alone brings its other rows along (attend_device.whole): a window that only it
 * could fill would begin anew with each.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/error.h"

/* Rows on their way: tokens of all heads, together. */
struct arrival {
    unsigned char *k, *v; /* (tokens, G, D) staged */
    uint64_t position;
    uint64_t tokens;
    uint64_t slot;        /* of the first; they do not wrap */
};

struct window *window_new(struct accelerator *accelerator, const struct window_shape *shape)
{
    if (shape->head_dim > LAUNCH_HEAD_DIM) return NULL;
    struct window *window = calloc(1, sizeof *window);
    if (window == NULL) return NULL;
    size_t elements = (size_t)shape->kv_heads * shape->head_dim;
    window->accelerator = accelerator;
    window->shape = *shape;
    window->key_dtype = shape->rope == NULL ? shape->dtype : (uint32_t)DTYPE_FP32;
    window->key_row_bytes = elements * dtype_bytes(window->key_dtype);
    window->value_row_bytes = elements * dtype_bytes(shape->dtype);
    return window;
}

static uint64_t ring_tokens(const struct window *window)
{
    return window->accelerator->config.window_tokens;
}

static uint64_t sink_tokens(const struct window *window)
{
    return window->accelerator->config.sink_tokens;
}

static uint64_t memory_bytes(const struct window *window)
{
    return (sink_tokens(window) + ring_tokens(window)) *
           (window->key_row_bytes + window->value_row_bytes);
}

/* With lock held. */
static void take_memory(struct window *window, void **ret_memory)
{
    struct accelerator *accelerator = window->accelerator;
    *ret_memory = window->keys;
    window->keys = window->values = NULL;
    window->sinks = window->from = window->to = 0;
    list_remove(&window->link);
    accelerator->window_bytes -= memory_bytes(window);
    accelerator->window_count--;
}

static void give_memory(struct window *window, void *memory)
{
    struct accelerator *accelerator = window->accelerator;
    window->keys = memory;
    window->values = window->keys + (sink_tokens(window) + ring_tokens(window)) *
                                        window->key_row_bytes;
    list_append(&accelerator->windows, &window->link);
    accelerator->window_bytes += memory_bytes(window);
    accelerator->window_count++;
}

void window_free(struct window *window)
{
    if (window == NULL) return;
    struct accelerator *accelerator = window->accelerator;
    pthread_mutex_lock(&accelerator->lock);
    if (window->keys != NULL) {
        void *memory = NULL;
        take_memory(window, &memory);
        accelerator->table->free(accelerator->device, memory);
    }
    pthread_mutex_unlock(&accelerator->lock);
    free(window);
}

/* The least recently used window that this batch does not read; NULL when there is none. */
static struct window *oldest(const struct accelerator *accelerator)
{
    LIST_FOR (link, &accelerator->windows) {
        struct window *window = LIST_ENTRY(link, struct window, link);
        if (window->batch != accelerator->batch.number) return window;
    }
    return NULL;
}

/* Memory for the window; others make room. What they give up is used as it is where it has the
 * size, so that a busy device neither allocates nor frees. */
static bool make_room(struct window *window)
{
    struct accelerator *accelerator = window->accelerator;
    const struct device_table *table = accelerator->table;
    uint64_t wanted = memory_bytes(window);
    while (accelerator->window_bytes + wanted > accelerator->config.window_bytes) {
        struct window *other = oldest(accelerator);
        if (other == NULL) return false;
        bool fits = memory_bytes(other) == wanted;
        void *memory = NULL;
        take_memory(other, &memory);
        ACCELERATOR_COUNT(accelerator, demoted_total, 1);
        if (fits) {
            give_memory(window, memory);
            return true;
        }
        table->free(accelerator->device, memory);
    }
    void *memory = NULL;
    struct error err = { 0 };
    int rc = table->alloc(accelerator->device, (size_t)wanted, &memory, &err);
    if (rc < 0) {
        accelerator_failed(accelerator, rc, err.text);
        return false;
    }
    give_memory(window, memory);
    return true;
}

static int rotate_in(struct window *window, const struct arrival *arrival)
{
    struct accelerator *accelerator = window->accelerator;
    uint32_t heads = window->shape.kv_heads, head_dim = window->shape.head_dim;
    size_t rows = (size_t)arrival->tokens * heads, pairs = window->shape.rope->rotary_dims / 2;
    uint64_t *positions = accelerator_stage(accelerator, (rows + pairs) * sizeof *positions);
    if (positions == NULL) return MEMD_EDEVICE;
    for (size_t i = 0; i < rows; i++) positions[i] = arrival->position + i / heads;
    uint32_t stride = head_dim * (uint32_t)dtype_bytes(window->shape.dtype);
    return accelerator->table->rope(
        accelerator->device, DEVICE_COMPUTE,
        &(struct rope_launch){
            .rows = arrival->k, .stride_bytes = stride, .dtype = window->shape.dtype,
            .positions = positions, .count = (uint32_t)rows, .head_dim = head_dim,
            .rope = accelerator_rope(window->shape.rope, positions + rows), .scale = 1.0F,
            .out = (float *)(void *)(window->keys + arrival->slot * window->key_row_bytes),
            .out_stride = head_dim });
}

/* Staged rows into their slots. */
static int take_in(struct window *window, const struct arrival *arrival)
{
    struct accelerator *accelerator = window->accelerator;
    const struct device_table *table = accelerator->table;
    int rc = 0;
    if (window->shape.rope != NULL)
        rc = rotate_in(window, arrival);
    else
        rc = table->copy(accelerator->device, DEVICE_COMPUTE,
                         window->keys + arrival->slot * window->key_row_bytes, arrival->k,
                         (size_t)arrival->tokens * window->key_row_bytes);
    if (rc == 0)
        rc = table->copy(accelerator->device, DEVICE_COMPUTE,
                         window->values + arrival->slot * window->value_row_bytes, arrival->v,
                         (size_t)arrival->tokens * window->value_row_bytes);
    if (rc < 0) accelerator_failed(accelerator, rc, "rows could not be sent");
    return rc;
}

/* How many tokens from `position` on are one stretch of slots and one stretch of staging. */
static uint64_t stretch(const struct window *window, uint64_t position, uint64_t end, bool sinks)
{
    uint64_t most = STEP_STAGING_BYTES / 8 / window->value_row_bytes, tokens = end - position;
    if (!sinks && ring_tokens(window) - position % ring_tokens(window) < tokens)
        tokens = ring_tokens(window) - position % ring_tokens(window);
    return tokens < most ? tokens : most;
}

/* Staging for an arrival. */
static bool stage(struct window *window, struct arrival *arrival, bool sinks)
{
    size_t bytes = (size_t)arrival->tokens * window->value_row_bytes; /* keys come as stored */
    arrival->k = accelerator_stage(window->accelerator, 2 * bytes);
    if (arrival->k == NULL) return false;
    arrival->v = arrival->k + bytes;
    arrival->slot = sinks ? arrival->position
                          : sink_tokens(window) + arrival->position % ring_tokens(window);
    return true;
}

/* ---- fed by Append ---- */

void window_feed(struct window *window, uint64_t position, const struct tensor *k,
                 const struct tensor *v)
{
    struct accelerator *accelerator = window->accelerator;
    uint64_t end = position + k->shape[0];
    pthread_mutex_lock(&accelerator->lock);
    bool wanted = window->keys != NULL && window->to == position && window->to > 0 &&
                  atomic_load(&accelerator->on) && !atomic_load(&accelerator->lost);
    /* More than the ring holds: the next step takes the newest. */
    for (uint64_t at = position; wanted && end - position <= ring_tokens(window) && at < end;) {
        struct arrival arrival = { .position = at, .tokens = stretch(window, at, end, false) };
        if (!stage(window, &arrival, false)) break;
        size_t bytes = (size_t)arrival.tokens * window->value_row_bytes;
        size_t offset = (size_t)(at - position) * window->value_row_bytes;
        memcpy(arrival.k, (const unsigned char *)k->data + offset, bytes);
        memcpy(arrival.v, (const unsigned char *)v->data + offset, bytes);
        if (take_in(window, &arrival) < 0) break;
        at += arrival.tokens;
        window->to = at;
        if (window->to - window->from > ring_tokens(window))
            window->from = window->to - ring_tokens(window);
        ACCELERATOR_COUNT(accelerator, fed_bytes_total, 2 * bytes);
    }
    pthread_mutex_unlock(&accelerator->lock);
}

void window_cut(struct window *window, uint64_t tokens)
{
    pthread_mutex_lock(&window->accelerator->lock);
    if (window->sinks > tokens) window->sinks = tokens;
    if (window->to > tokens) window->to = tokens;
    if (window->from > window->to) window->from = window->to;
    pthread_mutex_unlock(&window->accelerator->lock);
}

/* ---- brought up to date by a step ---- */

/* Rows are asked for before they are read; what is refused ends the item. */
static bool may_read(struct step_item *item, const struct attend_args *source,
                     const struct view *view, size_t row, size_t count)
{
    if (source->admit == NULL) return true;
    int code = source->admit(source->admit_arg, view, row, count, VIEW_K | VIEW_V);
    if (code != 0) atomic_store_explicit(&item->scan.stopped, code, memory_order_relaxed);
    return code == 0;
}

/* Tokens position … position + tokens - 1 out of the item's source into staging, head by head. */
static bool fetch(struct window *window, struct step_item *item, const struct arrival *arrival)
{
    const struct attend_args *args = step_source(item);
    size_t row = (size_t)window->shape.head_dim * dtype_bytes(window->shape.dtype);
    uint64_t end = arrival->position + arrival->tokens, found = 0;
    for (size_t i = 0; i < args->kv_heads * args->view_count; i++) {
        const struct view *view = &args->views[i];
        size_t g = i / args->view_count;
        uint64_t first = view->position > arrival->position ? view->position : arrival->position;
        uint64_t last = view->position + view->tokens < end ? view->position + view->tokens : end;
        if (first >= last) continue;
        size_t from = (size_t)(first - view->position), count = (size_t)(last - first);
        if (!may_read(item, args, view, from, count)) return false;
        const unsigned char *k = view->k, *v = view->v;
        for (size_t t = 0; t < count; t++) {
            size_t slot = (size_t)(first - arrival->position) + t;
            size_t to = slot * window->value_row_bytes + g * row;
            memcpy(arrival->k + to, k + (from + t) * view->k_stride_bytes, row);
            memcpy(arrival->v + to, v + (from + t) * view->v_stride_bytes, row);
        }
        found += count;
    }
    return found == arrival->tokens * args->kv_heads;
}

/* Tokens at … end-1 from the host. Returns where it got to. */
static uint64_t bring(struct window *window, struct step_item *item, uint64_t at, uint64_t end)
{
    bool sinks = end <= sink_tokens(window);
    while (at < end) {
        struct arrival arrival = { .position = at, .tokens = stretch(window, at, end, sinks) };
        if (!stage(window, &arrival, sinks) || !fetch(window, item, &arrival) ||
            take_in(window, &arrival) < 0)
            break;
        at += arrival.tokens;
        ACCELERATOR_COUNT(window->accelerator, rebuilt_bytes_total,
                          2 * arrival.tokens * window->value_row_bytes);
    }
    return at;
}

static uint64_t views_end(const struct attend_args *args)
{
    uint64_t end = 0;
    for (size_t i = 0; i < args->view_count; i++)
        if (args->views[i].position + args->views[i].tokens > end)
            end = args->views[i].position + args->views[i].tokens;
    return end;
}

bool window_is_behind(const struct window *window, const struct step_item *item)
{
    return window->keys == NULL || views_end(step_source(item)) > window->to;
}

void window_wanted(const struct window *window, const struct step_item *item,
                   uint64_t *ret_sinks_end, uint64_t *ret_from, uint64_t *ret_end)
{
    uint64_t end = views_end(step_source(item)), sinks = sink_tokens(window), to = window->to;
    *ret_sinks_end = sinks < end ? sinks : end;
    *ret_from = end > sinks + ring_tokens(window) ? end - ring_tokens(window) : sinks;
    *ret_end = end;
    if (to > window->from && to > *ret_from) *ret_from = to < end ? to : end;
}

bool window_update(struct window *window, struct step_item *item)
{
    struct accelerator *accelerator = window->accelerator;
    uint64_t sinks = 0, from = 0, end = 0;
    if (window->keys == NULL && !make_room(window)) return false;
    list_remove(&window->link);
    list_append(&accelerator->windows, &window->link);
    window_wanted(window, item, &sinks, &from, &end);
    if (end <= window->to) return true;
    if (window->sinks < sinks) window->sinks = bring(window, item, window->sinks, sinks);
    if (window->to < from || window->to == window->from) window->from = window->to = from;
    if (window->to >= end) return true;
    window->to = bring(window, item, window->to, end);
    if (window->to - window->from > ring_tokens(window))
        window->from = window->to - ring_tokens(window);
    return true;
}
