/* SPDX-License-Identifier: Apache-2.0 */
/* loki.c — tokens are ranked in few dimensions and read in all of them.
 *
 *     granularity  tokens, per query head
 *     score        q·k in the first r principal components of the keys (index/projected.h, a fold)
 *     selector     the best k tokens (index/cut.h); of those the exact logits of the stored keys
 *     positions    original
 *     merge        one softmax over what was selected
 *
 * Source   Loki (Singhania et al., NeurIPS 2024, arXiv 2406.02542) and its code (hpcgroup/loki): a
 *          basis per layer and KV head from calibration data, of keys before or after rotation; the
 *          mean is not subtracted. r is a number, or a share of the explained variance (the most
 *          that any head of the layer needs); k is a number, or a share of the length. A quarter of
 *          both, as evaluated there. Faithful: all of that; a client uploads `basis`, k·P with the
 *          components as columns, and `variances` where r is a share
 *
 * Ours     without an uploaded basis it is made from the layer's own first `calibration` tokens,
 *          and until they are there everything is read exactly. Ties go to the lower position.
 *          Projected keys are kept in memory, in fp16 unless the model is of fp32. GQA: a query
 *          head ranks the keys of its KV head, as the code does by expanding them. A share of the
 *          length is rounded down to whole tokens, one at least
 *
 * Quality  mass and error of what was not read are unknown (NaN): it was seen in r components only.
 *          Projected keys are counted at level `clusters`, exact rows as everywhere
 * Memory   the fold; 4 bytes per token and KV head while a query is answered
 * Tests    tests/unit/test_loki.c, tests/python/test_loki.py
 */
#include <inttypes.h>
#include <math.h>

#include "base/error.h"
#include "index/cut.h"
#include "index/pick.h"
#include "index/projected.h"
#include "memory/methods/methods.h"
#include "proto/limits.h"

enum { COMPONENTS, K, CALIBRATION, ROTARY };
enum { BASIS_OF_ROTATED, BASIS_OF_UNROTATED };
enum { SCAN_TOKENS = 8192, LIST_TOKENS = 512 };

static const char *const rotaries[] = { "post", "pre" };
static const struct option_spec specs[] = {
    [COMPONENTS] = OPTION_REAL("components", "dimensions that tokens are ranked in; below 1: share "
                               "of the variance; 0: a quarter", 0, 0, LIMIT_HEAD_DIM),
    [K] = OPTION_REAL("k", "tokens that each query head attends to; up to 1: share of the length",
                      0.25, 1e-6, 0x1p53),
    [CALIBRATION] = OPTION_WHOLE("calibration", "first tokens of a layer that its basis is made "
                                 "from; fewer are read exactly; 0: a basis is uploaded", 1024, 0,
                                 65536),
    [ROTARY] = OPTION_CHOICE("rotary", "the basis is of keys after rotation or before", 0,
                             rotaries),
};
static const struct option_table options = { "loki", specs, sizeof specs / sizeof specs[0] };

static const struct param_spec tensors[] = {
    { "basis", "GDD", "components as columns, the most important first" },
    { "variances", "GD", "of the components, descending; needed where components is a share" },
};
static const struct param_table params = { tensors, sizeof tensors / sizeof tensors[0] };

/* ---- the fold ---- */

static uint64_t reach(const double *values, uint64_t tokens)
{
    return tokens >= (uint64_t)values[CALIBRATION] ? tokens : 0;
}

static bool is_unrotated(const double *values)
{
    return values[ROTARY] == BASIS_OF_UNROTATED;
}

static int find_basis(struct projected *projected, const struct fold_source *source,
                      struct error *err)
{
    const double *values = source->options;
    struct projected_wish wish = { .share = values[COMPONENTS] };
    if (values[COMPONENTS] >= 1.0) wish.components = (size_t)values[COMPONENTS];
    if (values[COMPONENTS] == 0.0) wish.components = (source->head_dim + 3) / 4;
    const struct tensor *basis = params_find(source->params, "basis", source->layer);
    const struct tensor *variances = params_find(source->params, "variances", source->layer);
    if (basis != NULL) return projected_take(projected, basis, variances, &wish, err);
    if (values[CALIBRATION] > 0)
        return projected_calibrate(projected, source, is_unrotated(values),
                                   (uint64_t)values[CALIBRATION], &wish, err);
    return error_set(err, MEMD_EUNSUPPORTED, "loki: layer %" PRIu32 " has no tensor \"basis\" "
                     "(upload it, or say calibration = 1024)", source->layer);
}

static const struct fold_type loki_fold;

static int open_fold(const struct fold_source *source, struct fold **ret_fold, struct error *err)
{
    return projected_open(&loki_fold, source, ret_fold, err);
}

static int advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err)
{
    struct projected *projected = (struct projected *)(void *)fold;
    if (end == 0) return 0;
    int rc = projected->width > 0 ? 0 : find_basis(projected, source, err);
    if (rc < 0) return rc;
    return projected_advance(projected, source, is_unrotated(source->options), end, err);
}

