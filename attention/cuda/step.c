/* SPDX-License-Identifier: Apache-2.0 */
/* step.c — a batch of steps: listed on the host, sent off at once, merged on the device.
 *
 *     transfer stream  ┌→ travelling rows ────────────┐ event
 *     compute stream   └─ lists → window's runs ······└→ travelling runs → merge → (o, lse)
 *
 * The transfer stream begins behind an event of the compute stream: not because it has to wait for
 * anything, but because a stream that is captured into a graph must begin inside the capture.
 *
 * A list says for every run which rows and which query rows; the kernels know nothing of contexts.
 * What the lists hold is copied together, once. The window's runs do not wait for the rows that
 * travel. The merge writes the answer straight into pinned memory of the host: it is small, and one
 * thing less is queued.
 *
 * Rows of queries and of the answer are numbered alike: per item (G, n, H/G), as scan.h groups
 * them.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/error.h"

enum { FORKED, TRAVELLED }; /* events of the batch */

static uint32_t divide_up(size_t a, size_t b)
{
    return (uint32_t)((a + b - 1) / b);
}

/* ---- listing ---- */

/* What an item adds to a batch at most, worked out before anything is added. */
struct demand {
    uint32_t queries;      /* rows */
    uint32_t chunks;       /* of up to LAUNCH_QUERIES query rows, over all KV heads */
    uint32_t window_runs, travel_runs, travel_rows;
    uint64_t resident;     /* tokens */
};

/* Token `position` is in the window. */
static bool has(const struct window *window, uint64_t position)
{
    if (window == NULL) return false;
    return position < window->sinks || (position >= window->from && position < window->to);
}

/* The first position behind `position` where has() changes. */
static uint64_t change(const struct window *window, uint64_t position)
{
    uint64_t next = UINT64_MAX;
    if (window == NULL) return next;
    uint64_t edges[] = { window->sinks, window->from, window->to };
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
        if (edges[i] > position && edges[i] < next) next = edges[i];
    return next;
}

bool step_next_piece(const struct step_item *item, const struct view *view, uint64_t limit,
                     struct step_piece *piece)
{
    size_t row = piece->view == view ? piece->row + piece->count : 0;
    uint64_t at = view->position + row;
    uint64_t end = view->position + view->tokens < limit ? view->position + view->tokens : limit;
    if (at >= end) return false;
    uint64_t to = change(item->window, at);
    *piece = (struct step_piece){ .view = view, .row = row, .resident = has(item->window, at),
                                  .count = (size_t)((to < end ? to : end) - at) };
    return true;
}

static void measure(const struct step_item *item, struct demand *ret_demand)
{
    const struct attend_args *args = item->args;
    size_t rows = args->q.shape[0] * item->scan.group, resident = 0, away = 0, runs = 0;
    for (size_t i = item->first_view; i < item->view_end; i++) {
        struct step_piece piece = { .view = NULL };
        while (step_next_piece(item, &args->views[i], item->scan.limit_max, &piece)) {
            *(piece.resident ? &resident : &away) += piece.count;
            /* Of a piece one more, where the ring begins again inside it. */
            if (piece.resident) runs += divide_up(piece.count, STEP_SPLIT_ROWS) + 1;
        }
    }
    uint32_t chunks = (uint32_t)args->kv_heads * divide_up(rows, LAUNCH_QUERIES);
    *ret_demand = (struct demand){
        .queries = (uint32_t)(rows * args->kv_heads),
        .chunks = chunks,
        .window_runs = chunks * (uint32_t)runs,
        .travel_runs = chunks * divide_up(away, STEP_SPLIT_ROWS),
        .travel_rows = (uint32_t)(away < UINT32_MAX ? away : UINT32_MAX),
        .resident = resident,
    };
}

