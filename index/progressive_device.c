/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_device.c — one query over planes on a device, from lists to the quality record.
 *
 *     step       rows without planes, in the resident window or travelling -> a partial
 *     device     score, weigh, merge with that: the answer so far; judge, choose, pick
 *     wait       which tokens were picked
 *     host       their exact rows are verified and collected, and nobody waits for that
 *     device     weigh again without them, gather_partial over them, merge
 *     wait       the answer
 *
 * What is small and goes back and forth (what was picked, errors, every lse of the pool) lies in
 * pinned memory that the device writes itself: no copies to queue for it. Picked rows are read
 * straight from pinned memory too: each is read once.
 *
 * Others may use the device while rows are collected, which may take as long as a disk does. What
 * they write over is made again then: the same planes give the same picks, and the device works
 * twice for once that it would have stood still for everybody.
 *
 * Nothing is read at 8 bits here: LO would have to be on the device as well, half as much memory
 * again, for tokens that are few. They are read exactly.
 *
 * Query rows are numbered (G, n, H/G), as scan.h groups them.
 */
#include "index/progressive_device.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/cuda/accelerator_state.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/exact.h"
#include "index/kernels/planes_launch.h"
#include "index/planes_device.h"
#include "index/rotation.h"

struct asked {
    const struct progressive_args *args;
    const struct attend_args *attend;
    struct accelerator *accelerator;
    struct planes_device *on;
    struct planes_layout layout;
    struct scan scan;
    size_t rows, rows_per_head; /* Q, Q / G */
    bool *planed;               /* (view_count): from planes */
    size_t segments, chunks;    /* of query rows, per KV head */
    struct attend_args tail;    /* the other views, copied: (G, others) */
    struct attend_device tail_device;
    const struct view **others; /* (G, others) whose copies they are */
    struct partial tail_part;   /* (n, H) */
    struct planes_launch launch;
    struct planes_run *run_list;       /* (P) in the control area */
    const struct view **run_views;     /* (P) */
    uint32_t *begin, *parts;
    uint64_t *limits;
    uint32_t tail_row;          /* first of its rows in the pool */
    size_t control_used;
    uint64_t turn;              /* the accelerator's, when `picks` were made */
    uint32_t *picks, *pick_ids; /* (P); of each run one after the other */
    unsigned char *rows_picked; /* theirs, K beside V */
    size_t picked, picked_bytes;
};

/* ---- what is asked ---- */

static uint64_t least_limit(const struct attend_args *attend)
{
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < attend->q.shape[0]; i++)
        if (attend->limits[i] < least) least = attend->limits[i];
    return least;
}

/* Whoever admits rows knows the views that he gave, not their copies. */
static int admit_other(void *arg, const struct view *view, size_t row, size_t count,
                       unsigned parts)
{
    const struct asked *asked = arg;
    const struct attend_args *attend = asked->attend;
    return attend->admit(attend->admit_arg, asked->others[view - asked->tail.views], row, count,
                         parts);
}

/* Where the resident window begins. Who insists on it wants what is in it read there, exactly. */
static uint64_t window_begin(const struct attend_args *attend)
{
    if (!attend->device->insist || attend->device->window == NULL) return UINT64_MAX;
    uint64_t end = 0, window = attend->device->accelerator->config.window_tokens;
    for (size_t i = 0; i < attend->view_count; i++)
        if (attend->views[i].position + attend->views[i].tokens > end)
            end = attend->views[i].position + attend->views[i].tokens;
    return end > window ? end - window : 0;
}

/* Which views are answered from planes? MEMD_ENOMEM. */
static int sort_views(struct asked *asked, struct arena *arena)
{
    const struct attend_args *attend = asked->attend;
    size_t count = attend->view_count, at = 0;
    uint64_t least = least_limit(attend), begin = window_begin(attend);
    asked->planed = arena_calloc(arena, count, sizeof *asked->planed);
    if (asked->planed == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct view *view = &attend->views[i];
        bool planed = view->position + view->tokens <= least && view->position < begin;
        for (size_t g = 0; g < attend->kv_heads; g++)
            planed &= asked->args->planes[g * count + i] != NULL;
        asked->planed[i] = planed;
        asked->segments += planed;
    }
    size_t rest = count - asked->segments;
    struct view *views = arena_calloc(arena, attend->kv_heads * rest + 1, sizeof *views);
    asked->others = arena_calloc(arena, attend->kv_heads * rest + 1, sizeof *asked->others);
    if (views == NULL || asked->others == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < attend->kv_heads * count; i++) {
        if (asked->planed[i % count]) continue;
        asked->others[at] = &attend->views[i];
        views[at++] = attend->views[i];
    }
    asked->tail = *attend;
    asked->tail.views = views;
    asked->tail.view_count = rest;
    asked->tail_device = (struct attend_device){ .accelerator = asked->accelerator,
                                                 .window = attend->device->window,
                                                 .insist = attend->device->insist,
                                                 .whole = attend };
    asked->tail.device = &asked->tail_device;
    asked->tail.admit = attend->admit == NULL ? NULL : admit_other;
    asked->tail.admit_arg = asked;
    return 0;
}

