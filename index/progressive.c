/* SPDX-License-Identifier: Apache-2.0 */
/* progressive.c — cut a call into blocks, give each worker a lane of memory, run the blocks.
 *
 * A block is up to 16 query rows of one KV head: few enough that clusters opened for one row are
 * worth reading for the others, many enough that a batch reads planes once per 16. Blocks know
 * nothing of each other. Their scratch is large (a weight per row and token in the worst case), so
 * there is one *lane* of it per thread, and a lane runs one block after another; answers do not
 * depend on which.
 *
 * When everything is better read exactly, attend does the whole call: that is the rule
 * progressive_is_exact, from the shapes alone.
 */
#include "index/progressive.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/cuda/accelerator.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "base/tensor.h"
#include "index/backend.h"
#include "index/exact.h"
#include "index/progressive_block.h"
#include "index/progressive_device.h"

enum {
    WEIGHT_FLOATS = 4 << 20,   /* of a block, as far as one row allows: 16 MiB */
    LANES_BYTES = 256 << 20,   /* of all lanes, as far as one lane allows */
    WAVE_FLOATS = 2 << 20,     /* regrouped queries of one wave: 8 MiB */
    EXACT_BELOW = 12288,       /* tokens with planes, docs/decisions/0034 */
};

/* What is aimed at, of the target: a prediction is right on the median, so aiming at the target
 * itself would leave half the answers above it. At this, 95 of 100 lie below (0032). */
static const float bound_share = 0.6F;

/* One wave of blocks and its lanes. */
struct progressive_wave {
    struct progressive *call;
    struct block *lanes;
    size_t lane_count, tasks;
    atomic_size_t next;
};

size_t progressive_segments(const struct progressive_args *args)
{
    size_t most = 0, views = args->base.attend.view_count;
    if (args->planes == NULL) return 0;
    for (size_t g = 0; g < args->base.attend.kv_heads; g++) {
        size_t here = 0;
        for (size_t i = 0; i < views; i++) here += args->planes[g * views + i] != NULL;
        if (here > most) most = here;
    }
    return most;
}

bool progressive_is_exact(const struct progressive_args *args, size_t segments)
{
    const struct index_args *base = &args->base;
    uint64_t planed = (uint64_t)segments * PLANES_TOKENS;
    if (planed == 0) return true;
    bool fits = base->max_bytes == 0 ||
                exact_cost(&base->attend, 2).bytes <= base->max_bytes;
    if (!fits) return false;
    if (!(base->target_error > 0.0F)) return true;
    uint64_t below = args->exact_below == UINT64_MAX ? EXACT_BELOW : args->exact_below;
    return planed < below;
}

bool progressive_reads_all(const struct progressive_args *args)
{
    return progressive_is_exact(args, progressive_segments(args)) ||
           progressive_device_has_all(args);
}

static int run_exactly(const struct progressive_args *args, struct arena *arena,
                       const struct index_answer *ret_answer, struct error *err)
{
    const struct attend_args *attend_args = &args->base.attend;
    struct index_quality *quality = ret_answer->quality;
    int rc = attend(attend_args, arena, &ret_answer->partial, err);
    if (rc != 0 || quality == NULL) return rc;
    size_t rows = attend_args->q.shape[0] * attend_args->q.shape[1];
    for (size_t row = 0; row < rows; row++) {
        quality->predicted_error[row] = 0.0F;
        quality->limited[row] = false;
        for (size_t level = 0; level < INDEX_LEVELS; level++)
            quality->mass[row * INDEX_LEVELS + level] = 0.0F;
        if (ret_answer->partial.lse[row] > -INFINITY)
            quality->mass[row * INDEX_LEVELS + INDEX_EXACT] = 1.0F;
    }
    struct exact_cost cost = exact_cost(attend_args, 2);
    quality->bytes[INDEX_EXACT] += cost.bytes;
    quality->rows[INDEX_EXACT] += cost.rows;
    return 0;
}