static size_t describe(const struct fold *fold, struct fold_fact *ret_facts)
{
    const struct projected *projected = (const struct projected *)(const void *)fold;
    ret_facts[0] = (struct fold_fact){ "components", (double)projected->components };
    ret_facts[1] = (struct fold_fact){ "projected_tokens", (double)fold->tokens };
    return 2;
}

static const struct fold_type loki_fold = { .name = "loki", .reach = reach, .open = open_fold,
                                            .free = projected_free, .advance = advance,
                                            .describe = describe };

/* ---- queries ---- */

/* How many of n tokens. */
static uint64_t wanted(const double *values, uint64_t n)
{
    if (values[K] > 1.0) return (uint64_t)values[K];
    uint64_t count = (uint64_t)floor(values[K] * (double)n * (1.0 + 1e-12)); /* 0.29 of 100 is 29 */
    return count > 0 ? count : 1;
}

/* scores (limit) of a head in few dimensions. */
static void rank(struct pick *pick, const struct projected *projected, size_t m, float *scores)
{
    _Alignas(64) float q[LIMIT_HEAD_DIM];
    const struct attend_args *args = &pick->call->args->attend;
    const float *whole = is_unrotated(pick->call->options) ? pick->unplaced : pick->q;
    projected_query(projected, pick->kv_head, whole + m * pick->head_dim, q);
    size_t some = 0;
    for (uint64_t at = 0; at < pick->limit && pick->stopped == 0; at += some) {
        some = pick->limit - at < SCAN_TOKENS ? (size_t)(pick->limit - at) : SCAN_TOKENS;
        projected_scores(projected, pick->kv_head, q, at, some, scores + at);
        if (args->stop != NULL) pick->stopped = args->stop(args->stop_arg);
    }
    pick_count(pick, INDEX_CLUSTERS, pick->limit, pick->limit * projected->keys.row_bytes);
}

/* The best `count` of them. */
static void read_best(struct pick *pick, size_t m, const float *scores, uint64_t count)
{
    uint64_t ids[LIST_TOKENS];
    size_t listed = 0;
    struct cut cut = cut_largest(scores, (size_t)pick->limit, (size_t)count);
    for (uint64_t t = 0; t < pick->limit; t++) {
        if (!cut_takes(&cut, scores[t])) continue;
        ids[listed++] = t;
        if (listed < LIST_TOKENS) continue;
        pick_list(pick, m, ids, listed);
        listed = 0;
    }
    pick_list(pick, m, ids, listed);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const struct reading *reading = pick->call->version;
    const struct projected *projected = (const struct projected *)(const void *)reading->fold;
    uint64_t count = wanted(pick->call->options, pick->limit);
    if (pick->call->places)
        pick_place(pick, (struct placement){ .rule = POSITIONS_ORIGINAL,
                                             .query = reading->attend.positions[pick->query] });
    if (count >= pick->limit) {
        pick_range(pick, 0, pick->limit);
        return 0;
    }
    for (size_t m = 0; m < pick->group && pick->stopped == 0; m++) {
        rank(pick, projected, m, pick->scratch);
        if (pick->stopped == 0) read_best(pick, m, pick->scratch, count);
    }
    pick_dropped(pick, PICK_GROUP);
    return 0;
}

/* Without a basis everything is read. */
static int pick_best(const struct reading *reading, struct arena *arena,
                     struct pick_call *ret_call, struct error *err)
{
    (void)arena;
    (void)err;
    if (reading->fold == NULL || reading->fold->tokens == 0) return 1;
    uint64_t longest = 0;
    for (size_t i = 0; i < reading->attend.q.shape[0]; i++)
        if (reading->attend.limits[i] > longest) longest = reading->attend.limits[i];
    if (longest > reading->fold->tokens) longest = reading->fold->tokens;
    ret_call->task = task;
    ret_call->version = reading;
    ret_call->scratch_bytes = (size_t)longest * sizeof(float);
    ret_call->places = is_unrotated(reading->options) && reading->attend.rope != NULL;
    return 0;
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    (void)method;
    if (values[COMPONENTS] > model->head_dim)
        return error_set(err, MEMD_EINVAL, "loki: components is %.9g, a head has %" PRIu32
                         " dimensions", values[COMPONENTS], model->head_dim);
    if (values[COMPONENTS] > 1.0 && values[COMPONENTS] != floor(values[COMPONENTS]))
        return error_set(err, MEMD_EINVAL, "loki: components is %.9g, above 1 it has to be whole",
                         values[COMPONENTS]);
    if (values[K] > 1.0 && values[K] != floor(values[K]))
        return error_set(err, MEMD_EINVAL, "loki: k is %.9g, above 1 it has to be whole",
                         values[K]);
    if (!is_unrotated(values) || model_rotates(model) || !model->has_rope) return 0;
    return error_set(err, MEMD_EUNSUPPORTED, "loki: rotary is pre, and this model's keys come "
                     "rotated");
}

const struct method method_loki = {
    .name = "loki",
    .help = "tokens ranked in few principal components, the best read exactly (Loki)",
    .options = &options,
    .fold = &loki_fold,
    .params = &params,
    .check = check,
    .pick = pick_best,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