static bool fits(const struct accelerator *accelerator, const struct step_item *item,
                 const struct demand *demand)
{
    const struct step_batch *batch = &accelerator->batch;
    const struct tensor *q = &item->args->q;
    size_t row_bytes = 2 * q->shape[2] * dtype_bytes(item->args->views[0].dtype);
    size_t travel = (size_t)demand->travel_rows * item->args->kv_heads * row_bytes + STEP_ALIGN;
    size_t runs = (size_t)demand->window_runs + demand->travel_runs;
    size_t pool = batch->pool_rows + runs * LAUNCH_QUERIES;
    return batch->item_count < STEP_ITEMS_MAX &&
           (batch->queries + demand->queries) * q->shape[2] <= STEP_QUERY_FLOATS &&
           batch->window_count + demand->window_runs <= STEP_RUNS_MAX &&
           batch->travel_count + demand->travel_runs <= STEP_RUNS_MAX &&
           batch->position_count + demand->travel_rows <= STEP_TRAVEL_ROWS_MAX &&
           pool <= STEP_POOL_ROWS_MAX && pool * q->shape[2] <= STEP_POOL_FLOATS &&
           batch->travel_used + travel <= accelerator->config.travel_bytes;
}

/* The rows that travel, of one item: per KV head (rows, 2, D), K beside V. */
struct travel {
    size_t base;     /* in the travel buffers */
    size_t row_bytes; /* of K and V */
    uint32_t rows, first; /* their positions are positions[first …] */
};

/* One piece of them into pinned memory, from row `row` of KV head g on. */
static void pack_piece(struct accelerator *accelerator, const struct travel *travel,
                       const struct step_piece *piece, size_t g, uint32_t row)
{
    const struct view *view = piece->view;
    const unsigned char *k = view->k, *v = view->v;
    uint64_t *positions = accelerator->batch.positions + travel->first;
    size_t half = travel->row_bytes / 2;
    unsigned char *to =
        accelerator->travel + travel->base + (g * travel->rows + row) * travel->row_bytes;
    for (size_t t = 0; t < piece->count; t++, to += travel->row_bytes) {
        size_t from = piece->row + t;
        memcpy(to, k + from * view->k_stride_bytes, half);
        memcpy(to + half, v + from * view->v_stride_bytes, half);
        positions[row + t] = view->position + from;
    }
}

/* All of them. False: `stop` or `admit` said no. */
static bool pack_rows(struct accelerator *accelerator, struct step_item *item,
                      const struct travel *travel)
{
    const struct attend_args *args = item->args;
    size_t views = item->view_end - item->first_view;
    uint32_t row = 0;
    for (size_t i = 0; i < args->kv_heads * views; i++) {
        size_t g = i / views;
        const struct view *view = &args->views[g * args->view_count + item->first_view + i % views];
        struct step_piece piece = { .view = NULL };
        if (i % views == 0) row = 0; /* the next head */
        while (step_next_piece(item, view, item->scan.limit_max, &piece)) {
            if (piece.resident) continue;
            if (!scan_admit(&item->scan, view, piece.row, piece.count, VIEW_K | VIEW_V))
                return false;
            pack_piece(accelerator, travel, &piece, g, row);
            row += (uint32_t)piece.count;
        }
    }
    assert(row == travel->rows);
    return true;
}

/* Query rows of a chunk, and what they read. */
struct chunk {
    uint32_t g, query, queries;
};

/* Rows position … position + count - 1 of the window, from `slot` on. */
static void list_window(struct step_batch *batch, const struct window *window,
                        const struct chunk *chunk, uint64_t position, uint64_t count,
                        uint64_t slot)
{
    const struct window_shape *shape = &window->shape;
    size_t k_head = (size_t)shape->head_dim * dtype_bytes(window->key_dtype);
    size_t v_head = (size_t)shape->head_dim * dtype_bytes(shape->dtype);
    for (uint64_t at = 0; at < count; at += STEP_SPLIT_ROWS) {
        uint64_t rows = count - at < STEP_SPLIT_ROWS ? count - at : STEP_SPLIT_ROWS;
        batch->window_runs[batch->window_count++] = (struct partial_run){
            .rows = { .k = window->keys + (slot + at) * window->key_row_bytes + chunk->g * k_head,
                      .v = window->values + (slot + at) * window->value_row_bytes +
                           chunk->g * v_head,
                      .k_stride_bytes = (uint32_t)window->key_row_bytes,
                      .v_stride_bytes = (uint32_t)window->value_row_bytes,
                      .k_dtype = window->key_dtype, .v_dtype = shape->dtype },
            .count = (uint32_t)rows, .query = chunk->query, .queries = chunk->queries,
            .result = batch->pool_rows, .position = position + at };
        batch->pool_rows += chunk->queries;
    }
}

