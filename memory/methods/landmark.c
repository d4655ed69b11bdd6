/* SPDX-License-Identifier: Apache-2.0 */
/* landmark.c — Landmark Attention (Mohtashami, Jaggi, arXiv 2305.16300) §3 and the code beside it
 * (epfml/landmark-attention): each block of a trained model's text ends with a landmark token,
 * whose key finds the block and whose weight gates it.
 *
 *     granularity  blocks, ended by tokens that the client marks (index/landmarks.h)
 *     selector     a softmax over all landmarks of a query head, the best k blocks; `share` makes
 *                  one choice for all heads of a token, or for all tokens of a request
 *     eviction     the newest `blocks` blocks can be chosen: a range, nothing is kept for it
 *     positions    stingy: see below; original where keys come rotated
 *     merge        grouped softmax: a block is a softmax of its own, weighed by its landmark; the
 *                  block's own logsumexp does not enter
 *
 *     o = (Σ_tail exp(s_j) v_j + Σ_b exp(λ_b) o_b) / Z
 *     Z = Σ_tail exp(s_j) + Σ_b exp(λ_b),  lse = ln Z
 *
 * which merges by logsumexp with the client's answer over its own block and over complete blocks
 * that it still holds. Rows behind the last landmark are the beginning of the query's own block and
 * are read plainly; a client that closes that block with rows of its own sets its limit at the
 * block's beginning and holds all of it. A query that is a stored landmark itself, and the last row
 * that it may see, belongs to the block that it closes: its own landmark is ignored.
 *
 * Stingy positions: with n blocks of B tokens, T = nB and prefix = T - (k+1)B, landmarks of all but
 * the last k blocks are scored as if they stood at prefix + B - 1, and the j-th chosen block is
 * read at prefix + jB, or + (j+1)B if it is one of the last k. So a query meets no distance it was
 * not trained on, and scoring the old landmarks is one rotation of the query and a scan. They need
 * blocks of equal length; with original positions lengths are free.
 *
 * Context-miss token (appendix D, `gate_token` 1): a token at position -1 of the stingy frame with
 * a constant key, uploaded as `gate` (G, D) and not rotated. All blocks share its weight: they are
 * normalised among themselves and enter with its logit, however few they are; where no block is
 * complete it does not take part. Where its share of the softmax, that of a window that came along
 * included, is below `cutoff`, no block is read and its share counts for nothing.
 *
 * Ours: GQA (each query head scores the landmarks of its KV head); `k` and the rest have no
 * published default, the papers used k 2 … 5. Marks decide what is a block, never positions.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/landmarks.h"
#include "index/pick.h"
#include "index/positions.h"
#include "memory/methods/landmark.h"
#include "memory/methods/methods.h"

enum { K, BLOCKS, SHARE, POSITIONS, GATE_TOKEN, CUTOFF, OPTIONS };

static const char *const shares[] = { "none", "max-over-heads", "max-over-tokens" };
static const char *const choices[] = { "auto", "stingy", "original" };
static const enum position_rule rules[] = { POSITIONS_STINGY, POSITIONS_STINGY,
                                            POSITIONS_ORIGINAL };
static const struct option_spec specs[OPTIONS] = {
    [K] = OPTION_WHOLE("k", "blocks that are read", 4, 1, 1024),
    [BLOCKS] = OPTION_WHOLE("blocks", "newest blocks that can be chosen; 0 = all", 0, 0, 1 << 24),
    [SHARE] = OPTION_CHOICE("share", "who chooses together: none = each head of each token",
                            LANDMARK_APART, shares),
    [POSITIONS] = OPTION_CHOICE("positions",
                                "where chosen blocks are rotated; auto: stingy where "
                                "memd rotates keys, else original",
                                0, choices),
    [GATE_TOKEN] = OPTION_WHOLE("gate_token", "1 = a context-miss token gates all blocks", 0, 0, 1),
    [CUTOFF] = OPTION_REAL("cutoff", "share of the context-miss token below which no block is read",
                           0, 0, 1),
};
static const struct option_table options = { "landmark", specs, OPTIONS };

static const struct param_spec tensors[] = {
    { "gate", "GD", "key of the context-miss token, not rotated; needed with gate_token = 1" },
};
static const struct param_table params = { tensors, sizeof tensors / sizeof tensors[0] };

static bool is_stingy(const double *values, bool rotates)
{
    return positions_rule(rules, values[POSITIONS], rotates) == POSITIONS_STINGY;
}

/* ---- the fold ---- */

