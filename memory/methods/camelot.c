/* SPDX-License-Identifier: Apache-2.0 */
/* camelot.c — CAMELoT (He et al., arXiv 2402.13449): what is older than a window is consolidated
 * into a fixed number of slots, running means of similar keys and values; the keys of the window's
 * tokens say which slots are read.
 *
 *     granularity     a slot (index/slots.h): mean key, mean value, count, when it was last written
 *     admission       a token whose key has a cosine above R with the nearest slot is taken in
 *                     there; any other takes the place of the slot that went longest without one
 *     selector        the nearest slot of each token of the window, every slot once: asked with
 *                     keys, not with queries
 *     positions       sinks and slots at 0 … n-1, the window's tokens behind them at n, n + 1, …
 *     merge           joint softmax of the sinks, the slots and the rows of the window
 *
 * Faithful, as far as that can be said (below): slots and their running means, novelty and the
 * replacement of the oldest, token by token, so that each sees what the one before it did; reading
 * by the nearest key; slots in front of the window in the ordinary softmax.
 *
 * Not verified: neither the text of the paper nor code was at hand. M and R have no published
 * defaults that we know; ours are starting points, to be swept. Cosine, one memory for each KV
 * head, the ties, and what follows are ours:
 *
 *   - The window is what is stored behind the consolidated tokens: at least the newest `window` of
 *     them, fewer than `step` more. It must cover what the engine attends to itself, since a query
 *     cannot see less than what is consolidated (MEMD_EPOSITION). Its tokens below a query's limit
 *     are read exactly; those behind the limit, which the engine has, still say with their keys
 *     which slots are read.
 *   - `sees`: a window that is computed at once has one set of slots, for all its tokens (`window`:
 *     all queries of a request read those of the tokens up to the last query); or each query reads
 *     those of the tokens up to itself (`causal`).
 *   - The first `sinks` tokens are never consolidated and always read, in front of the slots. A
 *     model with dense attention parks weight on its first tokens that it has no use for
 *     (StreamingLLM, arXiv 2309.17453): 37 to 80 % of it in 18 of the 30 layers of SmolLM2. No key
 *     of a window is like those tokens' keys, so a slot that held them would not be read, and would
 *     be replaced soon; without them perplexity more than doubles (docs/METHODS.md). Where the
 *     paper encodes a segment, the segment's own first token is there to take that weight.
 *   - Positions are unpublished for models with a rope. `prefix` is the order above; `zero` has
 *     every slot at 0 and the query as many tokens behind as it is behind the consolidated ones;
 *     `none` rotates neither slot nor query. A mean has no position of its own, so there is no
 *     `original`. Keys that came rotated are averaged and read as they came, at whatever distance
 *     that is.
 *
 * A lookup costs as much as writing a token, and a window is looked up for every query. But slots
 * stay as they are until the next step, and a token of the window comes once. So the slot that a
 * token was found nearest to is kept beside the slots until these change or the token is cut off:
 * with a window of 512 and steps of 64, a decoded token costs 9 lookups instead of 512. Queries run
 * beside each other and may find out the same twice; both write the same number.
 *
 * The tokens of a slot are gone for this method, and nobody looks at what they would have scored:
 * an answer that leaves out consolidated tokens has no predicted error. They stay stored.
 */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/pick.h"
#include "index/positions.h"
#include "index/slots.h"
#include "memory/methods/methods.h"

enum { SLOTS, NOVELTY, SINKS, WINDOW, STEP, SEES, POSITIONS, OPTIONS };
enum { SEES_WINDOW, SEES_CAUSAL };

static const char *const sights[] = { "window", "causal" };
static const char *const choices[] = { "auto", "prefix", "zero", "none" };
static const enum position_rule rules[] = { POSITIONS_CACHE_INDEX, POSITIONS_CACHE_INDEX,
                                            POSITIONS_ZERO, POSITIONS_NONE };
