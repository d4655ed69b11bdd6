/* SPDX-License-Identifier: Apache-2.0 */
/* queue.c — steps that are asked for together are one launch.
 *
 * Steps that are asked for at the same time are joined by their threads themselves: who comes and
 * finds nobody leading takes the whole queue along; the others sleep until their answer is there.
 * So one client pays for no batching, and many get larger launches the busier the device is. A
 * thread of the accelerator's own would cost two switches per step; a timer that waits for company
 * would cost everybody its length. Who has several at once queues them at once.
 *
 * While a batch is led, everybody else waits. So whatever may take long and needs no device is done
 * before a step is queued: rows that are read for the first time are verified, and may have to come
 * from a disk (admit_early). Under the lock they are copied, and found to be known.
 *
 * A step over more rows than may travel at once goes in pieces, each a step of its own whose answer
 * is merged onto those before. Pieces do not overlap (a second area to pack the next one into would
 * hide the shorter of packing and computing; not yet measured on a GPU), but steps of others get in
 * between.
 */
#include <assert.h>
#include <stdlib.h>

#include "attention/cuda/accelerator_state.h"
#include "base/error.h"

/* ---- leading ---- */

/* The item has its answer, or has none: its thread goes on, and it is no longer there. */
static void give(struct accelerator *accelerator, struct step_item *item, int rc)
{
    pthread_mutex_lock(&accelerator->queue_lock);
    item->rc = rc;
    item->done = true;
    pthread_cond_broadcast(&accelerator->moved);
    pthread_mutex_unlock(&accelerator->queue_lock);
}

/* The first items of the list that fit into a batch, answered. With lock held. */
static void run_some(struct accelerator *accelerator, struct list_link *taken)
{
    struct step_batch *batch = &accelerator->batch;
    batch->item_count = 0;
    LIST_FOR_SAFE (link, after, taken) {
        struct step_item *item = LIST_ENTRY(link, struct step_item, link);
        int rc = step_add(accelerator, item);
        if (rc == MEMD_ELIMIT && batch->item_count > 0) break; /* the next batch */
        list_remove(link);
        if (rc != 0) give(accelerator, item, rc == MEMD_ELIMIT ? ACCELERATOR_DECLINED : rc);
    }
    if (batch->item_count == 0) return;
    int rc = step_run(accelerator);
    for (uint32_t i = 0; i < batch->item_count; i++) give(accelerator, batch->items[i], rc);
}

/* Everybody who waits is answered. With queue_lock held, which is let go meanwhile. */
static void lead(struct accelerator *accelerator)
{
    struct list_link taken;
    list_init(&taken);
    accelerator->leading = true;
    pthread_mutex_unlock(&accelerator->queue_lock);
    pthread_mutex_lock(&accelerator->lock);
    pthread_mutex_lock(&accelerator->queue_lock); /* who came while others used the device, too */
    for (struct list_link *link; (link = list_take_first(&accelerator->queue)) != NULL;)
        list_append(&taken, link);
    pthread_mutex_unlock(&accelerator->queue_lock);
    while (!list_empty(&taken)) run_some(accelerator, &taken);
    pthread_mutex_unlock(&accelerator->lock);
    pthread_mutex_lock(&accelerator->queue_lock);
    accelerator->leading = false;
    pthread_cond_broadcast(&accelerator->moved);
}

/* Queue them, together, and wait for all. */
static void run_items(struct accelerator *accelerator, struct step_item *items, size_t count)
{
    if (count == 0) return;
    pthread_mutex_lock(&accelerator->queue_lock);
    for (size_t i = 0; i < count; i++) list_append(&accelerator->queue, &items[i].link);
    for (size_t i = 0; i < count; i++)
        while (!items[i].done) {
            if (accelerator->leading)
                pthread_cond_wait(&accelerator->moved, &accelerator->queue_lock);
            else
                lead(accelerator);
        }
    pthread_mutex_unlock(&accelerator->queue_lock);
}

/* ---- before they are queued ---- */