/* Tokens begin … end-1, all of which are there. */
static void list_stretch(struct accelerator *accelerator, const struct window *window,
                         const struct chunk *chunk, uint64_t begin, uint64_t end)
{
    uint64_t ring = accelerator->config.window_tokens, sinks = window->sinks;
    for (uint64_t at = begin, count = 0; at < end; at += count) {
        uint64_t slot = at < sinks ? at : accelerator->config.sink_tokens + at % ring;
        uint64_t room = at < sinks ? sinks - at : ring - at % ring;
        count = end - at < room ? end - at : room;
        list_window(&accelerator->batch, window, chunk, at, count, slot);
    }
}

/* What the item's views have of the window; of neighbours one stretch, so that runs are long. */
static void list_resident(struct accelerator *accelerator, const struct step_item *item,
                          const struct chunk *chunk)
{
    uint64_t begin = 0, end = 0;
    if (item->resident == 0) return;
    for (size_t i = item->first_view; i < item->view_end; i++) {
        struct step_piece piece = { .view = NULL };
        while (step_next_piece(item, &item->args->views[i], item->scan.limit_max, &piece)) {
            uint64_t at = piece.view->position + piece.row;
            if (!piece.resident) continue;
            if (at != end) {
                list_stretch(accelerator, item->window, chunk, begin, end);
                begin = at;
            }
            end = at + piece.count;
        }
    }
    list_stretch(accelerator, item->window, chunk, begin, end);
}

static void list_travel(struct accelerator *accelerator, const struct chunk *chunk,
                        const struct travel *travel, uint32_t dtype)
{
    struct step_batch *batch = &accelerator->batch;
    for (uint32_t at = 0; at < travel->rows; at += STEP_SPLIT_ROWS) {
        uint32_t rows = travel->rows - at < STEP_SPLIT_ROWS ? travel->rows - at : STEP_SPLIT_ROWS;
        const unsigned char *base = accelerator->travel_device + travel->base +
                                    (size_t)chunk->g * travel->rows * travel->row_bytes;
        batch->travel_first[batch->travel_count] = travel->first + at;
        batch->travel_runs[batch->travel_count++] = (struct gather_run){
            .rows = { .k = base, .v = base + travel->row_bytes / 2,
                      .k_stride_bytes = (uint32_t)travel->row_bytes,
                      .v_stride_bytes = (uint32_t)travel->row_bytes, .k_dtype = dtype,
                      .v_dtype = dtype },
            .ids = accelerator->identity + at, .count = rows, .query = chunk->query,
            .queries = chunk->queries, .result = batch->pool_rows };
        batch->pool_rows += chunk->queries;
    }
}

/* The runs from these counts on make the answers of the chunk. */
static void list_parts(struct step_batch *batch, const struct chunk *chunk, uint32_t window_from,
                       uint32_t travel_from)
{
    for (uint32_t m = 0; m < chunk->queries; m++) {
        batch->begin[chunk->query + m] = batch->part_count;
        for (uint32_t i = window_from; i < batch->window_count; i++)
            batch->parts[batch->part_count++] = batch->window_runs[i].result + m;
        for (uint32_t i = travel_from; i < batch->travel_count; i++)
            batch->parts[batch->part_count++] = batch->travel_runs[i].result + m;
    }
}