static const struct option_spec specs[OPTIONS] = {
    [SLOTS] = OPTION_WHOLE("slots", "M: slots of a KV head", 1024, 1, SLOTS_MAX),
    [NOVELTY] = OPTION_REAL("novelty", "R: a cosine above it is familiar; from 1 on nothing is "
                            "merged, below -1 everything", 0.9, -2, 2),
    [SINKS] = OPTION_WHOLE("sinks", "first tokens that are never consolidated and always read", 4,
                           0, 65536),
    [WINDOW] = OPTION_WHOLE("window", "newest tokens that are not consolidated; at least those "
                            "that the client attends to itself", 128, 0, 65536),
    [STEP] = OPTION_WHOLE("step", "tokens that are consolidated together", 64, 1, 65536),
    [SEES] = OPTION_CHOICE("sees", "slots are those nearest to the keys of: window: all tokens up "
                           "to the last query of a request; causal: those up to the query itself",
                           SEES_WINDOW, sights),
    [POSITIONS] = OPTION_CHOICE("positions", "where slots are rotated; auto: prefix where memd "
                                "rotates keys, else as they came", 0, choices),
};
static const struct option_table options = { "camelot", specs, OPTIONS };

/* ---- the state ---- */

static const struct fold_type consolidated;

struct state {
    struct fold base;
    uint64_t sinks;           /* first tokens that go to no slot */
    size_t heads;
    size_t room;              /* more tokens than a window has */
    _Atomic uint32_t *nearest; /* (G, room) of the tokens behind the fold: 1 + the slot that their
                               * key is nearest to, 0 = nobody has asked */
    struct slots *slots[];    /* (G) */
};

static const struct state *state_of(const struct fold *fold)
{
    return (const struct state *)(const void *)fold;
}

/* How many of the first `tokens` are sinks. */
static uint64_t sinks_of(const struct state *state, uint64_t tokens)
{
    return tokens < state->sinks ? tokens : state->sinks;
}

static uint64_t reach(const double *values, uint64_t tokens)
{
    uint64_t window = (uint64_t)values[WINDOW], step = (uint64_t)values[STEP];
    return tokens < window ? 0 : (tokens - window) / step * step;
}

static void free_state(struct fold *fold)
{
    struct state *state = (struct state *)(void *)fold;
    for (size_t g = 0; g < state->heads; g++) slots_free(state->slots[g]);
    free(state->nearest);
    free(state);
}

static void free_statep(struct state **state)
{
    if (*state != NULL) free_state(&(*state)->base);
}

