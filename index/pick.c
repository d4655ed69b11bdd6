/* SPDX-License-Identifier: Apache-2.0 */
/* pick.c — sets of positions become runs of rows: straight from the views where they lie together,
 * through a small tile where they do not (or where keys have to be rotated).
 *
 * Rejected: the union of what the heads of a group picked, read once for all of them: heads of a
 * top-k index attend to their own rows only, as published, and their picks overlap little.
 */
#include "index/pick.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/rope.h"
#include "attention/scan.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/pool.h"
#include "proto/limits.h"

enum {
    RUN_ROWS = 512,            /* read between two looks at `stop` */
    SCORE_FLOATS = 4096,       /* scores in flight, on the stack */
    TILE_BYTES = 32 << 10,     /* of gathered keys, and of values */
    WAVE_BYTES = 8 << 20,      /* scratch of all tasks of a wave, if more than one query */
};

/* Rows that lie together. */
struct run {
    const unsigned char *k, *v;
    size_t k_stride_bytes, v_stride_bytes, count;
    uint32_t k_dtype, v_dtype;
};

/* The heads that a set of rows is for. */
struct heads {
    size_t first, count;
};

void pick_count(struct pick *pick, enum index_level level, uint64_t rows, uint64_t bytes)
{
    pick->read_rows[level] += rows;
    pick->read_bytes[level] += bytes;
}

void pick_place(struct pick *pick, struct placement placement)
{
    const struct rope *rope = pick->call->args->attend.rope;
    assert(pick->call->places && rope != NULL);
    pick->placement = placement;
    pick->rows.rope = placement.rule == POSITIONS_NONE ? NULL : pick->at_zero;
    if (placement.rule == POSITIONS_ORIGINAL || placement.rule == POSITIONS_CACHE_INDEX)
        pick->rows.rope = rope;
    uint64_t turned = placement.rule == POSITIONS_NONE ? PLAN_UNPLACED : placement.query;
    if (turned == pick->turned) return;
    pick->turned = turned;
    memcpy(pick->placed, pick->unplaced, pick->group * pick->head_dim * sizeof *pick->placed);
    if (placement.rule == POSITIONS_NONE) return;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    rope_angles(rope, placement.query, cos, sin);
    rope_apply(rope, cos, sin, pick->placed, pick->group);
}

/* Where a key at `position` is rotated. */
static uint64_t placed(const struct pick *pick, uint64_t position)
{
    switch (pick->placement.rule) {
    case POSITIONS_NONE: return PLAN_UNPLACED;
    case POSITIONS_ZERO:
    case POSITIONS_CONSTANT: return 0;
    default: return position - pick->placement.shift;
    }
}

/* Into the plan, if there is one. */
static void note(struct pick *pick, struct heads heads, enum plan_kind kind, uint64_t first,
                 size_t count, uint64_t place)
{
    if (pick->call->plan == NULL) return;
    size_t head = pick->kv_head * pick->group + heads.first;
    struct plan_run run = { .query = (uint32_t)pick->query, .head = (uint32_t)head,
                            .heads = (uint32_t)heads.count, .kind = kind, .first = first,
                            .count = count, .placed = place,
                            .query_placed = pick->placement.query };
    bool together = pick->placement.rule == POSITIONS_ZERO ||
                    pick->placement.rule == POSITIONS_CONSTANT;
    run.count = together ? 1 : count;
    for (size_t i = 0; i < count; i += (size_t)run.count, run.first += run.count)
        plan_add(pick->call->plan, &run);
}

/* q (D) of each of the heads */
static void attend_with(struct pick *pick, struct heads heads, const float *q,
                        const struct run *run)
{
    for (size_t m = 0; m < heads.count; m++) pick->visible[m] = (uint32_t)run->count;
    backend_get()->partial(&(struct partial_args){
        .q = q, .visible = pick->visible,
        .queries = heads.count, .head_dim = pick->head_dim, .k = run->k, .v = run->v,
        .k_stride_bytes = run->k_stride_bytes, .v_stride_bytes = run->v_stride_bytes,
        .tokens = run->count, .k_dtype = run->k_dtype, .v_dtype = run->v_dtype,
        .max = pick->max + heads.first, .sum = pick->sum + heads.first,
        .acc = pick->acc + heads.first * pick->head_dim });
}