static const struct fold_type landmark_fold;

static uint64_t reach(const double *values, uint64_t tokens)
{
    (void)values;
    return tokens;
}

static int open_fold(const struct fold_source *source, struct fold **ret_fold, struct error *err)
{
    bool rotated = source->rows.rope != NULL && !is_stingy(source->options, true);
    struct landmarks *landmarks = NULL;
    int rc = landmarks_new(&landmark_fold, source, rotated, &landmarks, err);
    if (rc == 0) *ret_fold = &landmarks->base;
    return rc;
}

static int advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err)
{
    return landmarks_advance((struct landmarks *)(void *)fold, source, end, err);
}

static size_t describe(const struct fold *fold, struct fold_fact *ret_facts)
{
    const struct landmarks *landmarks = (const struct landmarks *)(const void *)fold;
    ret_facts[0] = (struct fold_fact){ "blocks", (double)landmarks->count };
    uint64_t closed = landmarks_begin(landmarks, landmarks->count);
    ret_facts[1] = (struct fold_fact){ "open_tokens", (double)(fold->tokens - closed) };
    return 2;
}

static const struct fold_type landmark_fold = {
    .name = "landmark",
    .reach = reach,
    .open = open_fold,
    .free = landmarks_free,
    .advance = advance,
    .describe = describe,
};

/* ---- reading ---- */

/* Scratch of a task. */
struct room {
    struct pick_state block, memory; /* of one block; of all of them, where a token gates them */
    float *scores;                   /* (landmarks) */
    float *turned;                   /* (D) */
    float *best;                     /* (k) */
    float *gates;                    /* (k) logits of the chosen landmarks */
    float *products;                 /* (group) */
    uint64_t *ids;                   /* (k) */
    uint32_t *plan_groups;           /* (k) */
};

static size_t room_bytes(const struct landmark_asking *asking)
{
    size_t dim = asking->landmarks->head_dim, group = asking->group, k = asking->k;
    size_t floats = 2 * group * (dim + 2) + asking->landmarks->count + dim + 2 * k + group;
    return k * (sizeof(uint64_t) + sizeof(uint32_t)) + floats * sizeof(float);
}

static struct pick_state state_at(float **floats, size_t group, size_t dim)
{
    struct pick_state state = { .acc = *floats };
    state.max = state.acc + group * dim;
    state.sum = state.max + group;
    *floats = state.sum + group;
    return state;
}

static struct room room_at(const struct pick *pick, const struct landmark_asking *asking)
{
    struct room room = { .ids = pick->scratch };
    float *floats = (float *)(void *)(room.ids + asking->k);
    room.block = state_at(&floats, pick->group, pick->head_dim);
    room.memory = state_at(&floats, pick->group, pick->head_dim);
    room.scores = floats;
    room.turned = room.scores + asking->landmarks->count;
    room.best = room.turned + pick->head_dim;
    room.gates = room.best + asking->k;
    room.products = room.gates + asking->k;
    room.plan_groups = (uint32_t *)(void *)(room.products + pick->group);
    return room;
}

/* Keys of block `block`, the j-th chosen, stand where its rule says. */
static void place_block(struct pick *pick, const struct landmark_asking *asking,
                        const struct landmark_extent *extent, size_t block, size_t j)
{
    if (!asking->stingy) return;
    size_t recent = block >= extent->first + extent->count - extent->k;
    uint64_t prefix = extent->begin - (extent->k + 1) * extent->length; /* modulo 2^64 */
    uint64_t placed = prefix + (j + recent) * extent->length;
    pick_place(pick,
               (struct placement){ .rule = POSITIONS_CACHE_INDEX,
                                   .query = extent->position,
                                   .shift = landmarks_begin(asking->landmarks, block) - placed });
}

