/* SPDX-License-Identifier: Apache-2.0 */
/* l2norm.c — of a prompt, the keys of smallest length are kept: they are those that get attention.
 *
 * Source   A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (Devoto et al.,
 *          arXiv 2406.11430) and its code (alessiodevoto/l2compress): per head, the ⌈ratio·n⌉ keys
 *          with the smallest L2 norm of a prompt of n tokens, if n is at least `prune_after`; the
 *          first layers are left alone, where the correlation does not hold. No query is needed.
 *          Faithful: all of that, and `ratio`, `prune_after` and two skipped layers as its authors
 *          use them
 *
 * Ours     the length is of the key as it is stored (a rotation does not change it). Ties go to the
 *          lower position; kept keys are read in the order of the past. There one compresses again
 *          as the cache grows, here once for a prompt. An uploaded capacity for each head in place
 *          of the ratio. Nothing is deleted
 *
 * Blocks   norms.h (lengths), budget.h (per head), cut.h (the smallest), compressed.h (reading)
 * Tests    tests/unit/test_l2norm.c, tests/python/test_compressed.py
 */
#include <math.h>
#include <stdatomic.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/budget.h"
#include "index/norms.h"
#include "memory/methods/compressed.h"

enum { RATIO, PRUNE_AFTER, SKIP_LAYERS };
enum { STOP_TOKENS = 8192 }; /* measured between two looks at `stop` */

static const struct option_spec specs[] = {
    [RATIO] = OPTION_REAL("ratio", "share of a prompt's tokens that is kept", 0.5, 0, 1),
    [PRUNE_AFTER] = OPTION_WHOLE("prune_after", "tokens of the shortest prompt that is compressed",
                                 2048, 1, 0x1p53),
    [SKIP_LAYERS] = OPTION_WHOLE("skip_layers", "first layers that keep everything", 2, 0, 65536),
};
static const struct option_table options = { "l2norm", specs, sizeof specs / sizeof specs[0] };

static const struct param_spec tensors[] = { BUDGET_CAPACITY };
static const struct param_table params = { tensors, sizeof tensors / sizeof tensors[0] };

struct measuring {
    const struct compressing *prompt;
    struct selection *selection;
    float *lengths; /* (G, tokens), negated: the smallest are the largest */
    uint64_t *kept; /* (G) */
    atomic_int stopped;
};

static void keep_shortest(void *arg, size_t g)
{
    struct measuring *work = arg;
    const struct compressing *prompt = work->prompt;
    size_t tokens = (size_t)prompt->tokens, some = 0;
    float *lengths = work->lengths + g * tokens;
    for (size_t at = 0; at < tokens && atomic_load(&work->stopped) == 0; at += some) {
        int code = prompt->stop == NULL ? 0 : prompt->stop(prompt->stop_arg);
        if (code != 0) atomic_store(&work->stopped, code);
        some = tokens - at < STOP_TOKENS ? tokens - at : STOP_TOKENS;
        norms_measure(&prompt->rows, g, at, some, lengths + at);
        for (size_t t = at; t < at + some; t++) lengths[t] = -lengths[t];
    }
    if (atomic_load(&work->stopped) != 0) return;
    compressed_keep(lengths, tokens, (size_t)work->kept[g],
                    work->selection->ids + work->selection->first[g]);
}

/* ret_kept (G), each a number or BUDGET_ALL */
static int share_out(const struct compressing *prompt, uint64_t *ret_kept, struct error *err)
{
    const struct tensor *uploaded = params_find(prompt->params, tensors[0].name, prompt->layer);
    if (uploaded != NULL) return budget_heads(uploaded, 0, prompt->tokens, ret_kept, err);
    /* 0.1 of 30 is 3 and not the 3.0000000000000004 that comes out */
    double kept = ceil(prompt->options[RATIO] * (double)prompt->tokens * (1.0 - 1e-12));
    for (size_t g = 0; g < prompt->kv_heads; g++) ret_kept[g] = (uint64_t)kept;
    return 0;
}

static int compress_by_length(const struct method *method, const struct compressing *prompt,
                              struct arena *arena, struct selection **ret_selection,
                              struct error *err)
{
    (void)method;
    const double *values = prompt->options;
    uint64_t tokens = prompt->tokens;
    if (prompt->layer < (uint32_t)values[SKIP_LAYERS] || tokens < (uint64_t)values[PRUNE_AFTER])
        return 0;
    struct measuring work = { .prompt = prompt };
    work.kept = arena_calloc(arena, prompt->kv_heads, sizeof *work.kept);
    work.lengths = arena_calloc(arena, prompt->kv_heads * (size_t)tokens, sizeof *work.lengths);
    if (work.kept == NULL || work.lengths == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for lengths of %zu keys",
                         prompt->kv_heads * (size_t)tokens);
    int rc = share_out(prompt, work.kept, err);
    if (rc < 0 || !budget_chooses(work.kept, prompt->kv_heads, tokens)) return rc;
    rc = selection_new(tokens, (uint32_t)prompt->kv_heads, work.kept, &work.selection, err);
    if (rc < 0) return rc;
    pool_for(prompt->pool, prompt->kv_heads, keep_shortest, &work);
    int stopped = atomic_load(&work.stopped);
    if (stopped == 0) *ret_selection = work.selection;
    else selection_free(work.selection);
    return stopped == 0 ? 0 : error_set(err, stopped, "%s while keys were measured",
                                        error_text(stopped));
}

const struct method method_l2norm = {
    .name = "l2norm",
    .help = "of a prompt, the keys of smallest length (L2-norm compression)",
    .options = &options,
    .params = &params,
    .compress = compress_by_length,
    .pick = compressed_pick,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