static int open_state(const struct fold_source *source, struct fold **ret_fold, struct error *err)
{
    struct slots_shape shape = { .slots = (size_t)source->options[SLOTS],
                                 .head_dim = source->head_dim,
                                 .novelty = source->options[NOVELTY] };
    CLEANUP(free_statep) struct state *state =
        calloc(1, sizeof *state + source->kv_heads * sizeof(struct slots *));
    if (state == NULL) return error_set(err, MEMD_ENOMEM, "no memory for slots");
    state->sinks = (uint64_t)source->options[SINKS];
    state->room = (size_t)source->options[WINDOW] + (size_t)source->options[STEP];
    state->nearest = calloc(source->kv_heads * state->room, sizeof *state->nearest);
    if (state->nearest == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a window");
    state->base = (struct fold){ .type = &consolidated, .bytes = sizeof *state +
                                 source->kv_heads * state->room * sizeof *state->nearest };
    for (int rc = 0; state->heads < source->kv_heads; state->heads++) {
        rc = slots_new(&shape, &state->slots[state->heads], err);
        if (rc < 0) return rc;
        state->base.bytes += shape.slots * (3 * shape.head_dim * sizeof(float) +
                                            2 * sizeof(uint64_t));
    }
    *ret_fold = &TAKE(state)->base;
    return 0;
}

/* Tokens begin … end-1 of a KV head, as far as one view has them. */
static struct view part_of(const struct rows *rows, size_t g, uint64_t begin, uint64_t end)
{
    struct view part = *rows_view(rows, g, begin);
    size_t skip = (size_t)(begin - part.position);
    part.k = (const unsigned char *)part.k + skip * part.k_stride_bytes;
    part.v = (const unsigned char *)part.v + skip * part.v_stride_bytes;
    part.tokens -= skip;
    part.position = begin;
    if (end - begin < part.tokens) part.tokens = (size_t)(end - begin);
    return part;
}

/* What is known of the tokens from `first` behind the fold on is no longer so. */
static void forget_nearest(const struct state *state, size_t first)
{
    for (size_t g = 0; g < state->heads; g++)
        for (size_t i = first; i < state->room; i++)
            atomic_store_explicit(&state->nearest[g * state->room + i], 0, memory_order_relaxed);
}

static void cut(struct fold *fold, uint64_t tokens)
{
    assert(tokens >= fold->tokens);
    uint64_t behind = tokens - fold->tokens;
    const struct state *state = state_of(fold);
    if (behind < state->room) forget_nearest(state, (size_t)behind);
}

/* Some tokens under way, all KV heads beside each other. */
enum { TOGETHER = 256 };

struct writing {
    struct state *state;
    const struct fold_source *source;
    uint64_t begin, end;
    float *scratch; /* (G, stride) */
    size_t stride;
};

static size_t aligned_floats(const struct slots_shape *shape)
{
    return (slots_scratch_floats(shape) + 15) / 16 * 16;
}

static void write_head(void *arg, size_t g)
{
    const struct writing *writing = arg;
    uint64_t sinks = writing->state->sinks;
    for (uint64_t at = writing->begin > sinks ? writing->begin : sinks; at < writing->end;) {
        struct view part = part_of(&writing->source->rows, g, at, writing->end);
        slots_write(writing->state->slots[g], &part, writing->scratch + g * writing->stride, NULL);
        at += part.tokens;
    }
}

static int advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err)
{
    struct state *state = (struct state *)(void *)fold;
    size_t stride = aligned_floats(&state->slots[0]->shape);
    CLEANUP(free_ptr) float *scratch =
        aligned_alloc(64, state->heads * stride * sizeof *scratch);
    if (scratch == NULL) return error_set(err, MEMD_ENOMEM, "no memory to write into slots");
    struct writing writing = { .state = state, .source = source, .scratch = scratch,
                               .stride = stride };
    forget_nearest(state, 0);
    while (fold->tokens < end) {
        int rc = source->stop == NULL ? 0 : source->stop(source->stop_arg);
        if (rc < 0) return error_set(err, rc, "stopped while consolidating");
        writing.begin = fold->tokens;
        writing.end = end - fold->tokens < TOGETHER ? end : fold->tokens + TOGETHER;
        pool_for(source->pool, state->heads, write_head, &writing);
        fold->tokens = writing.end;
    }
    return 0;
}

/* u64 tokens, u32 G, u32 zero, then of each KV head u64 bytes and slots_encode. */
enum { SAVED_HEAD = 16 };

static size_t save(const struct fold *fold, unsigned char *ret_data)
{
    const struct state *state = state_of(fold);
    size_t bytes = SAVED_HEAD;
    for (size_t g = 0; g < state->heads; g++)
        bytes += sizeof(uint64_t) + slots_bytes(state->slots[g]);
    if (ret_data == NULL) return bytes;
    struct bytes_writer out = bytes_writer(ret_data, bytes);
    bytes_put_le64(&out, fold->tokens);
    bytes_put_le32(&out, (uint32_t)state->heads);
    bytes_put_le32(&out, 0);
    for (size_t g = 0; g < state->heads; g++) {
        size_t some = slots_bytes(state->slots[g]);
        bytes_put_le64(&out, some);
        assert(!out.bad && bytes - out.offset >= some);
        slots_encode(state->slots[g], ret_data + out.offset);
        out.offset += some;
    }
    return bytes;
}