/* A lane's memory is measured and handed out by the same walk. */
struct lane_memory {
    unsigned char *at; /* NULL: measure */
    size_t used;
};

static void *lane_take(struct lane_memory *memory, size_t bytes)
{
    unsigned char *at = memory->at == NULL ? NULL : memory->at + memory->used;
    memory->used += (bytes + 63) / 64 * 64;
    return at;
}

static float *take_floats(struct lane_memory *memory, size_t count)
{
    return lane_take(memory, count * sizeof(float));
}

static void take_state(struct lane_memory *memory, size_t rows, size_t head_dim,
                       struct block_state *ret_state)
{
    ret_state->max = take_floats(memory, rows);
    ret_state->sum = take_floats(memory, rows);
    ret_state->acc = take_floats(memory, rows * head_dim);
}

static void lane_segments(struct lane_memory *memory, size_t rows, size_t head_dim, size_t segments,
                          struct block *block)
{
    size_t clusters = segments * PLANES_CLUSTERS, at = segments * rows;
    block->segments = lane_take(memory, segments * sizeof *block->segments);
    block->fresh = lane_take(memory, segments * sizeof *block->fresh);
    block->q8 = lane_take(memory, at * head_dim);
    block->scale = take_floats(memory, at);
    block->offset = take_floats(memory, at);
    block->sum = lane_take(memory, at * sizeof *block->sum);
    block->deviation = take_floats(memory, at);
    block->square = take_floats(memory, at);
    block->centre = take_floats(memory, clusters * rows);
    block->scores = take_floats(memory, PLANES_CLUSTERS * rows);
    block->mass = take_floats(memory, clusters * rows);
    block->priority = take_floats(memory, clusters * rows);
    block->mass_top = take_floats(memory, at);
    block->mass_sum = take_floats(memory, at);
    block->priority_log = take_floats(memory, at);
    block->priority_top = take_floats(memory, at);
    block->priority_sum = take_floats(memory, at);
    block->chunks = lane_take(memory, segments * (BLOCK_ROUNDS + 1) * sizeof *block->chunks);
    block->tiles = lane_take(memory, clusters * sizeof *block->tiles);
    block->tile_sums = take_floats(memory, 3 * clusters * rows);
    block->tile_steps = take_floats(memory, 2 * clusters);
    block->weights = take_floats(memory, clusters * rows * PLANES_CLUSTER);
}

static void lane_shared(struct lane_memory *memory, size_t rows, size_t head_dim,
                        struct block_space *ret_shared)
{
    ret_shared->q8 = lane_take(memory, rows * head_dim);
    ret_shared->scale = take_floats(memory, rows);
    ret_shared->offset = take_floats(memory, rows);
    ret_shared->deviation = take_floats(memory, rows);
    ret_shared->square = take_floats(memory, rows);
    ret_shared->sum = lane_take(memory, rows * sizeof *ret_shared->sum);
}

static void lane_rows(struct lane_memory *memory, size_t rows, size_t head_dim,
                      struct block *block)
{
    float **values[] = { &block->turned, &block->base, &block->removed, &block->residual,
                         &block->correction, &block->exact_turned,
                         &block->output };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        *values[i] = take_floats(memory, rows * head_dim);
    double **sums[] = { &block->mass_shut, &block->priority_shut, &block->mass_open,
                        &block->correction_mass, &block->total, &block->norm, &block->shut_error,
                        &block->code_error, &block->priority_unit, &block->priority_all,
                        &block->mass_removed };
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        *sums[i] = lane_take(memory, rows * sizeof(double));
    block->shift = take_floats(memory, rows);
    block->priority_shift = take_floats(memory, rows);
    block->threshold = take_floats(memory, rows);
    block->visible = lane_take(memory, rows * sizeof *block->visible);
    block->probe_values = take_floats(memory, BLOCK_PROBES * rows * head_dim);
    block->probe_means = take_floats(memory, BLOCK_PROBES * head_dim);
    block->probe_masses = take_floats(memory, BLOCK_PROBES * rows);
    block->histogram = take_floats(memory, rows * BLOCK_BINS);
    block->uneven = take_floats(memory, rows * PLANES_TOKENS);
    block->gather_k = take_floats(memory, BLOCK_GATHER * head_dim);
    block->gather_v = take_floats(memory, BLOCK_GATHER * head_dim);
    take_state(memory, rows, head_dim, &block->exact);
    take_state(memory, rows, head_dim, &block->refined);
    take_state(memory, rows, head_dim, &block->row);
    block->cursor = lane_take(memory, sizeof *block->cursor);
}