static void attend_run(struct pick *pick, struct heads heads, const struct run *run)
{
    attend_with(pick, heads, pick->q + heads.first * pick->head_dim, run);
}

/* scores (heads.count, run->count) */
static void score_run(const struct pick *pick, struct heads heads, const struct run *run,
                      float *scores)
{
    backend_get()->score(&(struct score_args){
        .q = pick->q + heads.first * pick->head_dim, .queries = heads.count,
        .head_dim = pick->head_dim, .k = run->k, .k_stride_bytes = run->k_stride_bytes,
        .tokens = run->count, .dtype = run->k_dtype, .scores = scores });
}

/* positions (run->count), or NULL: consecutive from `position` on. */
static void search_run(struct pick *pick, struct heads heads, const struct run *run,
                       const uint64_t *positions, uint64_t position)
{
    float scores[SCORE_FLOATS];
    size_t step = SCORE_FLOATS / heads.count;
    for (size_t begin = 0; begin < run->count; begin += step) {
        struct run part = *run;
        part.k += begin * run->k_stride_bytes;
        part.count = run->count - begin < step ? run->count - begin : step;
        score_run(pick, heads, &part, scores);
        for (size_t m = 0; m < heads.count; m++)
            for (size_t i = 0; i < part.count; i++)
                topk_offer(&pick->top[heads.first + m], scores[m * part.count + i],
                           positions == NULL ? position + begin + i : positions[begin + i]);
    }
}

static void consume(struct pick *pick, struct heads heads, const struct run *run,
                    const uint64_t *positions, uint64_t position)
{
    if (pick->call->partial != NULL) attend_run(pick, heads, run);
    else search_run(pick, heads, run, positions, position);
}

static bool asked_to_stop(struct pick *pick)
{
    const struct attend_args *args = &pick->call->args->attend;
    if (pick->stopped == 0 && args->stop != NULL) pick->stopped = args->stop(args->stop_arg);
    return pick->stopped != 0;
}

/* Bytes of one token that are read: K, and V unless this is a search. */
static void count_exact(struct pick *pick, uint64_t tokens, uint32_t dtype, bool values)
{
    uint64_t parts = values ? 2 : 1;
    pick_count(pick, INDEX_EXACT, tokens * parts,
               tokens * parts * pick->head_dim * dtype_bytes(dtype));
}

/* A run of up to `most` rows from `position` on, straight from the view; its keys rotated in `tile`
 * if need be. */
static struct run run_at(const struct pick *pick, uint64_t position, size_t most, float *tile)
{
    const struct view *view = rows_view(&pick->rows, pick->kv_head, position);
    size_t row = (size_t)(position - view->position), left = view->tokens - row;
    struct run run = { .k = (const unsigned char *)view->k + row * view->k_stride_bytes,
                       .v = (const unsigned char *)view->v + row * view->v_stride_bytes,
                       .k_stride_bytes = view->k_stride_bytes,
                       .v_stride_bytes = view->v_stride_bytes, .k_dtype = view->dtype,
                       .v_dtype = view->dtype, .count = left < most ? left : most };
    if (pick->rows.rope == NULL) return run;
    size_t room = TILE_BYTES / (pick->head_dim * sizeof *tile);
    if (run.count > room) run.count = room;
    backend_get()->rotate(&(struct rotate_args){
        .rope = pick->rows.rope, .rows = run.k, .stride_bytes = run.k_stride_bytes,
        .dtype = view->dtype, .count = run.count, .position = position - pick->placement.shift,
        .out = tile });
    run.k = (const unsigned char *)tile;
    run.k_dtype = DTYPE_FP32;
    run.k_stride_bytes = pick->head_dim * sizeof *tile;
    return run;
}

static struct heads heads_of(const struct pick *pick, size_t head)
{
    assert(head == PICK_GROUP || head < pick->group);
    return head == PICK_GROUP ? (struct heads){ 0, pick->group } : (struct heads){ head, 1 };
}