static uint64_t highest_limit(const struct attend_args *args)
{
    uint64_t highest = 0;
    for (size_t i = 0; i < args->q.shape[0]; i++)
        if (args->limits[i] > highest) highest = args->limits[i];
    return highest;
}

/* Rows of a view that some query sees. */
static uint64_t visible_rows(const struct view *view, uint64_t limit)
{
    if (view->position >= limit) return 0;
    return view->tokens < limit - view->position ? view->tokens : limit - view->position;
}

/* Rows of all KV heads that may travel at once. */
static uint64_t travel_rows(const struct attend_args *args)
{
    uint64_t bytes = args->device->accelerator->config.travel_bytes - STEP_ALIGN;
    uint64_t row = 2 * args->kv_heads * args->q.shape[2] * dtype_bytes(args->views[0].dtype);
    return bytes / row < STEP_TRAVEL_ROWS_MAX ? bytes / row : STEP_TRAVEL_ROWS_MAX;
}

/* Could it be worth it? From the shapes alone. ret_whole: all of its rows may go at once. */
static bool is_worth_it(const struct attend_args *args, bool *ret_whole)
{
    const struct attend_device *device = args->device;
    const struct accelerator *accelerator = device->accelerator;
    size_t head_dim = args->q.shape[2];
    uint64_t rows = 0, at_hand = 0, highest = highest_limit(args);
    if (!atomic_load(&accelerator->on) || atomic_load(&accelerator->lost)) return false;
    if (head_dim > LAUNCH_HEAD_DIM || args->q.shape[0] * args->q.shape[1] * head_dim >
                                          STEP_QUERY_FLOATS)
        return false;
    for (size_t i = 0; i < args->view_count; i++) rows += visible_rows(&args->views[i], highest);
    if (device->window != NULL)
        at_hand = (uint64_t)accelerator->config.sink_tokens + accelerator->config.window_tokens;
    *ret_whole = rows > 0 && rows <= at_hand + travel_rows(args);
    return rows > 0 && (*ret_whole || device->insist);
}

static void begin_item(struct step_item *item, const struct attend_args *args,
                       const struct partial *ret_partial)
{
    struct window *window = args->device->window;
    /* Its keys are turned. A query that turns them otherwise reads none of them. */
    if (window != NULL && !step_same_rope(window->shape.rope, args->rope)) window = NULL;
    *item = (struct step_item){ .args = args, .view_end = args->view_count, .window = window,
                                .partial = *ret_partial };
}

/* Rows begin … end-1 of the item's source, as far as they are stored. 0, or what `admit` says. */
static int admit_range(const struct step_item *item, uint64_t begin, uint64_t end)
{
    const struct attend_args *source = step_source(item);
    int code = 0;
    for (size_t i = 0; code == 0 && i < source->kv_heads * source->view_count; i++) {
        const struct view *view = &source->views[i];
        uint64_t first = view->position > begin ? view->position : begin;
        uint64_t last = view->position + view->tokens < end ? view->position + view->tokens : end;
        if (first < last)
            code = source->admit(source->admit_arg, view, (size_t)(first - view->position),
                                 (size_t)(last - first), VIEW_K | VIEW_V);
    }
    return code;
}

/* Rows of a view that are not in the window. */
static int admit_view(const struct step_item *item, const struct view *view, uint64_t limit)
{
    const struct attend_args *args = item->args;
    struct step_piece piece = { .view = NULL };
    int code = args->stop == NULL ? 0 : args->stop(args->stop_arg);
    while (code == 0 && step_next_piece(item, view, limit, &piece))
        if (!piece.resident)
            code = args->admit(args->admit_arg, view, piece.row, piece.count, VIEW_K | VIEW_V);
    return code;
}

/* What the step will read of the host's memory, asked for by the thread that wants it. 0, or what
 * the caller's functions say. */
