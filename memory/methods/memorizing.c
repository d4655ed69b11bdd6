/* SPDX-License-Identifier: Apache-2.0 */
/* memorizing.c — Memorizing Transformers (Wu, Rabe, Hutchins, Szegedy, arXiv 2203.08913) §3, and
 * the code beside it (google-research/meliad): one layer of a trained model looks up its k nearest
 * keys of a long past and joins what it finds to its own window by a gate per head.
 *
 *     granularity  tokens: the newest `memory` of the layer, a ring
 *     selector     k per query head: bucketed as published (index/bucketed.h), or exact
 *     score        |scale_h| cos(q, k): keys and queries at length 1, `scale` (H) is uploaded
 *     positions    none: neither keys nor query are rotated
 *     merge        separate: a softmax over the rows found, alone; `gate` (H) is uploaded and joins
 *                  y = (1 - σ(gate_h)) y_window + σ(gate_h) y_memory
 *
 * Faithful: all of the above. The ring is a range of positions, since its slot p mod m holds the
 * newest token of that residue, and nothing has to be kept for it; buckets of slots are buckets of
 * positions because m is a multiple of k. Where fewer than k were found, the published code reads
 * zeros from slots that nothing was written to: keys of logit 0 with values of 0, which draw the
 * answer towards 0 while the memory is young. `zero_rows` is that; 0 leaves them out.
 *
 * Ours: lengths are a fold (index/norms.h) and rows stay as they were sent. `normalise` 0 is for
 * models trained with raw keys: q·k times the model's attention scale. Without an uploaded `scale`
 * a query with `normalise` 1 is refused: any number in its place would be another model. A head
 * without an uploaded `gate` has 0, where training begins (σ = ½). GQA: each query head searches
 * the keys of its KV head. A segment does not retrieve itself: limits say what it may see, as
 * everywhere. An empty memory answers (0, -inf), with zero_rows too.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>

#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "index/bucketed.h"
#include "index/norms.h"
#include "index/pick.h"
#include "index/positions.h"
#include "memory/methods/methods.h"

enum { MEMORY, K, SEARCH, NORMALISE, ZERO_ROWS, POSITIONS, OPTIONS };
enum { BUCKETED, EXACT };
enum { STEP_FLOATS = 8192 }; /* scores in flight */

static const char *const searches[] = { "bucketed", "exact" };
static const char *const choices[] = { "auto", "none", "original" };
static const enum position_rule rules[] = { POSITIONS_NONE, POSITIONS_NONE, POSITIONS_ORIGINAL };
static const struct option_spec specs[OPTIONS] = {
    [MEMORY] = OPTION_WHOLE("memory", "newest tokens of a layer that are searched", 32768, 1,
                            1 << 24),
    [K] = OPTION_WHOLE("k", "tokens that each query head attends to", 128, 1, 65536),
    [SEARCH] = OPTION_CHOICE("search", "bucketed: the best of each of k buckets (memory must be a "
                             "multiple of k); exact: the best k", BUCKETED, searches),
    [NORMALISE] = OPTION_WHOLE("normalise", "1 = keys and queries at length 1, times the uploaded "
                               "scale; 0 = as they are", 1, 0, 1),
    [ZERO_ROWS] = OPTION_WHOLE("zero_rows", "1 = rows of zeros stand in where fewer than k are "
                               "found", 1, 0, 1),
    [POSITIONS] = OPTION_CHOICE("positions", "where keys and query are rotated; auto: none where "
                                "memd rotates keys, else original", 0, choices),
};
static const struct option_table options = { "memorizing", specs, OPTIONS };

static const struct param_spec tensors[] = {
    { "scale", "H", "what a cosine is multiplied by, its magnitude; needed with normalise = 1" },
    { "gate", "H", "share of the memory before the sigmoid, where memd joins it to a window" },
};
static const struct param_table params = { tensors, sizeof tensors / sizeof tensors[0] };

/* What the tasks of a call need. */
struct memory {
    const struct norms *norms;
    const float *scale; /* (H), NULL: raw products */
};

/* Scratch of a task. */
struct choice {
    uint64_t *ids;      /* (k) of the head at hand, best first */
    float *best;        /* (k) */
    uint64_t *winners;  /* (group, k) of buckets, or heaps */
    float *winning;     /* (group, k) */
    float *scores;      /* (STEP_FLOATS) */
    size_t k;
    bool bucketed;
};