/* Block `block` for head m into the running softmax: its own softmax, weighed by its landmark. */
static void read_block(struct pick *pick, const struct landmark_asking *asking, struct room *room,
                       size_t m, size_t j)
{
    const struct landmarks *landmarks = asking->landmarks;
    size_t block = (size_t)room->ids[j], dim = pick->head_dim;
    uint64_t begin = landmarks_begin(landmarks, block), end = landmarks->ends[block];
    struct plan *plan = pick->call->plan;
    if (pick->call->hits != NULL) {
        pick_span(pick, m, begin, end);
        return;
    }
    pick_scores(pick, end, 1, room->products);
    room->gates[j] = room->products[m];
    size_t head = pick->kv_head * pick->group + m;
    if (plan != NULL)
        room->plan_groups[j] = plan_begin(plan, (uint32_t)pick->query, (uint32_t)head, PLAN_GATED);
    struct pick_state before = pick_apart(pick, room->block);
    pick_span(pick, m, begin, end);
    pick_together(pick, before);
    if (plan != NULL) plan_end(plan);
    float *o = room->block.acc + m * dim, sum = room->block.sum[m];
    for (size_t d = 0; sum > 0.0F && d < dim; d++) o[d] /= sum;
    pick_merge(pick, m, room->gates[j], 1.0F, o);
}

static double lse_of(float max, float sum)
{
    return max == -INFINITY ? -(double)INFINITY : (double)max + log((double)sum);
}

/* The logit of the context-miss token for head m, which stands right before the stingy frame. */
static float gate_logit(const struct pick *pick, const struct landmark_asking *asking,
                        const struct landmark_extent *extent, size_t m, float *turned)
{
    const float *q = pick->unplaced + m * pick->head_dim;
    const float *key = asking->gate + pick->kv_head * pick->head_dim;
    uint64_t distance = extent->position + 1, before = extent->first + extent->count;
    if (before > asking->k + 1) before = asking->k + 1;
    if (asking->stingy) distance -= extent->begin - before * extent->length;
    if (asking->rope != NULL) {
        landmark_turn(asking->rope, q, distance, turned);
        q = turned;
    }
    double product = 0.0;
    for (size_t d = 0; d < pick->head_dim; d++) product += (double)q[d] * (double)key[d];
    return (float)product;
}

/* Is the context-miss token's share of head m's softmax too small for the memory to be read? */
static bool misses(const struct pick *pick, const struct landmark_asking *asking, size_t m,
                   float logit)
{
    const struct reading *reading = asking->reading;
    size_t row = pick->query * reading->attend.q.shape[1] + pick->kv_head * pick->group + m;
    double others = lse_of(pick->max[m], pick->sum[m]);
    double window = reading->local == NULL ? -(double)INFINITY : (double)reading->local->lse[row];
    double share = 1.0 / (1.0 + exp(others - (double)logit) + exp(window - (double)logit));
    return share < reading->options[CUTOFF];
}

/* Shares of the answer that the groups of head m have: of Z, or of the gate's weight. */
static void weigh(const struct pick *pick, const struct room *room,
                  const struct landmark_extent *extent, size_t m, double gate)
{
    double lse = lse_of(pick->max[m], pick->sum[m]), of = isnan(gate) ? 0.0 : gate - lse;
    if (!isnan(gate)) lse = lse_of(room->memory.max[m], room->memory.sum[m]);
    for (size_t j = 0; j < extent->k; j++)
        plan_weigh(pick->call->plan, room->plan_groups[j],
                   (float)exp((double)room->gates[j] - lse + of));
}

/* All chosen blocks of head m. */
static void read_blocks(struct pick *pick, const struct landmark_asking *asking,
                        const struct landmark_extent *extent, struct room *room, size_t m)
{
    double gate = NAN;
    float logit = 0.0F;
    struct pick_state all = { 0 };
    if (asking->gate != NULL && pick->call->partial != NULL) {
        logit = gate_logit(pick, asking, extent, m, room->turned);
        gate = (double)logit;
        bool missed = misses(pick, asking, m, logit);
        all = pick_apart(pick, room->memory);
        if (missed) {
            pick_together(pick, all);
            pick_merge(pick, m, logit, 1.0F, room->memory.acc + m * pick->head_dim); /* of 0 */
            pick_dropped(pick, PICK_GROUP);
            return;
        }
    }
    for (size_t j = 0; j < extent->k && pick->stopped == 0; j++) {
        place_block(pick, asking, extent, (size_t)room->ids[j], j);
        read_block(pick, asking, room, m, j);
    }
    if (!isnan(gate)) {
        pick_together(pick, all);
        float *o = room->memory.acc + m * pick->head_dim, sum = room->memory.sum[m];
        for (size_t d = 0; sum > 0.0F && d < pick->head_dim; d++) o[d] /= sum;
        pick_merge(pick, m, logit, 1.0F, o);
    }
    if (pick->call->plan != NULL && pick->call->partial != NULL) weigh(pick, room, extent, m, gate);
}