static int admit_early(const struct step_item *item, struct error *err)
{
    const struct attend_args *args = item->args;
    uint64_t limit = highest_limit(args), sinks = 0, from = 0, end = 0;
    int code = 0;
    for (size_t g = 0; args->admit != NULL && g < args->kv_heads; g++)
        for (size_t i = item->first_view; code == 0 && i < item->view_end; i++)
            code = admit_view(item, &args->views[g * args->view_count + i], limit);
    if (code == 0 && item->window != NULL && step_source(item)->admit != NULL) {
        window_wanted(item->window, item, &sinks, &from, &end);
        code = admit_range(item, item->window->sinks, sinks);
        if (code == 0) code = admit_range(item, from, end);
    }
    return code == 0 ? 0 : error_set(err, code, "%s before a step", error_text(code));
}

/* Views of one piece, from `first` on: as many as may travel, at least one. */
static size_t piece_end(const struct attend_args *args, size_t first)
{
    uint64_t most = travel_rows(args), limit = highest_limit(args), rows = 0;
    size_t end = first;
    while (end < args->view_count && (rows += visible_rows(&args->views[end], limit)) <= most)
        end++;
    return end > first ? end : first + 1;
}

static void count_step(struct accelerator *accelerator, int rc)
{
    if (rc == 0) ACCELERATOR_COUNT(accelerator, steps_total, 1);
    if (rc == ACCELERATOR_DECLINED) ACCELERATOR_COUNT(accelerator, declined_total, 1);
}

/* In pieces, or all of it at once. As accelerator_attend. */
static int attend_pieces(const struct attend_args *args, const struct partial *ret_partial,
                         bool whole, struct error *err)
{
    uint64_t resident = 0;
    int rc = 0;
    for (size_t first = 0, end = 0; rc == 0 && first < args->view_count; first = end) {
        struct step_item item;
        begin_item(&item, args, ret_partial);
        end = whole ? args->view_count : piece_end(args, first);
        item.first_view = first;
        item.view_end = end;
        item.adds = first > 0;
        rc = admit_early(&item, err);
        if (rc != 0) return rc;
        run_items(args->device->accelerator, &item, 1);
        rc = item.rc < 0 ? error_set(err, item.rc, "%s", item.err.text) : item.rc;
        resident += item.resident;
    }
    if (rc == 0) args->device->resident = resident;
    return rc;
}

int accelerator_attend(const struct attend_args *args, const struct partial *ret_partial,
                       struct error *err)
{
    struct accelerator *accelerator = args->device->accelerator;
    bool whole = true;
    int rc = ACCELERATOR_DECLINED;
    if (is_worth_it(args, &whole)) rc = attend_pieces(args, ret_partial, whole, err);
    /* There was no room for the window. */
    if (rc == ACCELERATOR_DECLINED && whole && args->device->insist && is_worth_it(args, &whole))
        rc = attend_pieces(args, ret_partial, false, err);
    count_step(accelerator, rc);
    return rc;
}

/* At most STEP_ITEMS_MAX. */
static void attend_some(struct accelerator_step *steps, size_t count)
{
    struct accelerator *accelerator = steps[0].args->device->accelerator;
    struct step_item items[STEP_ITEMS_MAX];
    size_t of[STEP_ITEMS_MAX], queued = 0;
    for (size_t i = 0; i < count; i++) {
        struct accelerator_step *step = &steps[i];
        bool whole = false;
        assert(step->args->device->accelerator == accelerator);
        step->rc = is_worth_it(step->args, &whole) && whole ? 0 : ACCELERATOR_DECLINED;
        begin_item(&items[queued], step->args, &step->partial);
        if (step->rc == 0) step->rc = admit_early(&items[queued], &step->err);
        if (step->rc == 0) of[queued++] = i;
    }
    run_items(accelerator, items, queued);
    for (size_t i = 0; i < queued; i++) {
        struct accelerator_step *step = &steps[of[i]];
        step->rc = items[i].rc;
        if (step->rc < 0) error_set(&step->err, step->rc, "%s", items[i].err.text);
        if (step->rc == 0) step->args->device->resident = items[i].resident;
        count_step(accelerator, step->rc);
    }
}

void accelerator_attend_all(struct accelerator_step *steps, size_t count)
{
    for (size_t first = 0; first < count; first += STEP_ITEMS_MAX)
        attend_some(steps + first, count - first < STEP_ITEMS_MAX ? count - first : STEP_ITEMS_MAX);
}