static int load(const struct fold_source *source, const void *data, size_t bytes,
                struct fold **ret_fold, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, bytes);
    uint64_t tokens = bytes_get_le64(&in);
    uint32_t heads = bytes_get_le32(&in), zero = bytes_get_le32(&in);
    if (in.bad || heads != source->kv_heads || zero != 0)
        return error_set(err, MEMD_ECORRUPT, "slots of %u KV heads, not of %zu", heads,
                         source->kv_heads);
    struct fold *fold = NULL;
    int rc = open_state(source, &fold, err);
    if (rc < 0) return rc;
    CLEANUP(free_statep) struct state *state = (struct state *)(void *)fold;
    for (size_t g = 0; rc == 0 && g < heads; g++) {
        size_t some = (size_t)bytes_get_le64(&in);
        const unsigned char *slots = bytes_get(&in, some);
        rc = slots == NULL ? error_set(err, MEMD_ECORRUPT, "the slots of KV head %zu are cut", g)
                           : slots_decode(state->slots[g], slots, some, err);
        if (rc == 0 && state->slots[g]->written != tokens - sinks_of(state, tokens))
            rc = error_set(err, MEMD_ECORRUPT, "the KV heads are of different tokens");
    }
    if (rc == 0 && !bytes_done(&in))
        rc = error_set(err, MEMD_ECORRUPT, "bytes behind the last KV head");
    if (rc < 0) return rc;
    state->base.tokens = tokens;
    *ret_fold = &TAKE(state)->base;
    return 0;
}

/* How long ago, in tokens, the slots were last written. */
static const struct {
    uint64_t below;
    const char *name;
} ages[] = { { 128, "age_below_128" },
             { 1024, "age_below_1024" },
             { 8192, "age_below_8192" },
             { 65536, "age_below_65536" },
             { UINT64_MAX, "age_from_65536" } };
enum { AGES = sizeof ages / sizeof ages[0] };

static size_t describe(const struct fold *fold, struct fold_fact *ret_facts)
{
    const struct state *state = state_of(fold);
    double slots = 0, used = 0, merged = 0, replaced = 0, lost = 0, in[AGES] = { 0 };
    for (size_t g = 0; g < state->heads; g++) {
        const struct slots *of = state->slots[g];
        slots += (double)of->shape.slots;
        used += (double)of->used;
        merged += (double)of->merged;
        replaced += (double)of->replaced;
        lost += (double)of->lost;
        for (size_t i = 0, age = 0; i < of->used; i++, age = 0) {
            while (of->written - of->updated[i] >= ages[age].below) age++;
            in[age]++;
        }
    }
    const struct fold_fact facts[] = { { "slots", slots },       { "slots_used", used },
                                       { "merged_total", merged }, { "replaced_total", replaced },
                                       { "lost_total", lost } };
    size_t count = sizeof facts / sizeof facts[0];
    memcpy(ret_facts, facts, sizeof facts);
    for (size_t i = 0; i < AGES; i++)
        ret_facts[count++] = (struct fold_fact){ ages[i].name, in[i] };
    return count;
}

static const struct fold_type consolidated = {
    .name = "camelot",
    .forgets = true,
    .reach = reach,
    .open = open_state,
    .free = free_state,
    .advance = advance,
    .cut = cut,
    .save = save,
    .load = load,
    .describe = describe,
};

/* ---- queries ---- */

/* Which slot the key of each token of the window is nearest to. */
struct lookup {
    const struct reading *reading;
    const struct state *state;
    uint64_t begin;    /* of the window: what is below is consolidated, except for the sinks */
    uint64_t sinks;    /* of the consolidated tokens */
    size_t tokens;     /* 0: no slot is read */
    uint32_t *nearest; /* (G, tokens) */
    float *scratch;    /* (G, stride) */
    size_t stride;
};