void pick_dropped(struct pick *pick, size_t head)
{
    struct heads heads = heads_of(pick, head);
    float *mass = pick->mass + heads.first * INDEX_LEVELS;
    for (size_t m = 0; m < heads.count; m++) pick->predicted[heads.first + m] = NAN;
    for (size_t i = 0; i < heads.count * INDEX_LEVELS; i++) mass[i] = NAN;
}

void pick_span(struct pick *pick, size_t head, uint64_t begin, uint64_t end)
{
    assert(end <= pick->limit || begin >= end);
    _Alignas(64) float tile[TILE_BYTES / sizeof(float)];
    struct heads heads = heads_of(pick, head);
    while (begin < end && !asked_to_stop(pick)) {
        size_t most = end - begin < RUN_ROWS ? (size_t)(end - begin) : RUN_ROWS;
        struct run run = run_at(pick, begin, most, tile);
        consume(pick, heads, &run, NULL, begin);
        note(pick, heads, PLAN_TOKENS, begin, run.count, placed(pick, begin));
        count_exact(pick, run.count, run.v_dtype, pick->call->partial != NULL);
        begin += run.count;
    }
}

void pick_range(struct pick *pick, uint64_t begin, uint64_t end)
{
    pick_span(pick, PICK_GROUP, begin, end);
}

void pick_scores(struct pick *pick, uint64_t begin, size_t count, float *ret_scores)
{
    _Alignas(64) float tile[TILE_BYTES / sizeof(float)];
    float scores[SCORE_FLOATS];
    struct heads heads = { 0, pick->group };
    size_t step = SCORE_FLOATS / pick->group;
    for (size_t done = 0; done < count && !asked_to_stop(pick);) {
        struct run run = run_at(pick, begin + done, count - done < step ? count - done : step,
                                tile);
        score_run(pick, heads, &run, scores);
        for (size_t m = 0; m < pick->group; m++)
            memcpy(ret_scores + m * count + done, scores + m * run.count,
                   run.count * sizeof *scores);
        count_exact(pick, run.count, run.v_dtype, false);
        done += run.count;
    }
}

/* Keys (count, D) of `dtype` at `positions`, rotated where the placement has them. */
static void turn_gathered(const struct pick *pick, const uint64_t *positions, size_t count,
                          const unsigned char *keys, uint32_t dtype, float *ret_keys)
{
    uint64_t places[TILE_BYTES / (8 * sizeof(float))]; /* D ≥ 8 */
    for (size_t i = 0; i < count; i++) places[i] = positions[i] - pick->placement.shift;
    backend_get()->rotate(&(struct rotate_args){
        .rope = pick->rows.rope, .rows = keys, .stride_bytes = pick->head_dim * dtype_bytes(dtype),
        .dtype = dtype, .count = count, .positions = places, .out = ret_keys });
}

/* Copies of the rows at `positions` (count ≤ what the tiles hold). */
static struct run gather(const struct pick *pick, const uint64_t *positions, size_t count,
                         unsigned char *k, unsigned char *v)
{
    _Alignas(64) unsigned char raw[TILE_BYTES];
    unsigned char *keys = pick->rows.rope == NULL ? k : raw;
    struct run run = { .k = k, .v = v, .count = count };
    for (size_t i = 0; i < count; i++) {
        assert(positions[i] < pick->limit);
        const struct view *view = rows_view(&pick->rows, pick->kv_head, positions[i]);
        size_t row = (size_t)(positions[i] - view->position);
        size_t row_bytes = pick->head_dim * dtype_bytes(view->dtype);
        assert(i == 0 || run.v_dtype == view->dtype);
        run.v_dtype = view->dtype;
        run.v_stride_bytes = row_bytes;
        const unsigned char *key = (const unsigned char *)view->k + row * view->k_stride_bytes;
        const unsigned char *value = (const unsigned char *)view->v + row * view->v_stride_bytes;
        memcpy(keys + i * row_bytes, key, row_bytes);
        if (pick->call->partial != NULL) memcpy(v + i * row_bytes, value, row_bytes);
    }
    run.k_dtype = keys == k ? run.v_dtype : DTYPE_FP32;
    run.k_stride_bytes = pick->head_dim * dtype_bytes(run.k_dtype);
    if (keys != k && count > 0)
        turn_gathered(pick, positions, count, raw, run.v_dtype, (float *)(void *)k);
    return run;
}