static size_t choice_bytes(size_t group, size_t k)
{
    return (group + 1) * k * (sizeof(uint64_t) + sizeof(float)) + STEP_FLOATS * sizeof(float);
}

static struct choice choice_at(const struct pick *pick)
{
    size_t k = (size_t)pick->call->options[K];
    struct choice choice = { .ids = pick->scratch, .k = k,
                             .bucketed = pick->call->options[SEARCH] == BUCKETED };
    choice.winners = choice.ids + k;
    choice.scores = (float *)(void *)(choice.winners + pick->group * k);
    choice.best = choice.scores + STEP_FLOATS;
    choice.winning = choice.best + k;
    return choice;
}

static struct bucketed buckets_of(const struct choice *choice, size_t m)
{
    return (struct bucketed){ choice->winners + m * choice->k, choice->winning + m * choice->k,
                              choice->k };
}

static struct topk heap_of(const struct choice *choice, size_t m)
{
    return (struct topk){ choice->winners + m * choice->k, choice->winning + m * choice->k,
                          choice->k };
}

/* What products with head m's query, which the model's scale is in, are divided by beside |k| to
 * become logits; of unit vectors whatever rotates them. */
static double length_of(const struct pick *pick, const struct memory *memory, size_t m)
{
    double magnitude = pick->rows.rope == NULL ? 1.0 : pick->rows.rope->magnitude; /* of keys */
    double scale = fabs((double)memory->scale[pick->kv_head * pick->group + m]);
    double length = norms_length(pick->q + m * pick->head_dim, pick->head_dim) * magnitude;
    return scale > 0.0 ? length / scale : (double)INFINITY;
}

/* scores (count) of the keys from `begin` on, for head m. */
static void offer(const struct choice *choice, size_t m, const float *scores, size_t count,
                  uint64_t begin)
{
    if (choice->bucketed) {
        struct bucketed bucketed = buckets_of(choice, m);
        bucketed_offer(&bucketed, scores, count, begin);
        return;
    }
    struct topk heap = heap_of(choice, m);
    for (size_t i = 0; i < count; i++) topk_offer(&heap, scores[i], begin + i);
}

static void scan(struct pick *pick, const struct choice *choice, uint64_t begin)
{
    const struct memory *memory = pick->call->version;
    size_t step = STEP_FLOATS / pick->group;
    for (uint64_t at = begin; at < pick->limit && pick->stopped == 0; at += step) {
        size_t count = pick->limit - at < step ? (size_t)(pick->limit - at) : step;
        pick_scores(pick, at, count, choice->scores);
        for (size_t m = 0; m < pick->group; m++) {
            float *scores = choice->scores + m * count;
            if (memory->scale != NULL)
                norms_cosines(memory->norms, pick->kv_head, at, count, length_of(pick, memory, m),
                              scores);
            offer(choice, m, scores, count, at);
        }
    }
}

/* The hits of head m, best first; how many. */
static size_t finish(const struct choice *choice, size_t m)
{
    struct topk best = { choice->ids, choice->best, choice->k };
    if (choice->bucketed) {
        struct bucketed bucketed = buckets_of(choice, m);
        bucketed_best(&bucketed, &best);
    } else {
        best = heap_of(choice, m);
        topk_sort(&best);
    }
    size_t count = 0;
    for (; count < best.k && best.ids[count] != INDEX_NONE; count++) {
        choice->ids[count] = best.ids[count];
        choice->best[count] = best.scores[count];
    }
    return count;
}