/* Tokens that a query may know of: up to itself, whoever attends to them. */
static uint64_t known_to(const struct reading *reading, size_t query)
{
    uint64_t position = reading->attend.positions[query];
    return position < reading->tokens ? position + 1 : reading->tokens;
}

static struct rows rows_of(const struct reading *reading)
{
    return (struct rows){ .views = reading->attend.views,
                          .view_count = reading->attend.view_count,
                          .head_dim = reading->attend.q.shape[2] };
}

/* Of tokens first … end-1 of the window, of which nothing is known. */
static void find_nearest(const struct lookup *lookup, size_t g, size_t first, size_t end)
{
    struct rows rows = rows_of(lookup->reading);
    const struct state *state = lookup->state;
    uint32_t *nearest = lookup->nearest + g * lookup->tokens;
    for (size_t at = first; at < end;) {
        struct view part = part_of(&rows, g, lookup->begin + at, lookup->begin + end);
        slots_nearest(state->slots[g], &part, lookup->scratch + g * lookup->stride, nearest + at);
        at += part.tokens;
    }
    for (size_t at = first; at < end; at++)
        atomic_store_explicit(&state->nearest[g * state->room + at], nearest[at] + 1,
                              memory_order_relaxed);
}

static void look_up_head(void *arg, size_t g)
{
    const struct lookup *lookup = arg;
    _Atomic uint32_t *known = lookup->state->nearest + g * lookup->state->room;
    uint32_t *nearest = lookup->nearest + g * lookup->tokens;
    size_t unknown = 0; /* tokens before this one */
    for (size_t i = 0; i < lookup->tokens; i++) {
        /* Once: others may find it out meanwhile. */
        uint32_t slot = atomic_load_explicit(&known[i], memory_order_relaxed);
        if (slot == 0) {
            unknown++;
            continue;
        }
        if (unknown > 0) find_nearest(lookup, g, i - unknown, i);
        nearest[i] = slot - 1;
        unknown = 0;
    }
    if (unknown > 0) find_nearest(lookup, g, lookup->tokens - unknown, lookup->tokens);
}

static int look_up(const struct reading *reading, struct arena *arena, struct lookup *ret_lookup,
                   struct error *err)
{
    struct lookup lookup = { .reading = reading, .state = state_of(reading->fold),
                             .begin = reading->fold->tokens };
    lookup.sinks = sinks_of(lookup.state, lookup.begin);
    uint64_t end = 0;
    for (size_t i = 0; i < reading->attend.q.shape[0]; i++) {
        if (known_to(reading, i) > end) end = known_to(reading, i);
    }
    if (lookup.begin == lookup.sinks || end <= lookup.begin) { /* no slots, or nobody asks */
        *ret_lookup = lookup;
        return 0;
    }
    lookup.tokens = (size_t)(end - lookup.begin);
    assert(lookup.tokens <= lookup.state->room);
    lookup.stride = aligned_floats(&lookup.state->slots[0]->shape);
    lookup.nearest = arena_calloc(arena, lookup.state->heads * lookup.tokens, sizeof(uint32_t));
    lookup.scratch = arena_alloc_aligned(
        arena, lookup.state->heads * lookup.stride * sizeof *lookup.scratch, 64);
    if (lookup.nearest == NULL || lookup.scratch == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory to look up %zu tokens in slots",
                         lookup.tokens);
    pool_for(reading->attend.pool, lookup.state->heads, look_up_head, &lookup);
    *ret_lookup = lookup;
    return 0;
}

/* Marks the slots that a query reads; how many they are. `marks` (M), zero. */
static size_t mark_slots(const struct pick *pick, bool *marks)
{
    const struct lookup *lookup = pick->call->version;
    uint64_t end = lookup->begin + lookup->tokens;
    if (pick->call->options[SEES] == SEES_CAUSAL) end = known_to(lookup->reading, pick->query);
    size_t count = 0;
    for (size_t i = 0; lookup->begin + i < end && i < lookup->tokens; i++) {
        uint32_t slot = lookup->nearest[pick->kv_head * lookup->tokens + i];
        count += !marks[slot];
        marks[slot] = true;
    }
    return count;
}

