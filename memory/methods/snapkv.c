/* SPDX-License-Identifier: Apache-2.0 */
/* snapkv.c — the last queries of a prompt say which of its tokens are kept: SnapKV, and PyramidKV,
 * which keeps more of them in low layers than in high ones.
 *
 *     votes      softmax of the last `window` queries over the prompt, added up (index/votes.h)
 *     pooling    average over `kernel` neighbours (index/reduce.h)
 *     heads      each query head scores for itself; reduced over the group (index/reduce.h)
 *     budget     const, or pyramid by layer; or per head, as uploaded (index/budget.h)
 *     kept       the best of the past per head (index/cut.h), and the window
 *     reading    what was kept and everything behind the prompt (compressed.h), original positions
 *
 * Source   SnapKV (Li et al., arXiv 2404.14469) §4 and PyramidKV (Cai et al., arXiv 2406.02069) §4,
 *          with their code (Zefan-Cai/KVCache-Factory). Faithful: order of the steps, zeros counted
 *          at the ends of a pooling, integer budgets and the sum of them that is too large, prompts
 *          shorter than the capacity kept whole, one compression per prompt, defaults of window,
 *          kernel, β and of SnapKV's capacity
 *
 * Ours     weights are added up in fp32 whatever the model's type. Ties go to the lower position,
 *          and kept tokens are read in the order of the past, not of their scores. PyramidKV's
 *          default capacity; its paper varies it. `gqa_reduce`: the mean as in the code; `none`
 *          lets every query head keep its own tokens, as models without groups do. A reduction
 *          comes after pooling, which matters to max alone. Capacities of heads. Nothing is deleted
 *
 * A client sends the queries of the prompt's last tokens with Compress, rotated only where its keys
 * are; memd turns them to their true positions where it rotates keys.
 *
 * Tests    tests/unit/test_snapkv.c, tests/python/test_compressed.py
 */
#include <inttypes.h>
#include <string.h>

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/budget.h"
#include "index/reduce.h"
#include "index/votes.h"
#include "memory/methods/compressed.h"

enum { CAPACITY, WINDOW, KERNEL, GQA_REDUCE, BETA };
#define WAVE_BYTES ((size_t)64 << 20) /* votes of the KV heads that are counted together */

#define COMMON_OPTIONS(capacity)                                                                   \
    [CAPACITY] = OPTION_WHOLE("capacity", "tokens of a prompt that are kept per layer and head",   \
                              capacity, 2, 1 << 24),                                               \
    [WINDOW] = OPTION_WHOLE("window", "last tokens of a prompt that are kept, and whose queries "  \
                            "choose the others", 32, 1, VOTES_WINDOW_MAX),                         \
    [KERNEL] = OPTION_WHOLE("kernel", "neighbours that votes are averaged over; odd", 5, 1,        \
                            REDUCE_KERNEL_MAX),                                                    \
    [GQA_REDUCE] = OPTION_CHOICE("gqa_reduce", "how the query heads of a group agree; none: each " \
                                 "keeps its own tokens", REDUCE_MEAN, reduce_names)

static const struct option_spec snapkv_specs[] = { COMMON_OPTIONS(4096) };
static const struct option_spec pyramid_specs[] = {
    COMMON_OPTIONS(2048),
    [BETA] = OPTION_WHOLE("beta", "how steep the pyramid is: the last layer keeps this part of a "
                          "uniform share", 20, 1, 1 << 20),
};
static const struct option_table snapkv_options = { "snapkv", snapkv_specs,
                                                    sizeof snapkv_specs / sizeof snapkv_specs[0] };
static const struct option_table pyramid_options = {
    "pyramidkv", pyramid_specs, sizeof pyramid_specs / sizeof pyramid_specs[0]
};

static const struct param_spec tensors[] = { BUDGET_CAPACITY };
static const struct param_table params = { tensors, sizeof tensors / sizeof tensors[0] };

/* Some KV heads whose votes are counted. */
struct wave {
    const double *options;
    struct selection *selection;
    float *votes; /* (heads, group, past) */
    size_t first, group, past;
    const uint64_t *kept; /* (G) of the past */
};

/* idx: of the wave's KV heads */
static void choose(void *arg, size_t idx)
{
    const struct wave *wave = arg;
    enum reduce rule = (enum reduce)wave->options[GQA_REDUCE];
    const struct selection *selection = wave->selection;
    float *votes = wave->votes + idx * wave->group * wave->past;
    for (size_t m = 0; m < wave->group; m++)
        reduce_pool(votes + m * wave->past, wave->past, (size_t)wave->options[KERNEL]);
    size_t choices = rule == REDUCE_NONE ? wave->group : 1, g = wave->first + idx;
    if (rule != REDUCE_NONE) reduce_group(rule, votes, wave->group, wave->past, votes);
    for (size_t c = 0; c < choices; c++) {
        size_t head = g * choices + c;
        uint64_t *end = compressed_keep(votes + c * wave->past, wave->past, (size_t)wave->kept[g],
                                        selection->ids + selection->first[head]);
        for (uint64_t t = wave->past; t < selection->tokens; t++) *end++ = t;
    }
}

static void free_selection(struct selection **selection)
{
    selection_free(*selection);
}