static void choose_blocks(struct pick *pick, const struct landmark_asking *asking,
                          const struct landmark_extent *extent, struct room *room, size_t m)
{
    size_t head = pick->kv_head * pick->group + m;
    if (asking->shared != NULL) {
        bool over_heads = asking->share == LANDMARK_OVER_HEADS;
        size_t item = over_heads ? pick->query : head;
        assert(asking->counts[item] == extent->k);
        memcpy(room->ids, asking->shared + item * asking->k, extent->k * sizeof *room->ids);
        return;
    }
    landmark_score(asking, extent, head, pick->unplaced + m * pick->head_dim, room->turned,
                   room->scores);
    landmark_choose(extent, room->scores, room->best, room->ids);
}

static int task(struct pick *pick, struct error *err)
{
    const struct landmark_asking *asking = pick->call->version;
    struct room room = room_at(pick, asking);
    struct landmark_extent extent;
    int rc = landmark_extent(asking, pick->query, &extent, err);
    if (rc < 0) return rc;
    if (pick->call->places)
        pick_place(pick,
                   (struct placement){ .rule = POSITIONS_ORIGINAL, .query = extent.position });
    pick_range(pick, extent.begin, extent.end);
    if (extent.count > 0)
        pick_count(pick, INDEX_EXACT, extent.count, extent.count * pick->head_dim * sizeof(float));
    for (size_t m = 0; m < pick->group && extent.count > 0; m++) {
        choose_blocks(pick, asking, &extent, &room, m);
        read_blocks(pick, asking, &extent, &room, m);
    }
    if (extent.first > 0 || extent.k < extent.count) pick_dropped(pick, PICK_GROUP);
    return 0;
}

/* ---- the method ---- */

static uint32_t columns_of(const double *values)
{
    (void)values;
    return COLUMNS_MARKS;
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    bool rotates = model_rotates(model);
    if (values[GATE_TOKEN] == 1 && model->rotated)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "landmark: a context-miss token is rotated by "
                         "memd, and this model's keys come rotated");
    return positions_check(method->name, positions_rule(rules, values[POSITIONS], rotates), rotates,
                           err);
}

static int take_gate(struct landmark_asking *asking, struct error *err)
{
    const struct reading *reading = asking->reading;
    if (reading->options[GATE_TOKEN] == 0) return 0;
    const struct tensor *gate = params_find(reading->params, "gate", reading->layer);
    if (gate == NULL)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "landmark: layer %" PRIu32 " has no tensor "
                         "\"gate\" (upload it, or say gate_token = 0)",
                         reading->layer);
    asking->gate = gate->data;
    return 0;
}

static int pick_blocks(const struct reading *reading, struct arena *arena,
                       struct pick_call *ret_call, struct error *err)
{
    struct landmark_asking *asking = arena_calloc(arena, 1, sizeof *asking);
    if (asking == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a choice of blocks");
    *asking = (struct landmark_asking){
        .reading = reading,
        .rope = reading->attend.rope,
        .landmarks = (const struct landmarks *)(const void *)reading->fold,
        .group = reading->attend.q.shape[1] / reading->attend.kv_heads,
        .k = (size_t)reading->options[K],
        .share = (enum landmark_share)reading->options[SHARE],
        .most = (uint64_t)reading->options[BLOCKS],
    };
    asking->stingy = is_stingy(reading->options, asking->rope != NULL);
    int rc = take_gate(asking, err);
    if (rc == 0 && asking->share != LANDMARK_APART)
        rc = landmark_choose_together(asking, arena, err);
    ret_call->task = task;
    ret_call->version = asking;
    ret_call->places = asking->rope != NULL;
    ret_call->scratch_bytes = room_bytes(asking);
    return rc;
}

const struct method method_landmark = {
    .name = "landmark",
    .help = "blocks found and gated by their landmark tokens (Landmark Attention)",
    .options = &options,
    .fold = &landmark_fold,
    .params = &params,
    .columns = columns_of,
    .check = check,
    .pick = pick_blocks,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