/* Runs of neighbours lie side by side in memory, too. */
static void read_slots(struct pick *pick, const bool *marks)
{
    const struct lookup *lookup = pick->call->version;
    const struct slots *slots = lookup->state->slots[pick->kv_head];
    size_t head_dim = slots->shape.head_dim;
    uint64_t place = lookup->sinks;
    for (size_t i = 0, next; i < slots->used; i = next) {
        for (next = i; next < slots->used && marks[next];) next++;
        if (next > i)
            pick_rows(pick, PICK_GROUP, &(struct pick_given){ .k = slots->k + i * head_dim,
                                                              .v = slots->v + i * head_dim,
                                                              .count = next - i,
                                                              .place = place, .id = i });
        place += next - i;
        if (next == i) next++;
    }
}

static enum position_rule rule_of(const double *values, bool rotates)
{
    return positions_rule(rules, values[POSITIONS], rotates);
}

/* Where the sinks and `count` slots are, or the window's tokens behind them. */
static void place(struct pick *pick, size_t count, bool window)
{
    if (!pick->call->places) return;
    const struct lookup *lookup = pick->call->version;
    uint64_t begin = lookup->begin, before = lookup->sinks + count;
    uint64_t position = pick->call->args->attend.positions[pick->query];
    uint64_t since = position < begin ? 0 : position - begin;
    enum position_rule rule = rule_of(pick->call->options, true);
    struct placement prefix = { .rule = POSITIONS_CACHE_INDEX, .query = before + since };
    struct placement apart = { .rule = rule, .query = since };
    if (window) {
        prefix.shift = begin - before;
        apart = (struct placement){ .rule = POSITIONS_CACHE_INDEX, .query = since, .shift = begin };
    }
    pick_place(pick, rule == POSITIONS_CACHE_INDEX ? prefix : apart);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const struct lookup *lookup = pick->call->version;
    size_t count = 0;
    bool *marks = pick->scratch;
    bool read = pick->call->partial != NULL && lookup->tokens > 0;
    if (read) {
        memset(marks, 0, lookup->state->slots[0]->shape.slots * sizeof *marks);
        count = mark_slots(pick, marks);
    }
    if (read || lookup->sinks > 0) place(pick, count, false);
    pick_range(pick, 0, lookup->sinks);
    if (read) read_slots(pick, marks);
    place(pick, count, true);
    pick_range(pick, lookup->begin, pick->limit);
    if (lookup->begin > lookup->sinks) pick_dropped(pick, PICK_GROUP);
    return 0;
}

/* Slots are no tokens: hits of a search are of the sinks and the window alone. */
static int pick_slots(const struct reading *reading, struct arena *arena,
                      struct pick_call *ret_call, struct error *err)
{
    struct lookup *lookup = arena_alloc(arena, sizeof *lookup);
    if (lookup == NULL) return error_set(err, MEMD_ENOMEM, "no memory to look up slots");
    int rc = look_up(reading, arena, lookup, err);
    if (rc < 0) return rc;
    ret_call->task = task;
    ret_call->version = lookup;
    ret_call->places = reading->attend.rope != NULL;
    ret_call->scratch_bytes = (size_t)reading->options[SLOTS] * sizeof(bool);
    return 0;
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    bool rotates = model_rotates(model);
    return positions_check(method->name, rule_of(values, rotates), rotates, err);
}

const struct method method_camelot = {
    .name = "camelot",
    .help = "what is old is consolidated into running means of similar tokens (CAMELoT)",
    .options = &options,
    .fold = &consolidated,
    .check = check,
    .pick = pick_slots,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