static void list_item(struct accelerator *accelerator, struct step_item *item,
                      const struct travel *travel)
{
    struct step_batch *batch = &accelerator->batch;
    const struct attend_args *args = item->args;
    uint32_t group = (uint32_t)item->scan.group;
    uint32_t rows = (uint32_t)args->q.shape[0] * group; /* of a KV head */
    for (uint32_t g = 0; g < args->kv_heads; g++)
        for (uint32_t first = 0; first < rows; first += LAUNCH_QUERIES) {
            struct chunk chunk = { .g = g, .query = batch->queries + g * rows + first };
            chunk.queries = rows - first < LAUNCH_QUERIES ? rows - first : LAUNCH_QUERIES;
            for (uint32_t m = 0; m < chunk.queries; m++)
                batch->limits[chunk.query + m] = args->limits[(first + m) / group];
            uint32_t window_from = batch->window_count, travel_from = batch->travel_count;
            list_resident(accelerator, item, &chunk);
            list_travel(accelerator, &chunk, travel, args->views[0].dtype);
            list_parts(batch, &chunk, window_from, travel_from);
        }
    batch->queries += rows * (uint32_t)args->kv_heads;
    batch->begin[batch->queries] = batch->part_count;
}

bool step_same_rope(const struct rope *rope, const struct rope *other)
{
    if (rope == other || rope == NULL || other == NULL) return rope == other;
    if (rope->pairing != other->pairing || rope->rotary_dims != other->rotary_dims ||
        rope->magnitude != other->magnitude)
        return false;
    for (size_t i = 0; i < rope->rotary_dims / 2; i++)
        if (rope->inv_freq[i] != other->inv_freq[i]) return false;
    return true;
}

const struct attend_args *step_source(const struct step_item *item)
{
    const struct attend_args *whole = item->args->device->whole;
    return whole == NULL ? item->args : whole;
}

static void begin_batch(struct accelerator *accelerator, const struct step_item *item)
{
    struct step_batch *batch = &accelerator->batch;
    batch->number++;
    batch->head_dim = (uint32_t)item->args->q.shape[2];
    batch->rope = item->args->rope;
    batch->queries = batch->window_count = batch->travel_count = batch->position_count = 0;
    batch->part_count = batch->pool_rows = 0;
    batch->travel_used = 0;
}

int step_add(struct accelerator *accelerator, struct step_item *item)
{
    struct step_batch *batch = &accelerator->batch;
    const struct attend_args *args = item->args;
    if (atomic_load(&accelerator->lost)) return ACCELERATOR_DECLINED;
    if (batch->item_count == 0) begin_batch(accelerator, item);
    if (batch->head_dim != args->q.shape[2] || !step_same_rope(batch->rope, args->rope))
        return MEMD_ELIMIT;
    float *q = batch->q + (size_t)batch->queries * batch->head_dim;
    /* Its slots are read by an item before this one. */
    if (item->window != NULL && item->window->batch == batch->number &&
        window_is_behind(item->window, item))
        return MEMD_ELIMIT;
    if (batch->queries * batch->head_dim + tensor_elements(&args->q) > STEP_QUERY_FLOATS)
        return MEMD_ELIMIT;
    scan_init(&item->scan, args, 0, args->q.shape[0], q);
    int stopped = args->stop == NULL ? 0 : args->stop(args->stop_arg);
    if (stopped < 0) return error_set(&item->err, stopped, "attend: %s", error_text(stopped));
    if (item->window != NULL && !window_update(item->window, item)) item->window = NULL;
    int rc = scan_stopped(&item->scan, &item->err);
    if (rc < 0) return rc;
    if (atomic_load(&accelerator->lost)) return ACCELERATOR_DECLINED;
    struct demand demand;
    measure(item, &demand);
    if (!fits(accelerator, item, &demand)) return MEMD_ELIMIT;
    struct travel travel = { .base = batch->travel_used, .rows = demand.travel_rows,
                             .first = batch->position_count,
                             .row_bytes = 2 * batch->head_dim *
                                          dtype_bytes(args->views[0].dtype) };
    if (!pack_rows(accelerator, item, &travel)) return scan_stopped(&item->scan, &item->err);
    size_t bytes = (size_t)travel.rows * args->kv_heads * travel.row_bytes;
    batch->travel_used += (bytes + STEP_ALIGN - 1) / STEP_ALIGN * STEP_ALIGN;
    batch->position_count += travel.rows;
    item->first_answer = batch->queries;
    item->resident = demand.resident;
    if (item->window != NULL) item->window->batch = batch->number;
    list_item(accelerator, item, &travel);
    batch->items[batch->item_count++] = item;
    return 0;
}

