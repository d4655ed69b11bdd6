/* SPDX-License-Identifier: Apache-2.0 */
/* extended_mind.c — each query head attends to the few keys of the past that point its way.
 *
 * Source   Extended Mind Transformers (Klett, Ahle, arXiv 2406.02332) and its published code: for
 *          each query head the k = 10 keys with the largest cosine; their logits are the plain,
 *          unnormalised q·k; they join the local tokens in one softmax. Of rotary models the query
 *          is rotated (at its place in the local window) and the keys of the memory never are, for
 *          the cosine and for the logit alike: rule zero. Keys that were selected and whose cosine
 *          is at most 0.25 can be masked after the selection; the code does so for MPT and not for
 *          LLaMA. Special tokens are not in the memory, which holds the newest 100,000 tokens
 *
 * Ours     the local tokens are the client's, which merges the two partial answers exactly; with
 *          `window` memd reads them too, at their places 0 … window-1 and the query behind them.
 *          Masking is off as for LLaMA, since the models that memd rotates for are of its kind.
 *          Where keys come rotated the cosine is of the two rotated vectors, and positions are the
 *          true ones. The bias of ALiBi is not there. `memory` counts positions, special tokens
 *          among them. A special token is one that its append marked (MARK_SPECIAL). GQA: a query
 *          head chooses among the keys of its KV head, as the code does by expanding them
 *
 * Blocks   norms.h (fold: cosines from the scores of stored keys), choice.h (best k and mass),
 *          pick.h, positions.h
 * Quality  every key of the memory is scored, so the mass of what was left out is known, unless
 *          tokens lie behind the newest `memory`; the error is not
 * Tests    tests/unit/test_extended_mind.c, tests/python/test_extended_mind.py
 */
#include <math.h>

#include "attention/rope.h"
#include "index/choice.h"
#include "index/norms.h"
#include "index/positions.h"
#include "memory/methods/methods.h"

enum { K, MASK, THRESHOLD, MEMORY, WINDOW, POSITIONS };

static const char *const choices[] = { "auto", "zero", "original" };
static const enum position_rule rules[] = { POSITIONS_ZERO, POSITIONS_ZERO, POSITIONS_ORIGINAL };

static const struct option_spec specs[] = {
    [K] = OPTION_WHOLE("k", "tokens that each query head attends to", 10, 1, 65536),
    [MASK] = OPTION_WHOLE("mask_by_similarity", "1: leave out those of the k that are not similar "
                          "enough", 0, 0, 1),
    [THRESHOLD] = OPTION_REAL("threshold", "cosine that is not similar enough yet", 0.25, -1, 1),
    [MEMORY] = OPTION_WHOLE("memory", "newest tokens behind the window that are searched", 100000,
                            1, 0x1p53),
    [WINDOW] = OPTION_WHOLE("window", "newest tokens that are read as an engine's window would be; "
                            "0: the engine has one", 0, 0, 1 << 24),
    [POSITIONS] = OPTION_CHOICE("positions", "where keys of the memory are rotated; auto: zero "
                                "where memd rotates keys, else original", 0, choices),
};
static const struct option_table options = { "extended-mind", specs,
                                             sizeof specs / sizeof specs[0] };

/* Tokens begin … end-1 are the memory of a query, the others up to its limit its window. */
struct memory {
    uint64_t begin, end;
};

static struct memory memory_of(const struct pick *pick)
{
    const double *values = pick->call->options;
    uint64_t window = (uint64_t)values[WINDOW], most = (uint64_t)values[MEMORY];
    uint64_t end = pick->limit > window ? pick->limit - window : 0;
    return (struct memory){ end > most ? end - most : 0, end };
}

/* Places of the special tokens of a run. */
struct special {
    uint16_t at[CHOICE_FLOATS];
    size_t count;
};

/* Which of tokens position … position+count-1 are special, from the first on. ret_at (count) */
static size_t find_special(const struct pick *pick, uint64_t position, size_t count,
                           uint16_t *ret_at)
{
    const struct columns *columns = &((const struct reading *)pick->call->version)->columns;
    size_t found = 0;
    if ((columns->mask & COLUMNS_MARKS) == 0) return 0;
    for (size_t i = 0; i < count;) {
        const struct view *view = rows_view(&pick->rows, 0, position + i);
        size_t row = (size_t)(position + i - view->position);
        for (; row < view->tokens && i < count; row++, i++) {
            const unsigned char *record = view->columns + row * view->columns_stride_bytes;
            bool special = (columns_marks(columns, record) & MARK_SPECIAL) != 0;
            if (special) ret_at[found++] = (uint16_t)i;
        }
    }
    return found;
}

