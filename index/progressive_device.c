/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_device.c — one query over planes on a device, from lists to the quality record.
 *
 *     the CPU    rows without planes -> a partial of its own
 *     device     score, weigh, merge with that: the answer so far; judge, choose, pick
 *     wait       which tokens were picked
 *     host       their exact rows into pinned memory
 *     device     weigh again without them, gather_partial over them, merge
 *     wait       the answer
 *
 * What is small and goes back and forth (what was picked, errors, every lse of the pool) lies in
 * pinned memory that the device writes itself: no copies to queue for it.
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

enum { RUNS_MAX = 2048, QUERY_ROWS_MAX = 256, SIGNS_BYTES = 256 };

/* What is kept on the device between queries. */
struct planes_device {
    struct planes_cache cache;
    /* On the device. */
    float *scores, *square, *thresholds, *total_o, *total_lse;
    uint8_t *levels, *signs;
    unsigned long long *histogram;
    struct partial_run *lo_runs;
    /* Pinned. */
    uint32_t *picked, *exact_ids;
    uint64_t *exact_positions;
    float *left, *pool_lse;
    struct gather_run *listed, *runs; /* by the device; by the host, over rows that travelled */
};

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
    const struct view **others; /* (G, others) whose copies they are */
    struct partial tail_part;   /* (n, H) */
    struct planes_launch launch;
    struct planes_run *run_list;       /* (P) in the control area */
    const struct view **run_views;     /* (P) */
    uint32_t *begin, *parts;
    uint64_t *limits;
    uint32_t tail_row;          /* first of its rows in the pool */
    size_t control_used;
    uint64_t picked;
};

/* ---- memory ---- */

static void free_device(struct accelerator *accelerator)
{
    struct planes_device *on = accelerator->planes;
    const struct device_table *table = accelerator->table;
    void *device[] = { on->scores, on->square, on->thresholds, on->total_o, on->total_lse,
                       on->levels, on->signs, on->histogram, on->lo_runs };
    void *host[] = { on->picked, on->exact_ids, on->exact_positions, on->left, on->pool_lse,
                     on->listed, on->runs };
    planes_cache_fini(&on->cache, accelerator);
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++)
        if (device[i] != NULL) table->free(accelerator->device, device[i]);
    for (size_t i = 0; i < sizeof host / sizeof host[0]; i++)
        if (host[i] != NULL) table->free_host(accelerator->device, host[i]);
    free(on);
    accelerator->planes = NULL;
}

static int allocate(struct accelerator *accelerator, struct planes_device *on, struct error *err)
{
    const struct device_table *table = accelerator->table;
    const size_t runs = RUNS_MAX, rows = QUERY_ROWS_MAX;
    struct {
        void **at;
        size_t bytes;
        bool host;
    } wanted[] = {
        { (void **)&on->scores, runs * LAUNCH_QUERIES * PLANES_TOKENS * sizeof(float), false },
        { (void **)&on->square, runs * LAUNCH_QUERIES * sizeof(float), false },
        { (void **)&on->thresholds, rows * 2 * sizeof(float), false },
        { (void **)&on->total_o, rows * LAUNCH_HEAD_DIM * sizeof(float), false },
        { (void **)&on->total_lse, rows * sizeof(float), false },
        { (void **)&on->levels, runs * PLANES_TOKENS, false },
        { (void **)&on->signs, SIGNS_BYTES, false },
        { (void **)&on->histogram, rows * PLANES_BINS * sizeof *on->histogram, false },
        { (void **)&on->lo_runs, runs * sizeof *on->lo_runs, false },
        { (void **)&on->picked, runs * sizeof *on->picked, true },
        { (void **)&on->exact_ids, runs * PLANES_TOKENS * sizeof *on->exact_ids, true },
        { (void **)&on->exact_positions, runs * PLANES_TOKENS * sizeof(uint64_t), true },
        { (void **)&on->left, runs * LAUNCH_QUERIES * sizeof(float), true },
        { (void **)&on->pool_lse, STEP_POOL_ROWS_MAX * sizeof(float), true },
        { (void **)&on->listed, runs * sizeof *on->listed, true },
        { (void **)&on->runs, runs * sizeof *on->runs, true },
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof wanted / sizeof wanted[0]; i++)
        rc = (wanted[i].host ? table->alloc_host : table->alloc)(
            accelerator->device, wanted[i].bytes, wanted[i].at, err);
    return rc;
}