/* ---- sending off ---- */

/* Where things stand in the control area, on both sides. */
struct layout {
    size_t q, limits, window_runs, travel_runs, positions, begin, parts, bytes;
};

static size_t place(size_t *used, size_t bytes)
{
    size_t at = *used;
    *used = (at + bytes + STEP_ALIGN - 1) / STEP_ALIGN * STEP_ALIGN;
    return at;
}

static void lay_out(const struct step_batch *batch, struct layout *ret_layout)
{
    struct layout at = { .bytes = 0 };
    at.q = place(&at.bytes, (size_t)batch->queries * batch->head_dim * sizeof *batch->q);
    at.limits = place(&at.bytes, batch->queries * sizeof *batch->limits);
    at.window_runs = place(&at.bytes, batch->window_count * sizeof *batch->window_runs);
    at.travel_runs = place(&at.bytes, batch->travel_count * sizeof *batch->travel_runs);
    at.positions = place(&at.bytes, batch->position_count * sizeof *batch->positions);
    at.begin = place(&at.bytes, (batch->queries + 1) * sizeof *batch->begin);
    at.parts = place(&at.bytes, batch->part_count * sizeof *batch->parts);
    assert(at.bytes <= STEP_CONTROL_BYTES);
    *ret_layout = at;
}

static void pack_lists(struct accelerator *accelerator, const struct layout *at)
{
    struct step_batch *batch = &accelerator->batch;
    unsigned char *to = accelerator->control;
    const uint64_t *positions = (const uint64_t *)(void *)(accelerator->control_device +
                                                           at->positions);
    for (uint32_t i = 0; i < batch->travel_count; i++)
        batch->travel_runs[i].positions = positions + batch->travel_first[i];
    memcpy(to + at->q, batch->q, (size_t)batch->queries * batch->head_dim * sizeof *batch->q);
    memcpy(to + at->limits, batch->limits, batch->queries * sizeof *batch->limits);
    memcpy(to + at->window_runs, batch->window_runs,
           batch->window_count * sizeof *batch->window_runs);
    memcpy(to + at->travel_runs, batch->travel_runs,
           batch->travel_count * sizeof *batch->travel_runs);
    memcpy(to + at->positions, batch->positions,
           batch->position_count * sizeof *batch->positions);
    memcpy(to + at->begin, batch->begin, (batch->queries + 1) * sizeof *batch->begin);
    memcpy(to + at->parts, batch->parts, batch->part_count * sizeof *batch->parts);
}

static const void *on_device(const struct accelerator *accelerator, size_t offset)
{
    return accelerator->control_device + offset;
}

static int launch_window(struct accelerator *accelerator, const struct layout *at)
{
    const struct step_batch *batch = &accelerator->batch;
    return accelerator->table->partial(
        accelerator->device, DEVICE_COMPUTE,
        &(struct partial_launch){ .runs = on_device(accelerator, at->window_runs),
                                  .count = batch->window_count, .head_dim = batch->head_dim,
                                  .q = on_device(accelerator, at->q),
                                  .limits = on_device(accelerator, at->limits),
                                  .o = accelerator->pool_o, .lse = accelerator->pool_lse });
}