void pick_list(struct pick *pick, size_t head, const uint64_t *positions, size_t count)
{
    _Alignas(64) unsigned char k[TILE_BYTES], v[TILE_BYTES];
    struct heads heads = heads_of(pick, head);
    size_t step = TILE_BYTES / (pick->head_dim * sizeof(float));
    for (size_t begin = 0; begin < count && !asked_to_stop(pick); begin += step) {
        size_t some = count - begin < step ? count - begin : step;
        struct run run = gather(pick, positions + begin, some, k, v);
        consume(pick, heads, &run, positions + begin, 0);
        for (size_t i = begin; pick->call->plan != NULL && i < begin + some; i++)
            note(pick, heads, PLAN_TOKENS, positions[i], 1, placed(pick, positions[i]));
        count_exact(pick, some, run.v_dtype, pick->call->partial != NULL);
    }
}

struct pick_middle pick_middle(const struct pick *pick, uint64_t sinks, uint64_t window,
                               uint64_t covered)
{
    uint64_t limit = pick->limit;
    if (sinks > limit) sinks = limit;
    uint64_t begin = limit > window ? limit - window : 0;
    if (begin > covered) begin = covered;
    if (begin < sinks) begin = sinks;
    return (struct pick_middle){ sinks, begin };
}

struct pick_middle pick_steady(struct pick *pick, uint64_t sinks, uint64_t window,
                               uint64_t covered)
{
    struct pick_middle middle = pick_middle(pick, sinks, window, covered);
    pick_range(pick, 0, middle.begin);
    pick_range(pick, middle.end, pick->limit);
    return middle;
}

void pick_rows(struct pick *pick, size_t head, const struct pick_given *given)
{
    assert(pick->call->partial != NULL);
    _Alignas(64) float tile[TILE_BYTES / sizeof(float)];
    struct heads heads = heads_of(pick, head);
    size_t row = pick->head_dim, stride = row * sizeof(float), step = TILE_BYTES / stride;
    for (size_t begin = 0; begin < given->count && !asked_to_stop(pick); begin += step) {
        size_t some = given->count - begin < step ? given->count - begin : step;
        struct run run = { .k = (const unsigned char *)(given->k + begin * row),
                           .v = (const unsigned char *)(given->v + begin * row),
                           .k_stride_bytes = stride, .v_stride_bytes = stride, .count = some,
                           .k_dtype = DTYPE_FP32, .v_dtype = DTYPE_FP32 };
        uint64_t place = pick->call->places ? placed(pick, 0) : PLAN_UNPLACED; /* none, or at 0 */
        if (pick->rows.rope != NULL) {
            if (pick->rows.rope != pick->at_zero) place = given->place + begin;
            backend_get()->rotate(&(struct rotate_args){
                .rope = pick->rows.rope, .rows = run.k, .stride_bytes = stride,
                .dtype = DTYPE_FP32, .count = some, .position = given->place + begin,
                .out = tile });
            run.k = (const unsigned char *)tile;
        }
        attend_run(pick, heads, &run);
        note(pick, heads, PLAN_SLOTS, given->id + begin, some, place);
        count_exact(pick, some, DTYPE_FP32, true);
    }
}