static size_t lane_layout(unsigned char *at, const struct progressive *call, size_t segments,
                          struct block *block)
{
    struct lane_memory memory = { .at = at };
    lane_segments(&memory, call->block_rows, call->scan.head_dim, segments, block);
    lane_shared(&memory, call->block_rows, call->scan.head_dim, &block->shared);
    lane_rows(&memory, call->block_rows, call->scan.head_dim, block);
    if (call->hits != NULL) {
        size_t count = call->block_rows * PROGRESSIVE_SCRATCH(call->hits->k);
        block->best_ids = lane_take(&memory, count * sizeof *block->best_ids);
        block->best_scores = take_floats(&memory, count);
    }
    return memory.used;
}

/* Make a lane ready for task idx = g * blocks + block. */
static void begin_block(struct block *block, const struct progressive *call, size_t idx)
{
    size_t rows_all = call->scan.queries * call->scan.group, head_dim = call->scan.head_dim;
    block->call = call;
    block->kv_head = idx / call->blocks;
    block->first = idx % call->blocks * call->block_rows;
    block->rows = rows_all - block->first;
    if (block->rows > call->block_rows) block->rows = call->block_rows;
    block->head_dim = head_dim;
    block->q = call->scan.q + (block->kv_head * rows_all + block->first) * head_dim;
    block->segment_count = 0;
    block->chunk_count = block->tiles_used = block->coded = 0;
    block->limited = false;
    block->shared.space = NULL;
    size_t bytes = block->rows * head_dim * sizeof(float);
    float *values[] = { block->base, block->removed, block->residual, block->correction };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) memset(values[i], 0, bytes);
    double *sums[] = { block->mass_shut, block->priority_shut, block->priority_all,
                       block->mass_open, block->correction_mass, block->total, block->norm,
                       block->shut_error, block->code_error, block->mass_removed };
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        memset(sums[i], 0, block->rows * sizeof(double));
    block_clear_state(block, &block->exact);
    block_clear_state(block, &block->refined);
    memset(block->level_rows, 0, sizeof block->level_rows);
    memset(block->level_bytes, 0, sizeof block->level_bytes);
}

static void run_lane(void *arg, size_t idx)
{
    struct progressive_wave *wave = arg;
    struct block *block = &wave->lanes[idx];
    for (;;) {
        size_t task = atomic_fetch_add(&wave->next, 1);
        if (task >= wave->tasks || atomic_load(&wave->call->scan.stopped) != 0) return;
        begin_block(block, wave->call, task);
        wave->call->run(block);
        for (size_t level = 0; level < INDEX_LEVELS; level++) {
            atomic_fetch_add(&wave->call->rows[level], block->level_rows[level]);
            atomic_fetch_add(&wave->call->bytes[level], block->level_bytes[level]);
        }
    }
}

/* Rows of a block: what keeps the weights of `segments` segments bounded. */
static size_t block_rows(size_t rows, size_t segments)
{
    size_t most = WEIGHT_FLOATS / (segments * PLANES_TOKENS);
    if (most > BLOCK_ROWS) most = BLOCK_ROWS;
    if (most > rows) most = rows;
    return most > 0 ? most : 1;
}