/* ranks (count) of tokens from `position` on: runs between special ones. */
static void offer(const struct choice *choice, size_t m, const float *ranks, size_t count,
                  uint64_t position, const struct special *special)
{
    size_t begin = 0;
    for (size_t i = 0; i < special->count; i++) {
        choice_offer(choice, m, ranks + begin, special->at[i] - begin, position + begin);
        begin = (size_t)special->at[i] + 1;
    }
    choice_offer(choice, m, ranks + begin, count - begin, position + begin);
}

/* The k best of each head by cosine. */
static void scan(struct pick *pick, const struct choice *choice, struct memory memory)
{
    const struct reading *reading = pick->call->version;
    const struct norms *norms = norms_of(reading->fold);
    const struct rope *rope = pick->call->args->attend.rope;
    double magnitude = rope == NULL ? 1.0 : rope->magnitude; /* of the keys as they are scored */
    size_t step = CHOICE_FLOATS / pick->group;
    struct special special;
    for (uint64_t at = memory.begin; at < memory.end && pick->stopped == 0; at += step) {
        size_t count = memory.end - at < step ? (size_t)(memory.end - at) : step;
        pick_scores(pick, at, count, choice->scores);
        special.count = find_special(pick, at, count, special.at);
        for (size_t m = 0; m < pick->group; m++) {
            float *scores = choice->scores + m * count;
            double length = norms_length(pick->q + m * pick->head_dim, pick->head_dim) * magnitude;
            choice_weigh(choice, m, scores, count);
            norms_cosines(norms, pick->kv_head, at, count, length, scores);
            offer(choice, m, scores, count, at, &special);
        }
    }
}

/* Head m attends to what it chose. Returns how many those are. */
static size_t read_best(struct pick *pick, const struct choice *choice, size_t m)
{
    const double *values = pick->call->options;
    struct topk top = choice_top(choice, m);
    size_t count = 0;
    topk_sort(&top);
    while (count < top.k && top.ids[count] != INDEX_NONE &&
           (values[MASK] == 0.0 || (double)top.scores[count] > values[THRESHOLD]))
        count++;
    pick_list(pick, m, top.ids, count);
    return count;
}

/* Where the query and the memory's keys are; then where the window's are. */
static void place(struct pick *pick, struct memory memory, bool window)
{
    if (!pick->call->places) return;
    uint64_t position = pick->call->args->attend.positions[pick->query];
    struct kept_range local = { 0, memory.end, pick->limit };
    struct placement placement = { .rule = POSITIONS_ZERO,
                                   .query = positions_before(&local, position) };
    if (window) {
        placement.rule = POSITIONS_CACHE_INDEX;
        placement.shift = memory.end;
    }
    pick_place(pick, placement);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    struct memory memory = memory_of(pick);
    struct choice choice = choice_at(pick->scratch, pick->group,
                                     (size_t)pick->call->options[K]);
    place(pick, memory, true);
    pick_range(pick, memory.end, pick->limit);
    place(pick, memory, false);
    scan(pick, &choice, memory);
    for (size_t m = 0; m < pick->group && pick->stopped == 0; m++) {
        struct choice_steady before = { 0 };
        if (pick->call->partial != NULL) before = (struct choice_steady){ pick->max[m],
                                                                          pick->sum[m] };
        if (read_best(pick, &choice, m) == memory.end) continue; /* nothing was left out */
        pick->predicted[m] = NAN;
        if (pick->call->partial == NULL) continue;
        pick->mass[m * INDEX_LEVELS + INDEX_EXACT] = choice_share(&choice, pick, m, before);
    }
    if (memory.begin > 0) pick_dropped(pick, PICK_GROUP);
    return 0;
}

static enum position_rule rule_of(const double *values, bool rotates)
{
    return positions_rule(rules, values[POSITIONS], rotates);
}

static int pick_memories(const struct reading *reading, struct arena *arena,
                         struct pick_call *ret_call, struct error *err)
{
    (void)arena;
    (void)err;
    size_t group = reading->attend.q.shape[1] / reading->attend.kv_heads;
    bool rotates = reading->attend.rope != NULL;
    ret_call->task = task;
    ret_call->version = reading;
    ret_call->places = rule_of(reading->options, rotates) != POSITIONS_ORIGINAL;
    ret_call->scratch_bytes = choice_bytes(group, (size_t)reading->options[K]);
    return 0;
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    bool rotates = model_rotates(model);
    return positions_check(method->name, rule_of(values, rotates), rotates, err);
}

static uint32_t columns(const double *values)
{
    (void)values;
    return COLUMNS_MARKS;
}

const struct method method_extended_mind = {
    .name = "extended-mind",
    .help = "the keys with the largest cosine, a few per query head (Extended Mind Transformers)",
    .options = &options,
    .fold = &norms_fold,
    .columns = columns,
    .check = check,
    .pick = pick_memories,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