/* Against the query (1, 0, …) a key (score, 0, …) has the score that is known. */
void pick_scored(struct pick *pick, size_t head, const uint64_t *positions, const float *scores,
                 size_t count)
{
    _Alignas(64) float k[TILE_BYTES / sizeof(float)], q[LIMIT_HEAD_DIM] = { 1 };
    _Alignas(64) unsigned char v[TILE_BYTES];
    struct heads heads = { head, 1 };
    size_t dim = pick->head_dim, step = TILE_BYTES / (dim * sizeof *k);
    for (size_t i = 0; pick->call->hits != NULL && i < count; i++)
        topk_offer(&pick->top[head], scores[i], positions[i]);
    for (size_t begin = 0; begin < count && !asked_to_stop(pick); begin += step) {
        struct run run = { .k = (const unsigned char *)k, .v = v, .k_dtype = DTYPE_FP32,
                           .k_stride_bytes = dim * sizeof *k };
        run.count = count - begin < step ? count - begin : step;
        memset(k, 0, run.count * run.k_stride_bytes);
        for (size_t i = 0; i < run.count; i++) {
            const struct view *view = rows_view(&pick->rows, pick->kv_head, positions[begin + i]);
            size_t row = (size_t)(positions[begin + i] - view->position);
            run.v_dtype = view->dtype;
            run.v_stride_bytes = dim * dtype_bytes(view->dtype);
            memcpy(v + i * run.v_stride_bytes,
                   (const unsigned char *)view->v + row * view->v_stride_bytes,
                   run.v_stride_bytes);
            k[i * dim] = scores[begin + i];
            note(pick, heads, PLAN_TOKENS, positions[begin + i], 1,
                 placed(pick, positions[begin + i]));
        }
        if (pick->call->partial == NULL) continue;
        attend_with(pick, heads, q, &run);
        pick_count(pick, INDEX_EXACT, run.count, run.count * run.v_stride_bytes);
    }
}

struct pick_state pick_apart(struct pick *pick, struct pick_state state)
{
    struct pick_state before = { pick->max, pick->sum, pick->acc };
    for (size_t m = 0; m < pick->group; m++) {
        state.max[m] = -INFINITY;
        state.sum[m] = 0.0F;
    }
    memset(state.acc, 0, pick->group * pick->head_dim * sizeof *state.acc);
    pick_together(pick, state);
    return before;
}

void pick_together(struct pick *pick, struct pick_state before)
{
    pick->max = before.max;
    pick->sum = before.sum;
    pick->acc = before.acc;
}

void pick_merge(struct pick *pick, size_t head, float max, float sum, const float *acc)
{
    if (max == -INFINITY) return;
    float *into = pick->acc + head * pick->head_dim;
    float top = fmaxf(pick->max[head], max);
    float keep = pick->max[head] == -INFINITY ? 0.0F : expf(pick->max[head] - top);
    float add = expf(max - top);
    for (size_t d = 0; d < pick->head_dim; d++) into[d] = keep * into[d] + add * acc[d];
    pick->sum[head] = keep * pick->sum[head] + add * sum;
    pick->max[head] = top;
}

/* ---- the driver ---- */

struct outcome {
    int code;
    struct error error;
    uint64_t rows[INDEX_LEVELS], bytes[INDEX_LEVELS];
};

struct wave {
    const struct pick_call *call;
    struct scan scan;
    float *placed;         /* (G, queries, H/G, D) with call->places */
    struct rope *at_zero;  /* of pick */
    struct rows rows;
    uint64_t tokens;
    float *max, *sum;      /* (queries, H) */
    struct topk *top;      /* (queries, H) */
    uint32_t *visible;     /* (queries, H) */
    float *mass;           /* (queries, H, INDEX_LEVELS) */
    float *predicted;      /* (queries, H) */
    unsigned char *scratch; /* (queries, G, scratch_bytes) */
    size_t scratch_bytes;
    struct outcome *outcomes; /* (queries, G) */
};

static void begin_task(struct wave *wave, struct pick *pick, size_t row, size_t out_row)
{
    const struct pick_call *call = wave->call;
    for (size_t m = 0; m < pick->group; m++) {
        pick->max[m] = -INFINITY;
        pick->sum[m] = 0.0F;
        pick->predicted[m] = 0.0F;
        for (size_t level = 0; level < INDEX_LEVELS; level++)
            pick->mass[m * INDEX_LEVELS + level] = level == INDEX_EXACT ? 1.0F : 0.0F;
        if (call->hits == NULL) continue;
        size_t at = (out_row + m) * call->hits->k;
        wave->top[row + m] = (struct topk){ call->hits->ids + at, call->hits->scores + at,
                                            call->hits->k };
        topk_clear(&wave->top[row + m]);
    }
    if (call->partial == NULL) return;
    pick->acc = call->partial->o + out_row * pick->head_dim;
    memset(pick->acc, 0, pick->group * pick->head_dim * sizeof *pick->acc);
}