/* Lanes for the call; the arena has to hold at least one. */
static int make_lanes(struct progressive_wave *wave, size_t segments, size_t tasks,
                      struct arena *arena, struct error *err)
{
    struct block measure;
    size_t bytes = lane_layout(NULL, wave->call, segments, &measure);
    size_t lanes = pool_threads(wave->call->args->base.attend.pool);
    if (lanes > LANES_BYTES / bytes) lanes = LANES_BYTES / bytes;
    if (lanes > tasks) lanes = tasks;
    if (lanes == 0) lanes = 1;
    wave->lanes = arena_alloc_aligned(arena, lanes * sizeof *wave->lanes, 64);
    if (wave->lanes == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu lanes", lanes);
    for (size_t lane = 0; lane < lanes; lane++) {
        unsigned char *memory = arena_alloc_aligned(arena, bytes, 64);
        if (memory == NULL && lane > 0) break;
        if (memory == NULL)
            return error_set(err, MEMD_ENOMEM, "no memory for %zu query rows over %zu segments",
                             wave->call->block_rows, segments);
        lane_layout(memory, wave->call, segments, &wave->lanes[lane]);
        wave->lane_count = lane + 1;
    }
    return 0;
}

int progressive_run(struct progressive *call, size_t segments, struct arena *arena,
                    struct error *err)
{
    const struct attend_args *args = &call->args->base.attend;
    size_t queries = args->q.shape[0], heads = args->q.shape[1], head_dim = args->q.shape[2];
    size_t group = heads / args->kv_heads, step = WAVE_FLOATS / (heads * head_dim) + 1;
    if (step > queries) step = queries;
    float *q = arena_alloc_aligned(arena, step * heads * head_dim * sizeof *q, 64);
    if (q == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu queries", step);
    struct progressive_wave wave = { .call = call };
    call->scan.head_dim = head_dim;
    call->block_rows = block_rows(step * group, segments);
    size_t tasks = args->kv_heads * ((queries * group + call->block_rows - 1) / call->block_rows);
    if (call->args->base.max_bytes > 0) call->block_bytes = call->args->base.max_bytes / tasks;
    int rc = make_lanes(&wave, segments, tasks, arena, err);
    for (size_t first = 0; rc == 0 && first < queries; first += step) {
        size_t count = queries - first < step ? queries - first : step;
        scan_init(&call->scan, args, first, count, q);
        if (call->hits != NULL) call->scan.parts = VIEW_K;
        call->blocks = (count * group + call->block_rows - 1) / call->block_rows;
        wave.tasks = args->kv_heads * call->blocks;
        atomic_store(&wave.next, 0);
        pool_for(args->pool, wave.lane_count, run_lane, &wave);
        rc = scan_stopped(&call->scan, err);
    }
    return rc;
}

void progressive_count(const struct progressive *call, struct index_quality *quality)
{
    for (size_t level = 0; level < INDEX_LEVELS; level++) {
        quality->rows[level] += atomic_load(&call->rows[level]);
        quality->bytes[level] += atomic_load(&call->bytes[level]);
    }
}

int progressive_attend(const struct progressive_args *args, struct arena *arena,
                       const struct index_answer *ret_answer, struct error *err)
{
    const struct attend_args *attend_args = &args->base.attend;
    size_t queries = attend_args->q.shape[0], heads = attend_args->q.shape[1];
    assert(ret_answer->partial.rows == queries * heads);
    assert(ret_answer->partial.head_dim == attend_args->q.shape[2]);
    if (queries == 0) return 0;
    size_t segments = progressive_segments(args);
    if (progressive_reads_all(args))
        return run_exactly(args, arena, ret_answer, err);
    float target = args->base.target_error * bound_share;
    int answered = progressive_device_attend(args, target, arena, ret_answer, err);
    if (answered != ACCELERATOR_DECLINED) return answered;
    struct index_quality *quality = ret_answer->quality;
    struct progressive call = { .args = args, .backend = backend_get(),
                                .planes = plane_backend_get(), .quality = quality,
                                .out = &ret_answer->partial, .block_bytes = UINT64_MAX,
                                .target = target, .run = block_run };
    int rc = progressive_run(&call, segments, arena, err);
    if (rc == 0 && quality != NULL) progressive_count(&call, quality);
    return rc;
}