static int launch_travel(struct accelerator *accelerator, const struct layout *at)
{
    const struct step_batch *batch = &accelerator->batch;
    return accelerator->table->gather(
        accelerator->device, DEVICE_COMPUTE,
        &(struct gather_launch){ .runs = on_device(accelerator, at->travel_runs),
                                 .count = batch->travel_count, .head_dim = batch->head_dim,
                                 .rope = accelerator_rope(batch->rope, accelerator->turns),
                                 .q = on_device(accelerator, at->q),
                                 .limits = on_device(accelerator, at->limits),
                                 .o = accelerator->pool_o, .lse = accelerator->pool_lse });
}

static int launch_merge(struct accelerator *accelerator, const struct layout *at)
{
    const struct step_batch *batch = &accelerator->batch;
    return accelerator->table->merge(
        accelerator->device, DEVICE_COMPUTE,
        &(struct merge_launch){ .begin = on_device(accelerator, at->begin),
                                .parts = on_device(accelerator, at->parts),
                                .count = batch->queries, .head_dim = batch->head_dim,
                                .o = accelerator->pool_o, .lse = accelerator->pool_lse,
                                .ret_o = accelerator->answer_o,
                                .ret_lse = accelerator->answer_lse });
}

static int send(struct accelerator *accelerator, struct error *err)
{
    const struct device_table *table = accelerator->table;
    struct device *device = accelerator->device;
    const struct step_batch *batch = &accelerator->batch;
    struct layout at;
    lay_out(batch, &at);
    accelerator->turn++;
    pack_lists(accelerator, &at);
    bool travels = batch->travel_count > 0;
    int rc = 0;
    if (travels) rc = table->record(device, FORKED, DEVICE_COMPUTE);
    if (rc == 0 && travels) rc = table->await(device, FORKED, DEVICE_TRANSFER);
    if (rc == 0 && travels)
        rc = table->copy(device, DEVICE_TRANSFER, accelerator->travel_device, accelerator->travel,
                         batch->travel_used);
    if (rc == 0 && travels) rc = table->record(device, TRAVELLED, DEVICE_TRANSFER);
    if (rc == 0)
        rc = table->copy(device, DEVICE_COMPUTE, accelerator->control_device, accelerator->control,
                         at.bytes);
    if (rc == 0) rc = launch_window(accelerator, &at);
    if (rc == 0 && travels) rc = table->await(device, TRAVELLED, DEVICE_COMPUTE);
    if (rc == 0) rc = launch_travel(accelerator, &at);
    if (rc == 0) rc = launch_merge(accelerator, &at);
    if (rc < 0) return error_set(err, rc, "a step could not be queued");
    return table->finish(device, DEVICE_COMPUTE, err);
}

/* Rows (G, n, H/G) of the batch's answer into, or onto, the caller's (n, H). */
static void hand_out(const struct accelerator *accelerator, const struct step_item *item)
{
    const struct scan *scan = &item->scan;
    size_t head_dim = scan->head_dim, rows = scan->queries * scan->heads;
    for (size_t row = 0; row < rows; row++) {
        size_t j = row % scan->group, i = row / scan->group % scan->queries;
        size_t g = row / (scan->group * scan->queries);
        size_t to = i * scan->heads + g * scan->group + j, from = item->first_answer + row;
        struct partial part = { accelerator->answer_o + from * head_dim,
                                accelerator->answer_lse + from, 1, head_dim };
        struct partial into = { item->partial.o + to * head_dim, item->partial.lse + to, 1,
                                head_dim };
        if (!item->adds) partial_clear(&into);
        partial_merge(&into, &part);
    }
}

int step_run(struct accelerator *accelerator)
{
    struct step_batch *batch = &accelerator->batch;
    struct error err = { 0 };
    int rc = send(accelerator, &err);
    if (rc < 0) {
        accelerator_failed(accelerator, rc, err.text);
        return ACCELERATOR_DECLINED;
    }
    accelerator->staging_used = 0; /* everything on the stream is done */
    for (uint32_t i = 0; i < batch->item_count; i++) hand_out(accelerator, batch->items[i]);
    ACCELERATOR_COUNT(accelerator, batches_total, 1);
    ACCELERATOR_COUNT(accelerator, travelled_bytes_total, batch->travel_used);
    return 0;
}