static void end_task(const struct pick_call *call, struct pick *pick, size_t out_row)
{
    if (call->partial != NULL)
        partial_finish(pick->max, pick->sum,
                       &(struct partial){ .o = pick->acc, .lse = call->partial->lse + out_row,
                                          .rows = pick->group, .head_dim = pick->head_dim });
    for (size_t m = 0; call->hits != NULL && m < pick->group; m++) topk_sort(&pick->top[m]);
    struct index_quality *quality = call->quality;
    if (quality == NULL) return;
    if (quality->predicted_error != NULL)
        memcpy(quality->predicted_error + out_row, pick->predicted,
               pick->group * sizeof *pick->predicted);
    if (quality->mass != NULL)
        memcpy(quality->mass + out_row * INDEX_LEVELS, pick->mass,
               pick->group * INDEX_LEVELS * sizeof *pick->mass);
    if (quality->limited != NULL)
        memset(quality->limited + out_row, 0, pick->group * sizeof *quality->limited);
}

/* idx = query * G + g */
static void run_task(void *arg, size_t idx)
{
    struct wave *wave = arg;
    const struct scan *scan = &wave->scan;
    const struct attend_args *args = &wave->call->args->attend;
    struct outcome *outcome = &wave->outcomes[idx];
    size_t i = idx / args->kv_heads, g = idx % args->kv_heads;
    size_t row = i * scan->heads + g * scan->group, out_row = scan->first * scan->heads + row;
    size_t at = (g * scan->queries + i) * scan->group * scan->head_dim;
    uint64_t limit = args->limits[scan->first + i];
    struct pick pick = {
        .call = wave->call, .rows = wave->rows, .kv_head = g, .query = scan->first + i,
        .group = scan->group, .head_dim = scan->head_dim,
        .limit = limit < wave->tokens ? limit : wave->tokens,
        .unplaced = scan->q + at, .q = scan->q + at, .at_zero = wave->at_zero,
        .max = wave->max + row, .sum = wave->sum + row, .visible = wave->visible + row,
        .top = wave->top == NULL ? NULL : wave->top + row, .predicted = wave->predicted + row,
        .mass = wave->mass + row * INDEX_LEVELS,
        .scratch = wave->scratch + idx * wave->scratch_bytes };
    if (wave->call->places) {
        pick.q = pick.placed = wave->placed + at;
        memcpy(pick.placed, pick.unplaced, pick.group * pick.head_dim * sizeof *pick.placed);
        pick.turned = PLAN_UNPLACED;
    }
    pick.placement.query = args->positions == NULL ? PLAN_UNPLACED : args->positions[pick.query];
    begin_task(wave, &pick, row, out_row);
    if (!asked_to_stop(&pick)) outcome->code = wave->call->task(&pick, &outcome->error);
    if (outcome->code == 0 && pick.stopped != 0)
        outcome->code = error_set(&outcome->error, pick.stopped, "%s while reading rows",
                                  error_text(pick.stopped));
    if (outcome->code == 0) end_task(wave->call, &pick, out_row);
    memcpy(outcome->rows, pick.read_rows, sizeof outcome->rows);
    memcpy(outcome->bytes, pick.read_bytes, sizeof outcome->bytes);
}

/* What only calls that place need. */
static int reserve_places(struct wave *wave, size_t floats, struct arena *arena, struct error *err)
{
    const struct rope *rope = wave->call->args->attend.rope;
    bool grows = rope->magnitude != 1.0;
    wave->placed = arena_alloc_aligned(arena, floats * sizeof *wave->placed, 64);
    if (grows) wave->at_zero = arena_alloc(arena, sizeof *wave->at_zero);
    if (wave->placed == NULL || (grows && wave->at_zero == NULL))
        return error_set(err, MEMD_ENOMEM, "no memory for %zu floats of queries", floats);
    if (!grows) return 0;
    *wave->at_zero = *rope; /* turns by nothing, whatever the position */
    for (size_t i = 0; i < ROPE_PAIRS_MAX; i++) {
        wave->at_zero->inv_freq[i] = wave->at_zero->step_sin[i] = 0.0;
        wave->at_zero->step_cos[i] = 1.0;
    }
    return 0;
}