/* Once per accelerator. False: it cannot have planes now. With lock held. */
static bool open_device(struct accelerator *accelerator)
{
    struct error err = { 0 };
    if (accelerator->planes != NULL) return true;
    struct planes_device *on = calloc(1, sizeof *on);
    if (on == NULL) return false;
    planes_cache_init(&on->cache);
    accelerator->planes = on;
    accelerator->free_planes = free_device;
    int rc = allocate(accelerator, on, &err);
    unsigned char *signs = rc < 0 ? NULL : accelerator_stage(accelerator, SIGNS_BYTES);
    if (signs != NULL) {
        memcpy(signs, rotation_signs(0), SIGNS_BYTES / 2);
        memcpy(signs + SIGNS_BYTES / 2, rotation_signs(1), SIGNS_BYTES / 2);
        rc = accelerator->table->copy(accelerator->device, DEVICE_COMPUTE, on->signs, signs,
                                      SIGNS_BYTES);
    }
    if (rc == 0 && signs != NULL) return true;
    if (rc < 0) accelerator_failed(accelerator, rc, err.text);
    free_device(accelerator);
    return false;
}

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

/* Which views are answered from planes? MEMD_ENOMEM. */
static int sort_views(struct asked *asked, struct arena *arena)
{
    const struct attend_args *attend = asked->attend;
    size_t count = attend->view_count, at = 0;
    uint64_t least = least_limit(attend);
    asked->planed = arena_calloc(arena, count, sizeof *asked->planed);
    if (asked->planed == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        bool planed = attend->views[i].position + attend->views[i].tokens <= least;
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
    asked->tail.accelerator = NULL;
    asked->tail.admit = attend->admit == NULL ? NULL : admit_other;
    asked->tail.admit_arg = asked;
    return 0;
}

/* Is it something that a device is asked? From the shapes alone. */
static bool is_askable(const struct progressive_args *args)
{
    const struct attend_args *attend = &args->base.attend;
    const struct accelerator *accelerator = attend->accelerator;
    size_t rows = attend->q.shape[0] * attend->q.shape[1];
    return accelerator != NULL && atomic_load(&accelerator->on) &&
           !atomic_load(&accelerator->lost) && accelerator->config.planes_bytes > 0 &&
           attend->q.shape[2] <= LAUNCH_HEAD_DIM && rows <= QUERY_ROWS_MAX &&
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

/* Everything that goes to the device, in its places. False: declined. With lock held. */
static bool list_all(struct asked *asked, struct arena *arena)
{
    struct accelerator *accelerator = asked->accelerator;
    size_t dims = asked->layout.head_dim, rows = asked->rows;
    size_t runs = asked->segments * asked->attend->kv_heads * asked->chunks;
    size_t pool = asked->segments * 3 * rows + rows;
    if (runs > RUNS_MAX || pool > STEP_POOL_ROWS_MAX || pool * dims > STEP_POOL_FLOATS)
        return false;
    float *q = control(asked, rows * dims * sizeof *q);
    float *tail = control(asked, rows * dims * sizeof *tail);
    asked->run_list = control(asked, runs * sizeof *asked->run_list);
    asked->begin = control(asked, (rows + 1) * sizeof *asked->begin);
    asked->parts = control(asked, (2 * asked->segments + 1) * rows * sizeof *asked->parts);
    asked->run_views = arena_calloc(arena, runs, sizeof *asked->run_views);
    asked->limits = control(asked, rows * sizeof *asked->limits);
    if (asked->limits == NULL || asked->parts == NULL || asked->run_views == NULL) return false;
    scan_init(&asked->scan, asked->attend, 0, asked->attend->q.shape[0], q);
    if (!list_runs(asked)) return false;
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
    return rc == 0;
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

/* The exact rows of what was picked, into pinned memory and lists. 0, ACCELERATOR_DECLINED when
 * they are too many, or what `admit` says. */
static int pack_picked(struct asked *asked, size_t *ret_bytes, struct error *err)
{
    struct accelerator *accelerator = asked->accelerator;
    struct planes_device *on = asked->on;
    size_t half = asked->layout.head_dim * dtype_bytes(asked->attend->views[0].dtype), used = 0;
    for (uint32_t i = 0; i < asked->launch.count; i++) {
        const struct planes_run *run = &asked->run_list[i];
        const struct view *view = asked->run_views[i];
        const uint32_t *ids = on->exact_ids + (size_t)i * PLANES_TOKENS;
        const unsigned char *k = view->k, *v = view->v;
        if (used + on->picked[i] * 2 * half > accelerator->config.travel_bytes)
            return ACCELERATOR_DECLINED;
        on->runs[i] = (struct gather_run){
            .rows = { .k = accelerator->travel_device + used,
                      .v = accelerator->travel_device + used + half,
                      .k_stride_bytes = (uint32_t)(2 * half),
                      .v_stride_bytes = (uint32_t)(2 * half), .k_dtype = view->dtype,
                      .v_dtype = view->dtype },
            .ids = accelerator->identity,
            .positions = on->exact_positions + (size_t)i * PLANES_TOKENS, .count = on->picked[i],
            .query = run->query, .queries = run->queries,
            .result = run->result + 2 * run->queries };
        for (uint32_t row = 0; row < on->picked[i]; row++, used += 2 * half) {
            if (!scan_admit(&asked->scan, view, ids[row], 1, VIEW_K | VIEW_V))
                return scan_stopped(&asked->scan, err);
            memcpy(accelerator->travel + used, k + ids[row] * view->k_stride_bytes, half);
            memcpy(accelerator->travel + used + half, v + ids[row] * view->v_stride_bytes, half);
        }
        asked->picked += on->picked[i];
    }
    *ret_bytes = used;
    return 0;
}

static int refine(struct asked *asked, size_t bytes, struct error *err)
{
    struct accelerator *accelerator = asked->accelerator;
    const struct device_table *table = accelerator->table;
    asked->launch.again = 1;
    int rc = stage(asked, PLANES_WEIGH);
    if (rc == 0)
        rc = table->copy(accelerator->device, DEVICE_COMPUTE, accelerator->travel_device,
                         accelerator->travel, bytes);
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

/* With lock held. */
static int ask(struct asked *asked, struct arena *arena, const struct index_answer *ret_answer,
               struct error *err)
{
    struct accelerator *accelerator = asked->accelerator;
    struct error why = { 0 };
    size_t bytes = 0;
    const struct attend_args *attend = asked->attend;
    int stopped = attend->stop == NULL ? 0 : attend->stop(attend->stop_arg);
    if (stopped < 0) return error_set(err, stopped, "attend: %s", error_text(stopped));
    if (atomic_load(&accelerator->lost) || !open_device(accelerator))
        return ACCELERATOR_DECLINED;
    asked->on = accelerator->planes;
    asked->on->cache.asking++;
    if (!list_all(asked, arena) || atomic_load(&accelerator->lost))
        return ACCELERATOR_DECLINED;
    int rc = judge(asked, &why);
    if (rc == 0) {
        rc = pack_picked(asked, &bytes, err);
        if (rc != 0) return rc;
        rc = refine(asked, bytes, &why);
    }
    if (rc < 0) {
        accelerator_failed(accelerator, rc, why.text);
        return ACCELERATOR_DECLINED;
    }
    hand_out(asked, ret_answer);
    fill_quality(asked, ret_answer->quality);
    ACCELERATOR_COUNT(accelerator, planes_steps_total, 1);
    ACCELERATOR_COUNT(accelerator, travelled_bytes_total, bytes);
    return 0;
}

int progressive_device_attend(const struct progressive_args *args, float target,
                              struct arena *arena, const struct index_answer *ret_answer,
                              struct error *err)
{
    const struct attend_args *attend = &args->base.attend;
    if (!is_askable(args)) return ACCELERATOR_DECLINED;
    size_t rows = attend->q.shape[0] * attend->q.shape[1];
    struct asked asked = { .args = args, .attend = attend, .accelerator = attend->accelerator,
                           .rows = rows, .rows_per_head = rows / attend->kv_heads,
                           .launch = { .target = target } };
    asked.chunks = (asked.rows_per_head + LAUNCH_QUERIES - 1) / LAUNCH_QUERIES;
    planes_layout_init(attend->q.shape[2], &asked.layout);
    int rc = sort_views(&asked, arena);
    if (rc < 0) return error_set(err, rc, "no memory for %zu views", attend->view_count);
    if (asked.segments == 0) return ACCELERATOR_DECLINED;
    rc = answer_tail(&asked, arena, err);
    if (rc < 0) return rc;
    pthread_mutex_lock(&attend->accelerator->lock);
    rc = ask(&asked, arena, ret_answer, err);
    pthread_mutex_unlock(&attend->accelerator->lock);
    if (rc == ACCELERATOR_DECLINED)
        ACCELERATOR_COUNT(attend->accelerator, declined_total, 1);
    return rc;
}