/* As many keys of logit 0 and values of 0 as are missing to k. */
static void read_zeros(struct pick *pick, size_t m, size_t missing)
{
    pick->sum[m] *= expf(fminf(pick->max[m], 0.0F));
    for (size_t d = 0; pick->max[m] < 0.0F && d < pick->head_dim; d++)
        pick->acc[m * pick->head_dim + d] *= expf(pick->max[m]);
    pick->max[m] = fmaxf(pick->max[m], 0.0F);
    pick->sum[m] += (float)missing * expf(-pick->max[m]);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    uint64_t memory = (uint64_t)pick->call->options[MEMORY];
    uint64_t begin = pick->limit > memory ? pick->limit - memory : 0;
    struct choice choice = choice_at(pick);
    struct plan *plan = pick->call->plan;
    if (pick->limit == 0) return 0;
    if (pick->call->places) pick_place(pick, (struct placement){ .rule = POSITIONS_NONE });
    if (plan != NULL)
        plan_begin(plan, (uint32_t)pick->query, (uint32_t)(pick->kv_head * pick->group),
                   PLAN_SEPARATE);
    for (size_t m = 0; m < pick->group; m++) {
        struct bucketed all = buckets_of(&choice, m); /* an empty heap looks the same */
        bucketed_clear(&all);
    }
    scan(pick, &choice, begin);
    for (size_t m = 0; m < pick->group && pick->stopped == 0; m++) {
        size_t count = finish(&choice, m);
        pick_scored(pick, m, choice.ids, choice.best, count);
        if (pick->call->partial != NULL && pick->call->options[ZERO_ROWS] == 1 && count < choice.k)
            read_zeros(pick, m, choice.k - count);
    }
    if (begin > 0 || pick->limit > choice.k || choice.bucketed) pick_dropped(pick, PICK_GROUP);
    if (plan != NULL) plan_end(plan);
    return 0;
}

static enum position_rule rule_of(const double *values, bool rotates)
{
    return positions_rule(rules, values[POSITIONS], rotates);
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    uint64_t memory = (uint64_t)values[MEMORY], k = (uint64_t)values[K];
    if (values[SEARCH] == BUCKETED && memory % k != 0)
        return error_set(err, MEMD_EINVAL, "memorizing: memory %" PRIu64 " is not a multiple of k "
                         "%" PRIu64 ", as bucketed search needs", memory, k);
    bool rotates = model_rotates(model);
    return positions_check(method->name, rule_of(values, rotates), rotates, err);
}

static int pick_memory(const struct reading *reading, struct arena *arena,
                       struct pick_call *ret_call, struct error *err)
{
    size_t heads = reading->attend.q.shape[1], group = heads / reading->attend.kv_heads;
    struct memory *memory = arena_calloc(arena, 1, sizeof *memory);
    bool rotates = reading->attend.rope != NULL;
    if (memory == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a query");
    if (reading->options[NORMALISE] == 1) {
        const struct tensor *scale = params_find(reading->params, "scale", reading->layer);
        if (scale == NULL)
            return error_set(err, MEMD_EUNSUPPORTED, "memorizing: layer %" PRIu32 " has no tensor "
                             "\"scale\" (upload it, or say normalise = 0)", reading->layer);
        memory->scale = scale->data;
        memory->norms = norms_of(reading->fold);
    }
    ret_call->task = task;
    ret_call->version = memory;
    ret_call->places = rotates && rule_of(reading->options, rotates) == POSITIONS_NONE;
    ret_call->scratch_bytes = choice_bytes(group, (size_t)reading->options[K]);
    return 0;
}

/* Each answer keeps its own softmax; lse is that of the window. */
static int join(const struct method *method, const struct reading *reading,
                const struct partial *local, const struct partial *answer, struct error *err)
{
    (void)method;
    (void)err;
    const struct tensor *tensor = params_find(reading->params, "gate", reading->layer);
    const float *gate = tensor == NULL ? NULL : tensor->data;
    size_t heads = reading->attend.q.shape[1], dim = local->head_dim;
    for (size_t row = 0; row < local->rows; row++) {
        double bias = gate == NULL ? 0.0 : (double)gate[row % heads];
        float share = (float)(1.0 / (1.0 + exp(-bias)));
        const float *window = local->o + row * dim;
        float *o = answer->o + row * dim;
        for (size_t d = 0; d < dim; d++) o[d] = (1.0F - share) * window[d] + share * o[d];
        answer->lse[row] = local->lse[row];
    }
    return 0;
}

const struct method method_memorizing = {
    .name = "memorizing",
    .help = "the nearest keys of a long past, joined by a gate (Memorizing Transformers)",
    .options = &options,
    .fold = &norms_fold,
    .params = &params,
    .check = check,
    .pick = pick_memory,
    .attend = method_attend_picked,
    .search = method_search_picked,
    .join = join,
};