static int reserve(struct wave *wave, size_t queries, struct arena *arena, struct error *err)
{
    const struct attend_args *args = &wave->call->args->attend;
    size_t heads = args->q.shape[1], rows = queries * heads, tasks = queries * args->kv_heads;
    wave->scratch_bytes = (wave->call->scratch_bytes + 63) / 64 * 64;
    float *q = arena_alloc_aligned(arena, rows * args->q.shape[2] * sizeof *q, 64);
    wave->max = arena_calloc(arena, rows, sizeof *wave->max);
    wave->sum = arena_calloc(arena, rows, sizeof *wave->sum);
    wave->visible = arena_calloc(arena, rows, sizeof *wave->visible);
    wave->mass = arena_calloc(arena, rows, INDEX_LEVELS * sizeof *wave->mass);
    wave->predicted = arena_calloc(arena, rows, sizeof *wave->predicted);
    wave->top = arena_calloc(arena, rows, sizeof *wave->top);
    wave->outcomes = arena_calloc(arena, tasks, sizeof *wave->outcomes);
    wave->scratch = arena_alloc_aligned(arena, tasks * wave->scratch_bytes, 64);
    if (q == NULL || wave->max == NULL || wave->sum == NULL || wave->visible == NULL ||
        wave->mass == NULL || wave->predicted == NULL || wave->top == NULL ||
        wave->outcomes == NULL || wave->scratch == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu queries with %zu bytes of scratch",
                         queries, tasks * wave->scratch_bytes);
    wave->scan.q = q;
    return wave->call->places ? reserve_places(wave, rows * args->q.shape[2], arena, err) : 0;
}

/* Sum up what the tasks read; the first error of any. */
static int collect(const struct wave *wave, size_t tasks, struct error *err)
{
    struct index_quality *quality = wave->call->quality;
    for (size_t i = 0; i < tasks; i++) {
        const struct outcome *outcome = &wave->outcomes[i];
        if (outcome->code != 0)
            return error_set(err, outcome->code, "%s", outcome->error.text);
        for (size_t level = 0; quality != NULL && level < INDEX_LEVELS; level++) {
            quality->rows[level] += outcome->rows[level];
            quality->bytes[level] += outcome->bytes[level];
        }
    }
    return 0;
}

/* Queries of a wave: what fits WAVE_BYTES, one at least. */
static size_t wave_queries(const struct pick_call *call)
{
    const struct attend_args *args = &call->args->attend;
    size_t task_bytes = call->scratch_bytes + sizeof(struct outcome) + 64;
    size_t bytes = args->kv_heads * task_bytes + args->q.shape[1] * args->q.shape[2] * 4;
    size_t wanted = WAVE_BYTES / bytes + 1;
    return wanted < args->q.shape[0] ? wanted : args->q.shape[0];
}

int pick_run(const struct pick_call *call, struct arena *arena, struct error *err)
{
    const struct attend_args *args = &call->args->attend;
    assert((call->partial == NULL) != (call->hits == NULL));
    assert(call->hits == NULL || call->hits->k > 0);
    if (call->quality != NULL) {
        memset(call->quality->rows, 0, sizeof call->quality->rows);
        memset(call->quality->bytes, 0, sizeof call->quality->bytes);
    }
    size_t queries = args->q.shape[0];
    if (queries == 0) return 0;
    assert(args->q.shape[1] / args->kv_heads <= SCORE_FLOATS);
    struct wave wave = { .call = call, .rows = { args->views, args->view_count, args->q.shape[2],
                                                 args->rope } };
    wave.tokens = rows_tokens(&wave.rows);
    struct attend_args asked = *args;
    if (call->places) asked.rope = NULL;
    size_t step = wave_queries(call);
    int rc = reserve(&wave, step, arena, err);
    float *q = wave.scan.q;
    for (size_t first = 0; rc == 0 && first < queries; first += step) {
        size_t count = queries - first < step ? queries - first : step;
        size_t tasks = count * args->kv_heads;
        memset(wave.outcomes, 0, tasks * sizeof *wave.outcomes);
        scan_init(&wave.scan, &asked, first, count, q);
        pool_for(call->plan == NULL ? args->pool : NULL, tasks, run_task, &wave);
        rc = collect(&wave, tasks, err);
    }
    return rc;
}