/* Room for as many ids as are kept. */
static int make_selection(const struct compressing *prompt, const uint64_t *kept,
                          struct arena *arena, struct selection **ret_selection, struct error *err)
{
    bool apart = prompt->options[GQA_REDUCE] == REDUCE_NONE;
    size_t heads = apart ? prompt->query_heads : prompt->kv_heads;
    uint64_t *counts = arena_calloc(arena, heads, sizeof *counts);
    if (counts == NULL) return error_set(err, MEMD_ENOMEM, "no memory for %zu heads", heads);
    size_t each = heads / prompt->kv_heads;
    for (size_t h = 0; h < heads; h++)
        counts[h] = kept[h / each] + (uint64_t)prompt->options[WINDOW];
    return selection_new(prompt->tokens, (uint32_t)heads, counts, ret_selection, err);
}

/* kept (G): of the past, beside the window. */
static int keep(const struct compressing *prompt, const uint64_t *kept, struct arena *arena,
                struct selection **ret_selection, struct error *err)
{
    struct votes_args args = { .rows = prompt->rows, .kv_heads = prompt->kv_heads,
                               .query_heads = prompt->query_heads, .scale = prompt->scale,
                               .tokens = prompt->tokens, .q = prompt->q, .pool = prompt->pool,
                               .window = (size_t)prompt->options[WINDOW], .stop = prompt->stop,
                               .stop_arg = prompt->stop_arg };
    struct wave wave = { .options = prompt->options, .kept = kept,
                         .group = prompt->query_heads / prompt->kv_heads,
                         .past = (size_t)prompt->tokens - args.window };
    CLEANUP(free_selection) struct selection *selection = NULL;
    size_t head_bytes = wave.group * wave.past * sizeof *wave.votes;
    size_t step = WAVE_BYTES / head_bytes + 1;
    if (step > prompt->kv_heads) step = prompt->kv_heads;
    wave.votes = arena_alloc_aligned(arena, step * head_bytes, 64);
    if (wave.votes == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for the votes of %zu heads over %zu tokens",
                         step * wave.group, wave.past);
    int rc = make_selection(prompt, kept, arena, &selection, err);
    wave.selection = selection;
    for (; rc == 0 && wave.first < prompt->kv_heads; wave.first += step) {
        size_t heads = prompt->kv_heads - wave.first < step ? prompt->kv_heads - wave.first : step;
        rc = votes_count(&args, wave.first, heads, arena, wave.votes, err);
        if (rc == 0) pool_for(prompt->pool, heads, choose, &wave);
    }
    if (rc == 0) *ret_selection = TAKE(selection);
    return rc;
}

/* ret_kept (G), each a number or BUDGET_ALL */
static int share_out(const struct method *method, const struct compressing *prompt,
                     uint64_t *ret_kept, struct error *err)
{
    struct budget budget = { .capacity = (uint64_t)prompt->options[CAPACITY],
                             .window = (uint64_t)prompt->options[WINDOW],
                             .layers = prompt->layers };
    const struct tensor *uploaded = params_find(prompt->params, tensors[0].name, prompt->layer);
    if (uploaded != NULL)
        return budget_heads(uploaded, budget.window, prompt->tokens, ret_kept, err);
    bool pyramid = method->options == &pyramid_options;
    if (pyramid) budget.beta = (uint64_t)prompt->options[BETA];
    uint64_t kept = pyramid ? budget_pyramid(&budget, prompt->layer, prompt->tokens)
                            : budget_const(&budget, prompt->tokens);
    for (size_t g = 0; g < prompt->kv_heads; g++) ret_kept[g] = kept;
    return 0;
}

static int compress_by_votes(const struct method *method, const struct compressing *prompt,
                             struct arena *arena, struct selection **ret_selection,
                             struct error *err)
{
    uint64_t window = (uint64_t)prompt->options[WINDOW];
    uint64_t *kept = arena_calloc(arena, prompt->kv_heads, sizeof *kept);
    if (kept == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu heads", prompt->kv_heads);
    int rc = share_out(method, prompt, kept, err);
    if (rc < 0 || !budget_chooses(kept, prompt->kv_heads, prompt->tokens - window)) return rc;
    if (prompt->q.dims == 0 || prompt->q.shape[0] < window)
        return error_set(err, MEMD_EINVAL,
                         "%s: the queries of the last %" PRIu64 " tokens are "
                         "needed, %zu came",
                         method->name, window,
                         prompt->q.dims == 0 ? (size_t)0 : prompt->q.shape[0]);
    return keep(prompt, kept, arena, ret_selection, err);
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    (void)model;
    if (values[WINDOW] >= values[CAPACITY])
        return error_set(err, MEMD_EINVAL, "%s: capacity is %.0f and has to be more than window, "
                         "%.0f", method->name, values[CAPACITY], values[WINDOW]);
    if ((uint64_t)values[KERNEL] % 2 == 1) return 0;
    return error_set(err, MEMD_EINVAL, "%s: kernel is %.0f and has to be odd", method->name,
                     values[KERNEL]);
}

const struct method method_snapkv = {
    .name = "snapkv",
    .help = "of a prompt, the tokens that its last queries attend to (SnapKV)",
    .options = &snapkv_options,
    .check = check,
    .params = &params,
    .compress = compress_by_votes,
    .pick = compressed_pick,
    .attend = method_attend_picked,
    .search = method_search_picked,
};

const struct method method_pyramidkv = {
    .name = "pyramidkv",
    .help = "as snapkv, with more tokens in low layers than in high ones (PyramidKV)",
    .options = &pyramid_options,
    .check = check,
    .params = &params,
    .compress = compress_by_votes,
    .pick = compressed_pick,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