/* Is it something that a device is asked? From the shapes alone. */
static bool is_askable(const struct progressive_args *args)
{
    const struct attend_args *attend = &args->base.attend;
    const struct accelerator *accelerator =
        attend->device == NULL ? NULL : attend->device->accelerator;
    size_t rows = attend->q.shape[0] * attend->q.shape[1];
    return accelerator != NULL && atomic_load(&accelerator->on) &&
           !atomic_load(&accelerator->lost) && accelerator->config.planes_bytes > 0 &&
           attend->q.shape[2] <= LAUNCH_HEAD_DIM && rows <= PLANES_QUERY_ROWS_MAX &&
           args->base.max_bytes == 0;
}

static int answer_tail(struct asked *asked, struct arena *arena, struct error *err)
{
    size_t head_dim = asked->attend->q.shape[2];
    float *o = arena_alloc(arena, asked->rows * head_dim * sizeof *o);
    float *lse = arena_alloc(arena, asked->rows * sizeof *lse);
    if (o == NULL || lse == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu query rows", asked->rows);
    asked->tail_part = (struct partial){ o, lse, asked->rows, head_dim };
    if (asked->tail.view_count > 0) return attend(&asked->tail, arena, &asked->tail_part, err);
    partial_clear(&asked->tail_part);
    return 0;
}

/* ---- lists ---- */

/* Place in the control area, which is copied to the device as a whole; NULL when it is full. */
static void *control(struct asked *asked, size_t bytes)
{
    size_t at = asked->control_used;
    size_t end = at + (bytes + STEP_ALIGN - 1) / STEP_ALIGN * STEP_ALIGN;
    if (end > STEP_CONTROL_BYTES) return NULL;
    asked->control_used = end;
    return asked->accelerator->control + at;
}

static void *on_device(const struct asked *asked, const void *at)
{
    return asked->accelerator->control_device +
           ((const unsigned char *)at - asked->accelerator->control);
}

/* Number of row r (G, n, H/G) in (n, H). */
static size_t answer_row(const struct asked *asked, size_t r)
{
    const struct scan *scan = &asked->scan;
    size_t j = r % scan->group, i = r / scan->group % scan->queries;
    return i * scan->heads + r / (scan->group * scan->queries) * scan->group + j;
}

/* Runs (segment, KV head, chunk of query rows). False: planes have no room. */
static bool list_runs(struct asked *asked)
{
    const struct attend_args *attend = asked->attend;
    struct planes_device *on = asked->on;
    size_t count = attend->view_count;
    uint32_t at = 0, result = 0;
    for (size_t i = 0; i < attend->kv_heads * count; i++) {
        if (!asked->planed[i % count]) continue;
        size_t g = i / count;
        const unsigned char *hi = planes_cache_get(&on->cache, asked->accelerator, &asked->layout,
                                                   asked->args->planes[i]);
        if (hi == NULL) return false;
        for (size_t first = 0; first < asked->rows_per_head; first += LAUNCH_QUERIES, at++) {
            size_t queries = asked->rows_per_head - first;
            if (queries > LAUNCH_QUERIES) queries = LAUNCH_QUERIES;
            asked->run_views[at] = &attend->views[i];
            asked->run_list[at] = (struct planes_run){
                .hi = hi, .rows = { .k = attend->views[i].k }, /* there are some; not read */
                .position = attend->views[i].position,
                .query = (uint32_t)(g * asked->rows_per_head + first),
                .queries = (uint32_t)queries, .result = result };
            result += 3 * (uint32_t)queries;
        }
    }
    asked->launch.count = at;
    asked->tail_row = result;
    return true;
}

/* Per query row its partials: of each of its runs hi and exact, and the tail. */
static void list_parts(struct asked *asked)
{
    uint32_t count = 0;
    for (uint32_t r = 0; r < asked->rows; r++) {
        asked->begin[r] = count;
        for (uint32_t i = 0; i < asked->launch.count; i++) {
            const struct planes_run *run = &asked->run_list[i];
            if (r < run->query || r >= run->query + run->queries) continue;
            asked->parts[count++] = run->result + (r - run->query);
            asked->parts[count++] = run->result + 2 * run->queries + (r - run->query);
        }
        asked->parts[count++] = asked->tail_row + r;
    }
    asked->begin[asked->rows] = count;
}

/* Everything that goes to the device, in its places. 0, ACCELERATOR_DECLINED, or what the device
 * says. With lock held. */
static int list_all(struct asked *asked, struct arena *arena)
{
    struct accelerator *accelerator = asked->accelerator;
    size_t dims = asked->layout.head_dim, rows = asked->rows;
    size_t runs = asked->segments * asked->attend->kv_heads * asked->chunks;
    size_t pool = asked->segments * 3 * rows + rows;
    if (runs > PLANES_RUNS_MAX || pool > STEP_POOL_ROWS_MAX || pool * dims > STEP_POOL_FLOATS)
        return ACCELERATOR_DECLINED;
    asked->control_used = 0;
    float *q = control(asked, rows * dims * sizeof *q);
    float *tail = control(asked, rows * dims * sizeof *tail);
    asked->run_list = control(asked, runs * sizeof *asked->run_list);
    asked->begin = control(asked, (rows + 1) * sizeof *asked->begin);
    asked->parts = control(asked, (2 * asked->segments + 1) * rows * sizeof *asked->parts);
    asked->run_views = arena_calloc(arena, runs, sizeof *asked->run_views);
    asked->limits = control(asked, rows * sizeof *asked->limits);
    if (asked->limits == NULL || asked->parts == NULL || asked->run_views == NULL)
        return ACCELERATOR_DECLINED;
    scan_init(&asked->scan, asked->attend, 0, asked->attend->q.shape[0], q);
    if (!list_runs(asked)) return ACCELERATOR_DECLINED;
    list_parts(asked);
    float *lse = asked->on->pool_lse;
    for (size_t i = 0; i < pool; i++) lse[i] = -INFINITY;
    for (size_t r = 0; r < rows; r++) {
        size_t from = answer_row(asked, r);
        memcpy(tail + r * dims, asked->tail_part.o + from * dims, dims * sizeof *tail);
        lse[asked->tail_row + r] = asked->tail_part.lse[from];
        asked->limits[r] = UINT64_MAX; /* of a segment that is seen whole */
    }
    struct planes_device *on = asked->on;
    asked->launch = (struct planes_launch){
        .runs = on_device(asked, asked->run_list), .count = asked->launch.count,
        .head_dim = (uint32_t)dims, .queries = (uint32_t)rows, .layout = asked->layout,
        .signs = on->signs, .q = on_device(asked, q), .target = asked->launch.target,
        .scores = on->scores, .square = on->square, .levels = on->levels, .picked = on->picked,
        .left = on->left, .histogram = on->histogram, .thresholds = on->thresholds,
        .total_o = on->total_o, .total_lse = on->total_lse, .lo_runs = on->lo_runs,
        .exact_runs = on->listed, .exact_ids = on->exact_ids,
        .exact_positions = on->exact_positions, .o = accelerator->pool_o, .lse = lse };
    int rc = accelerator->table->copy(accelerator->device, DEVICE_COMPUTE,
                                      accelerator->control_device, accelerator->control,
                                      asked->control_used);
    if (rc == 0)
        rc = accelerator->table->copy(accelerator->device, DEVICE_COMPUTE,
                                      accelerator->pool_o + asked->tail_row * dims,
                                      on_device(asked, tail), rows * dims * sizeof *tail);
    return rc;
}

/* ---- on the device ---- */

static int merge(struct asked *asked, float *ret_o, float *ret_lse)
{
    struct accelerator *accelerator = asked->accelerator;
    return accelerator->table->merge(
        accelerator->device, DEVICE_COMPUTE,
        &(struct merge_launch){ .begin = on_device(asked, asked->begin),
                                .parts = on_device(asked, asked->parts),
                                .count = (uint32_t)asked->rows,
                                .head_dim = asked->launch.head_dim, .o = accelerator->pool_o,
                                .lse = asked->on->pool_lse, .ret_o = ret_o, .ret_lse = ret_lse });
}

static int stage(struct asked *asked, enum planes_stage stage)
{
    struct accelerator *accelerator = asked->accelerator;
    return accelerator->table->planes(accelerator->device, DEVICE_COMPUTE, stage, &asked->launch);
}

static int wait_for(struct accelerator *accelerator, struct error *err)
{
    int rc = accelerator->table->finish(accelerator->device, DEVICE_COMPUTE, err);
    if (rc == 0) accelerator->staging_used = 0;
    return rc;
}

/* Up to what was picked. */
static int judge(struct asked *asked, struct error *err)
{
    int rc = stage(asked, PLANES_SCORE);
    if (rc == 0) rc = stage(asked, PLANES_WEIGH);
    if (rc == 0) rc = merge(asked, asked->on->total_o, asked->on->total_lse);
    for (int i = PLANES_JUDGE; rc == 0 && i <= PLANES_PICK; i++)
        rc = stage(asked, (enum planes_stage)i);
    return rc < 0 ? error_set(err, rc, "planes could not be queued")
                  : wait_for(asked->accelerator, err);
}

/* What was picked, remembered where nobody writes over it. 0, or ACCELERATOR_DECLINED. */
static int note_picks(struct asked *asked, struct arena *arena)
{
    const struct planes_device *on = asked->on;
    size_t runs = asked->launch.count, total = 0, at = 0;
    size_t row_bytes = 2 * asked->layout.head_dim * dtype_bytes(asked->attend->views[0].dtype);
    for (size_t i = 0; i < runs; i++) total += on->picked[i];
    asked->picked = total;
    asked->picked_bytes = total * row_bytes;
    if (asked->picked_bytes > asked->accelerator->config.travel_bytes) return ACCELERATOR_DECLINED;
    asked->picks = arena_alloc(arena, runs * sizeof *asked->picks);
    asked->pick_ids = arena_alloc(arena, total * sizeof *asked->pick_ids);
    asked->rows_picked = arena_alloc(arena, asked->picked_bytes);
    if (asked->picks == NULL || asked->pick_ids == NULL || asked->rows_picked == NULL)
        return ACCELERATOR_DECLINED;
    for (size_t i = 0; i < runs; at += asked->picks[i++]) {
        asked->picks[i] = on->picked[i];
        memcpy(asked->pick_ids + at, on->exact_ids + i * PLANES_TOKENS,
               on->picked[i] * sizeof *asked->pick_ids);
    }
    return 0;
}

/* Have the same tokens been picked again? */
static bool same_picks(const struct asked *asked)
{
    const struct planes_device *on = asked->on;
    const uint32_t *ids = asked->pick_ids;
    for (size_t i = 0; i < asked->launch.count; ids += asked->picks[i++])
        if (on->picked[i] != asked->picks[i] ||
            memcmp(ids, on->exact_ids + i * PLANES_TOKENS, asked->picks[i] * sizeof *ids) != 0)
            return false;
    return true;
}

/* The exact rows of what was picked. Without the lock: they are verified, and may have to come from
 * a disk. 0, or what the caller's functions say. */
static int collect(struct asked *asked, struct error *err)
{
    const struct attend_args *attend = asked->attend;
    size_t half = asked->layout.head_dim * dtype_bytes(attend->views[0].dtype);
    unsigned char *to = asked->rows_picked;
    const uint32_t *ids = asked->pick_ids;
    for (size_t i = 0; i < asked->launch.count; ids += asked->picks[i++]) {
        const struct view *view = asked->run_views[i];
        const unsigned char *k = view->k, *v = view->v;
        int stopped = attend->stop == NULL ? 0 : attend->stop(attend->stop_arg);
        if (stopped < 0) return error_set(err, stopped, "attend: %s", error_text(stopped));
        for (uint32_t row = 0; row < asked->picks[i]; row++, to += 2 * half) {
            if (!scan_admit(&asked->scan, view, ids[row], 1, VIEW_K | VIEW_V))
                return scan_stopped(&asked->scan, err);
            memcpy(to, k + ids[row] * view->k_stride_bytes, half);
            memcpy(to + half, v + ids[row] * view->v_stride_bytes, half);
        }
    }
    return 0;
}

/* They into pinned memory, which the device reads, and into lists. */
static void list_picked(struct asked *asked)
{
    struct accelerator *accelerator = asked->accelerator;
    struct planes_device *on = asked->on;
    uint32_t dtype = asked->attend->views[0].dtype;
    size_t half = asked->layout.head_dim * dtype_bytes(dtype), used = 0;
    memcpy(accelerator->travel, asked->rows_picked, asked->picked_bytes);
    for (uint32_t i = 0; i < asked->launch.count; i++) {
        const struct planes_run *run = &asked->run_list[i];
        on->runs[i] = (struct gather_run){
            .rows = { .k = accelerator->travel + used, .v = accelerator->travel + used + half,
                      .k_stride_bytes = (uint32_t)(2 * half),
                      .v_stride_bytes = (uint32_t)(2 * half), .k_dtype = dtype,
                      .v_dtype = dtype },
            .ids = accelerator->identity,
            .positions = on->exact_positions + (size_t)i * PLANES_TOKENS, .count = asked->picks[i],
            .query = run->query, .queries = run->queries,
            .result = run->result + 2 * run->queries };
        used += asked->picks[i] * 2 * half;
    }
}

static int refine(struct asked *asked, struct error *err)
{
    struct accelerator *accelerator = asked->accelerator;
    const struct device_table *table = accelerator->table;
    asked->launch.again = 1;
    int rc = stage(asked, PLANES_WEIGH);
    if (rc == 0)
        rc = table->gather(
            accelerator->device, DEVICE_COMPUTE,
            &(struct gather_launch){ .runs = asked->on->runs, .count = asked->launch.count,
                                     .head_dim = asked->launch.head_dim,
                                     .rope = accelerator_rope(asked->attend->rope,
                                                              accelerator->turns),
                                     .q = asked->launch.q,
                                     .limits = on_device(asked, asked->limits),
                                     .o = accelerator->pool_o, .lse = asked->on->pool_lse });
    if (rc == 0) rc = merge(asked, accelerator->answer_o, accelerator->answer_lse);
    return rc < 0 ? error_set(err, rc, "picked rows could not be queued")
                  : wait_for(accelerator, err);
}

/* ---- the answer ---- */

static void hand_out(const struct asked *asked, const struct index_answer *ret_answer)
{
    const struct accelerator *accelerator = asked->accelerator;
    const struct partial *partial = &ret_answer->partial;
    for (size_t r = 0; r < asked->rows; r++) {
        size_t to = answer_row(asked, r), dims = partial->head_dim;
        memcpy(partial->o + to * dims, accelerator->answer_o + r * dims, dims * sizeof(float));
        partial->lse[to] = accelerator->answer_lse[r];
    }
}

static void judge_row(const struct asked *asked, size_t r, struct index_quality *quality)
{
    const struct planes_device *on = asked->on;
    size_t row = answer_row(asked, r);
    double lse = (double)asked->accelerator->answer_lse[r], left = 0.0, hi = 0.0;
    double exact = exp((double)on->pool_lse[asked->tail_row + r] - lse);
    for (uint32_t i = 0; i < asked->launch.count; i++) {
        const struct planes_run *run = &asked->run_list[i];
        if (r < run->query || r >= run->query + run->queries) continue;
        size_t m = r - run->query;
        left += (double)on->left[(size_t)i * LAUNCH_QUERIES + m];
        hi += exp((double)on->pool_lse[run->result + m] - lse);
        exact += exp((double)on->pool_lse[run->result + 2 * run->queries + m] - lse);
    }
    float *mass = quality->mass + row * INDEX_LEVELS;
    for (size_t level = 0; level < INDEX_LEVELS; level++) mass[level] = 0.0F;
    mass[INDEX_HI] = (float)hi;
    mass[INDEX_EXACT] = (float)exact;
    quality->predicted_error[row] = (float)sqrt(left);
    quality->limited[row] = false;
}

static void fill_quality(const struct asked *asked, struct index_quality *quality)
{
    size_t row_bytes = asked->layout.head_dim * dtype_bytes(asked->attend->views[0].dtype);
    if (quality == NULL) return;
    for (size_t r = 0; r < asked->rows; r++) judge_row(asked, r, quality);
    struct exact_cost tail = exact_cost(&asked->tail, 2);
    quality->rows[INDEX_HI] += (uint64_t)asked->launch.count * 2 * PLANES_TOKENS;
    quality->bytes[INDEX_HI] += (uint64_t)asked->launch.count * asked->layout.hi_bytes;
    quality->rows[INDEX_EXACT] += 2 * asked->picked + tail.rows;
    quality->bytes[INDEX_EXACT] += 2 * asked->picked * row_bytes + tail.bytes;
}

/* What the device did not do is the CPU's to do. */
static int declined(struct asked *asked, int rc, const struct error *why)
{
    if (rc < 0) accelerator_failed(asked->accelerator, rc, why->text);
    return ACCELERATOR_DECLINED;
}

/* Up to what was picked. 0 or ACCELERATOR_DECLINED. With lock held. */
static int ask_first(struct asked *asked, struct arena *arena)
{
    struct accelerator *accelerator = asked->accelerator;
    struct error why = { 0 };
    if (atomic_load(&accelerator->lost) || !planes_device_open(accelerator))
        return ACCELERATOR_DECLINED;
    asked->on = accelerator->planes;
    asked->on->cache.asking++;
    asked->turn = ++accelerator->turn;
    asked->launch.again = 0;
    int rc = list_all(asked, arena);
    if (rc < 0) error_set(&why, rc, "lists could not be sent");
    if (rc == 0 && atomic_load(&accelerator->lost)) rc = ACCELERATOR_DECLINED;
    if (rc == 0) rc = judge(asked, &why);
    return rc == 0 ? 0 : declined(asked, rc, &why);
}

/* The answer. 0 or ACCELERATOR_DECLINED. With lock held. */
static int ask_again(struct asked *asked, struct arena *arena,
                     const struct index_answer *ret_answer)
{
    struct accelerator *accelerator = asked->accelerator;
    struct error why = { 0 };
    int rc = 0;
    if (atomic_load(&accelerator->lost)) return ACCELERATOR_DECLINED;
    if (accelerator->turn != asked->turn) rc = ask_first(asked, arena);
    if (rc == 0 && !same_picks(asked)) rc = ACCELERATOR_DECLINED;
    if (rc != 0) return rc;
    list_picked(asked);
    rc = refine(asked, &why);
    if (rc < 0) return declined(asked, rc, &why);
    accelerator->turn++;
    hand_out(asked, ret_answer);
    fill_quality(asked, ret_answer->quality);
    asked->attend->device->resident = asked->tail_device.resident;
    ACCELERATOR_COUNT(accelerator, planes_steps_total, 1);
    ACCELERATOR_COUNT(accelerator, travelled_bytes_total, asked->picked_bytes);
    return 0;
}

static int ask(struct asked *asked, struct arena *arena, const struct index_answer *ret_answer,
               struct error *err)
{
    pthread_mutex_t *lock = &asked->accelerator->lock;
    const struct attend_args *attend = asked->attend;
    int stopped = attend->stop == NULL ? 0 : attend->stop(attend->stop_arg);
    if (stopped < 0) return error_set(err, stopped, "attend: %s", error_text(stopped));
    pthread_mutex_lock(lock);
    int rc = ask_first(asked, arena);
    if (rc == 0) rc = note_picks(asked, arena);
    pthread_mutex_unlock(lock);
    if (rc == 0) rc = collect(asked, err);
    if (rc != 0) return rc;
    pthread_mutex_lock(lock);
    rc = ask_again(asked, arena, ret_answer);
    pthread_mutex_unlock(lock);
    return rc;
}

bool progressive_device_has_all(const struct progressive_args *args)
{
    const struct attend_args *attend = &args->base.attend;
    uint64_t begin = is_askable(args) ? window_begin(attend) : UINT64_MAX;
    for (size_t i = 0; i < attend->view_count; i++)
        if (attend->views[i].position < begin) return false;
    return true;
}

int progressive_device_attend(const struct progressive_args *args, float target,
                              struct arena *arena, const struct index_answer *ret_answer,
                              struct error *err)
{
    const struct attend_args *attend = &args->base.attend;
    if (!is_askable(args)) return ACCELERATOR_DECLINED;
    size_t rows = attend->q.shape[0] * attend->q.shape[1];
    struct asked asked = { .args = args, .attend = attend,
                           .accelerator = attend->device->accelerator, .rows = rows,
                           .rows_per_head = rows / attend->kv_heads,
                           .launch = { .target = target } };
    asked.chunks = (asked.rows_per_head + LAUNCH_QUERIES - 1) / LAUNCH_QUERIES;
    planes_layout_init(attend->q.shape[2], &asked.layout);
    int rc = sort_views(&asked, arena);
    if (rc < 0) return error_set(err, rc, "no memory for %zu views", attend->view_count);
    if (asked.segments == 0) return ACCELERATOR_DECLINED;
    rc = answer_tail(&asked, arena, err);
    if (rc < 0) return rc;
    rc = ask(&asked, arena, ret_answer, err);
    if (rc == ACCELERATOR_DECLINED) ACCELERATOR_COUNT(asked.accelerator, declined_total, 1);
    return rc;
}
