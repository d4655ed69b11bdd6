/* SPDX-License-Identifier: Apache-2.0 */
/* infllm.c — InfLLM (Xiao et al., arXiv 2402.04617) and the code beside it (thunlp/InfLLM): what
 * lies behind a sliding window is kept in blocks, the blocks that suit a query are looked up, and
 * all of it is seen at one distance, so that a model never meets one that it was not trained on.
 *
 *     granularity     blocks of 128 tokens (index/blocks.h), formed when all their tokens are
 *                     n_local behind; the first n_init tokens are sinks, of no block
 *     representative  for each query head the r tokens with the largest score, their unrotated keys
 *                     averaged; score `mass`: probability that the token received while it was in
 *                     the window (the code); `logit`: mean of q·k over the next n_local queries
 *                     (the paper); `mean`: all tokens of the block (the paper's ablation)
 *     selector        best 16 blocks by the product with the query, rotated at n_local - 1 and
 *                     averaged over an execution block
 *     share           all heads (vectors concatenated), or none
 *     positions       window: true ones; everything else: key at 0, query at n_local - 1
 *     merge           joint softmax
 *
 * Read are: the sinks, the chosen blocks, the tokens between the last block and the window, and the
 * window, as far as it is stored below the query's limit. The queries of a request, so many at a
 * time as `execution` says, are an execution block: they share one choice, among the blocks that
 * were formed before the first of them.
 *
 * Faithful: all of the above, and the defaults, which are those of the code's configurations
 * (n_local 4096, n_init 128, 16 blocks of 128, r 4, execution 512; the paper has other numbers of
 * blocks for other models). `logit` takes the logits of the model, of rotated queries and keys.
 *
 * Ours: mass is what clients report (Observe, scores of appends). It counts if it comes before the
 * block is formed; so what a token received from the queries of a request is to be reported before
 * or with the append that follows. A block whose tokens nobody reported anything of is represented
 * as `mean` says; `blocks_without_mass` counts them. GQA: mass and averages are per query head, of
 * the keys of its KV head. The published cache of blocks in GPU memory (LRU) decides nothing about
 * answers and has no place here: rows are where the operating system's cache has them.
 *
 * Keys that came rotated stay at their true distances (`positions` original, which `auto` is
 * there): the same blocks are formed, but averages are of rotated keys and compared with the query
 * as it came, which is a worse guide than the published one.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/blocks.h"
#include "index/pick.h"
#include "index/positions.h"
#include "index/topk.h"
#include "memory/methods/methods.h"
#include "proto/limits.h"

enum { BLOCK, LOCAL, SINKS, TOPK, REPR, REPR_TOKENS, SHARE, EXECUTION, POSITIONS, OPTIONS };
enum { MASS, LOGIT, MEAN };
enum { HEADS, NONE };

static const char *const scores[] = { "mass", "logit", "mean" };
static const char *const shares[] = { "heads", "none" };
static const char *const choices[] = { "auto", "constant", "original" };
static const enum position_rule rules[] = { POSITIONS_CONSTANT, POSITIONS_CONSTANT,
                                            POSITIONS_ORIGINAL };
static const struct option_spec specs[OPTIONS] = {
    [BLOCK] = OPTION_WHOLE("block", "tokens of a block", 128, 1, 4096),
    [LOCAL] = OPTION_WHOLE("local", "n_local: tokens of the sliding window, those that the client "
                           "attends to itself among them", 4096, 1, 1 << 24),
    [SINKS] = OPTION_WHOLE("sinks", "n_init: first tokens that are always read", 128, 0, 65536),
    [TOPK] = OPTION_WHOLE("topk", "blocks that are read", 16, 0, 65536),
    [REPR] = OPTION_CHOICE("repr", "by what tokens come to represent a block: mass that they "
                           "received, mean logit, or mean: all of them do", MASS, scores),
    [REPR_TOKENS] = OPTION_WHOLE("repr_tokens", "r: tokens that represent a block", 4, 1, 4096),
    [SHARE] = OPTION_CHOICE("share", "heads: all heads read the same blocks; none: each chooses "
                            "for itself", HEADS, shares),
    [EXECUTION] = OPTION_WHOLE("execution", "queries of a request that share a choice", 512, 1,
                               4096),
    [POSITIONS] = OPTION_CHOICE("positions", "where what is behind the window is rotated; auto: "
                                "constant where memd rotates keys, else original", 0, choices),
};
static const struct option_table options = { "infllm", specs, OPTIONS };

/* ---- representatives ---- */

static const struct fold_type representatives;

static struct blocks_shape shape_of(const double *values, size_t query_heads, size_t head_dim)
{
    return (struct blocks_shape){ .first = (uint64_t)values[SINKS],
                                  .tokens = (uint64_t)values[BLOCK],
                                  .ahead = values[REPR] == LOGIT ? (uint64_t)values[LOCAL] : 0,
                                  .heads = query_heads, .head_dim = head_dim };
}

static uint64_t reach(const double *values, uint64_t tokens)
{
    struct blocks_shape shape = shape_of(values, 1, 8);
    return blocks_reach(&shape, (uint64_t)values[LOCAL], tokens);
}

static int open_representatives(const struct fold_source *source, struct fold **ret_fold,
                                struct error *err)
{
    struct blocks_shape shape = shape_of(source->options, source->query_heads, source->head_dim);
    return blocks_open(&representatives, &shape, ret_fold, err);
}

/* A block whose representatives are made. */
struct forming {
    const struct fold_source *source;
    size_t tokens, head_dim;
    uint64_t begin;
    float *keys;   /* (tokens, D) of the KV head at hand, unrotated */
    float *turned; /* (tokens, D) the same, rotated where they are */
    float *leave, *enter; /* (tokens, D) queries that leave the sum of the next n_local, enter it */
    uint16_t *raw; /* (tokens, D) queries as stored */
    float *scores; /* (tokens) of the query head at hand */
    float *best;   /* (tokens) */
    uint64_t *ids; /* (tokens) */
    double *sum;   /* (D) */
};

static void *forming_init(struct forming *forming, const struct fold_source *source,
                          const struct blocks_shape *shape, uint64_t begin)
{
    size_t tokens = (size_t)shape->tokens, matrix = tokens * shape->head_dim;
    uint64_t *memory = malloc(tokens * sizeof *memory + shape->head_dim * sizeof(double) +
                              (4 * matrix + 2 * tokens) * sizeof(float) +
                              matrix * sizeof(uint16_t));
    *forming = (struct forming){ .source = source, .tokens = tokens, .begin = begin,
                                 .head_dim = shape->head_dim, .ids = memory };
    if (memory == NULL) return NULL;
    forming->sum = (double *)(void *)(memory + tokens);
    forming->keys = (float *)(void *)(forming->sum + shape->head_dim);
    forming->turned = forming->keys + matrix;
    forming->leave = forming->turned + matrix;
    forming->enter = forming->leave + matrix;
    forming->scores = forming->enter + matrix;
    forming->best = forming->scores + tokens;
    forming->raw = (uint16_t *)(void *)(forming->best + tokens);
    return memory;
}

/* Of keys or queries: rotated where they are. */
static void turn(const struct forming *forming, const void *rows, uint32_t dtype, uint64_t begin,
                 size_t count, float *ret_rows)
{
    backend_get()->rotate(&(struct rotate_args){
        .rope = forming->source->rows.rope, .head_dim = forming->head_dim, .rows = rows,
        .stride_bytes = forming->head_dim * dtype_bytes(dtype), .dtype = dtype, .count = count,
        .position = begin, .out = ret_rows });
}

/* Queries of a head, of `count` (≤ tokens) tokens from `begin` on, rotated. */
static void load_queries(const struct forming *forming, size_t head, uint64_t begin, size_t count,
                         float *ret_rows)
{
    const struct fold_source *source = forming->source;
    rows_queries(&source->rows, source->columns, head, begin, count, forming->raw);
    turn(forming, forming->raw, DTYPE_FP16, begin, count, ret_rows);
}

/* rows (count, D), D a multiple of 8 */
static void add_rows(const float *rows, size_t count, size_t dim, double *sum)
{
    for (size_t t = 0; t < count; t++, rows += dim)
        for (size_t first = 0; first < dim; first += 8)
            for (size_t d = first; d < first + 8; d++) sum[d] += (double)rows[d];
}

/* Mean of q·k over the n_local queries behind each token. A mean of products with one key is the
 * product with the mean, so that a sum of queries slides along and nothing is done twice. */
static void score_by_logits(const struct forming *forming, size_t head)
{
    uint64_t local = (uint64_t)forming->source->options[LOCAL], begin = forming->begin;
    size_t dim = forming->head_dim, tokens = forming->tokens;
    for (size_t d = 0; d < dim; d++) forming->sum[d] = 0.0;
    for (uint64_t done = 0; done < local;) { /* begin … begin + local - 1 */
        size_t count = local - done < tokens ? (size_t)(local - done) : tokens;
        load_queries(forming, head, begin + done, count, forming->enter);
        add_rows(forming->enter, count, dim, forming->sum);
        done += count;
    }
    load_queries(forming, head, begin, tokens, forming->leave);
    load_queries(forming, head, begin + local, tokens, forming->enter);
    for (size_t t = 0; t < tokens; t++) {
        const float *key = forming->turned + t * dim;
        double score = 0.0;
        for (size_t d = 0; d < dim; d++) {
            forming->sum[d] += (double)forming->enter[t * dim + d];
            forming->sum[d] -= (double)forming->leave[t * dim + d];
            score += (double)key[d] * forming->sum[d];
        }
        forming->scores[t] = (float)(score / (double)local);
    }
}

static const float *mass_of(const struct fold_source *source, uint64_t position)
{
    return source->mass == NULL ? NULL : source->mass(source->mass_arg, position);
}

/* Did any of its tokens receive anything? */
static bool was_observed(const struct forming *forming)
{
    for (size_t t = 0; t < forming->tokens; t++) {
        const float *mass = mass_of(forming->source, forming->begin + t);
        for (size_t h = 0; mass != NULL && h < forming->source->query_heads; h++)
            if (mass[h] > 0.0F) return true;
    }
    return false;
}

static void score_by_mass(const struct forming *forming, size_t head)
{
    for (size_t t = 0; t < forming->tokens; t++) {
        const float *mass = mass_of(forming->source, forming->begin + t);
        forming->scores[t] = mass == NULL ? 0.0F : mass[head];
    }
}

/* The mean of the keys of the `count` tokens with the best scores. ret_vector (D) */
static void average(const struct forming *forming, size_t count, float *ret_vector)
{
    size_t dim = forming->head_dim;
    struct blocks_wanted wanted = { .best = count };
    size_t chosen = blocks_choose(forming->scores, forming->tokens, &wanted, forming->best,
                                  forming->ids);
    for (size_t d = 0; d < dim; d++) {
        double sum = 0.0;
        for (size_t i = 0; i < chosen; i++) sum += (double)forming->keys[forming->ids[i] * dim + d];
        ret_vector[d] = (float)(sum / (double)chosen);
    }
}

static void load_keys(const struct forming *forming, size_t g)
{
    struct rows rows = forming->source->rows;
    rows.rope = NULL;
    rows_keys(&rows, g, forming->begin, forming->tokens, forming->keys);
    turn(forming, forming->keys, DTYPE_FP32, forming->begin, forming->tokens, forming->turned);
}

static int represent(const struct fold_source *source, const struct blocks_shape *shape,
                     uint64_t begin, float *ret_vectors, struct error *err)
{
    struct forming forming;
    CLEANUP(free_ptr) void *memory = forming_init(&forming, source, shape, begin);
    if (memory == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for a block of %" PRIu64 " tokens",
                         shape->tokens);
    const double *values = source->options;
    bool lacking = values[REPR] == MASS && !was_observed(&forming);
    bool all = lacking || values[REPR] == MEAN;
    size_t group = source->query_heads / source->kv_heads;
    for (size_t h = 0; h < source->query_heads; h++) {
        if (h % group == 0) load_keys(&forming, h / group);
        if (values[REPR] == LOGIT) score_by_logits(&forming, h);
        else if (!all) score_by_mass(&forming, h);
        average(&forming, all ? forming.tokens : (size_t)values[REPR_TOKENS],
                ret_vectors + h * shape->head_dim);
    }
    return lacking;
}

static int advance(struct fold *fold, const struct fold_source *source, uint64_t end,
                   struct error *err)
{
    return blocks_advance(fold, source, end, represent, err);
}

static int load(const struct fold_source *source, const void *data, size_t bytes,
                struct fold **ret_fold, struct error *err)
{
    struct blocks_shape shape = shape_of(source->options, source->query_heads, source->head_dim);
    return blocks_load(&representatives, &shape, data, bytes, ret_fold, err);
}

static size_t describe(const struct fold *fold, struct fold_fact *ret_facts)
{
    const struct blocks *blocks = blocks_of(fold);
    ret_facts[0] = (struct fold_fact){ "blocks", (double)blocks->count };
    ret_facts[1] = (struct fold_fact){ "blocks_without_mass", (double)blocks->lacking };
    return 2;
}

static const struct fold_type representatives = {
    .name = "infllm", .reach = reach, .open = open_representatives, .free = blocks_free,
    .advance = advance, .save = blocks_save, .load = load, .describe = describe };

/* ---- the choice of an execution block ---- */

/* Blocks that a head reads, ascending. */
struct chosen {
    uint64_t *ids; /* (topk) */
    size_t count;
};

struct lookup {
    const struct blocks *blocks;
    struct blocks_shape shape;
    size_t choices;    /* of an execution block: 1, or H */
    size_t *formed;    /* (execution blocks) blocks that are chosen among */
    struct chosen *of; /* (execution blocks, choices) */
};

/* Where a query stands; without positions, right behind what it sees. */
static uint64_t position_of(const struct attend_args *args, size_t query, uint64_t limit)
{
    return args->positions == NULL ? limit : args->positions[query];
}

/* Blocks that were formed before the first of queries first … end-1. */
static size_t formed_before(const struct reading *reading, const struct blocks_shape *shape,
                            size_t first, size_t end)
{
    const struct attend_args *args = &reading->attend;
    struct rows rows = { args->views, args->view_count, args->q.shape[2], NULL };
    uint64_t least = rows_tokens(&rows), local = (uint64_t)reading->options[LOCAL];
    for (size_t i = first; i < end; i++) {
        uint64_t limit = args->limits[i], position = position_of(args, i, limit);
        if (limit < least) least = limit;
        if (position < least) least = position;
    }
    return least < local ? 0 : (size_t)blocks_complete(shape, least - local);
}

/* The mean of queries first … end-1, rotated at n_local - 1. ret_q (H, D) */
static void average_queries(const struct reading *reading, size_t first, size_t end, float *ret_q)
{
    const struct attend_args *args = &reading->attend;
    size_t heads = args->q.shape[1], dim = args->q.shape[2];
    size_t row_bytes = dim * dtype_bytes(args->q.dtype);
    for (size_t h = 0; h < heads; h++) {
        double sum[LIMIT_HEAD_DIM] = { 0 };
        float row[LIMIT_HEAD_DIM];
        for (size_t i = first; i < end; i++) {
            const unsigned char *at = args->q.data;
            backend_widen(at + (i * heads + h) * row_bytes, args->q.dtype, 1, dim, row);
            for (size_t d = 0; d < dim; d++) sum[d] += (double)row[d];
        }
        for (size_t d = 0; d < dim; d++)
            ret_q[h * dim + d] = (float)(sum[d] / (double)(end - first));
    }
    if (args->rope == NULL) return;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    rope_angles(args->rope, (uint64_t)reading->options[LOCAL] - 1, cos, sin);
    rope_apply(args->rope, cos, sin, ret_q, heads);
}

/* The choices of execution block e, among its `formed` blocks. q (H, D), scratch (2, formed) and
 * best (topk) are overwritten. */
static void choose(const struct lookup *lookup, const float *q, size_t e, size_t topk,
                   float *scratch, float *best)
{
    size_t formed = lookup->formed[e], dim = lookup->shape.head_dim;
    struct blocks_wanted wanted = { .best = topk };
    for (size_t c = 0; c < lookup->choices; c++) {
        struct chosen *chosen = &lookup->of[e * lookup->choices + c];
        if (lookup->choices == 1)
            blocks_scores_shared(lookup->blocks, q, formed, scratch + formed, scratch);
        else blocks_scores(lookup->blocks, c, q + c * dim, 1, formed, scratch);
        chosen->count = blocks_choose(scratch, formed, &wanted, best, chosen->ids);
    }
}

static int reserve(struct lookup *lookup, size_t executions, size_t topk, struct arena *arena,
                   struct error *err)
{
    size_t count = executions * lookup->choices;
    uint64_t *ids = arena_calloc(arena, count * topk, sizeof *ids);
    lookup->formed = arena_calloc(arena, executions, sizeof *lookup->formed);
    lookup->of = arena_calloc(arena, count, sizeof *lookup->of);
    if (ids == NULL || lookup->formed == NULL || lookup->of == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu choices of %zu blocks", count, topk);
    for (size_t i = 0; i < count; i++) lookup->of[i].ids = ids + i * topk;
    return 0;
}

static int look_up(const struct reading *reading, struct arena *arena, struct lookup *ret_lookup,
                   struct error *err)
{
    const struct tensor *q = &reading->attend.q;
    const double *values = reading->options;
    size_t queries = q->shape[0], heads = q->shape[1], topk = (size_t)values[TOPK];
    size_t execution = (size_t)values[EXECUTION];
    struct lookup lookup = { .blocks = blocks_of(reading->fold),
                             .shape = shape_of(values, heads, q->shape[2]),
                             .choices = values[SHARE] == HEADS ? 1 : heads };
    size_t executions = (queries + execution - 1) / execution;
    size_t blocks = lookup.blocks->count;
    float *mean = arena_calloc(arena, heads * q->shape[2] + 2 * blocks + topk, sizeof *mean);
    if (mean == NULL) return error_set(err, MEMD_ENOMEM, "no memory for scores of blocks");
    float *scratch = mean + heads * q->shape[2], *best = scratch + 2 * blocks;
    int rc = reserve(&lookup, executions, topk, arena, err);
    for (size_t e = 0; rc == 0 && e < executions; e++) {
        size_t first = e * execution;
        size_t end = queries - first < execution ? queries : first + execution;
        lookup.formed[e] = formed_before(reading, &lookup.shape, first, end);
        assert(lookup.formed[e] <= blocks); /* the fold is up to date */
        if (lookup.formed[e] == 0) continue;
        average_queries(reading, first, end, mean);
        choose(&lookup, mean, e, topk, scratch, best);
    }
    if (rc == 0) *ret_lookup = lookup;
    return rc;
}

/* ---- queries ---- */

/* The chosen blocks of one head, or of PICK_GROUP: runs of them. */
static void read_blocks(struct pick *pick, size_t head, const struct chosen *chosen)
{
    const struct lookup *lookup = pick->call->version;
    for (size_t i = 0, next; i < chosen->count; i = next) {
        for (next = i + 1; next < chosen->count; next++)
            if (chosen->ids[next] != chosen->ids[next - 1] + 1) break;
        pick_span(pick, head, blocks_begin(&lookup->shape, chosen->ids[i]),
                  blocks_begin(&lookup->shape, chosen->ids[next - 1] + 1));
    }
}

static void read_chosen(struct pick *pick)
{
    const struct lookup *lookup = pick->call->version;
    size_t e = pick->query / (size_t)pick->call->options[EXECUTION];
    const struct chosen *of = lookup->of + e * lookup->choices;
    bool shared = lookup->choices == 1;
    for (size_t m = 0; m < (shared ? 1 : pick->group); m++) {
        const struct chosen *chosen = shared ? of : &of[pick->kv_head * pick->group + m];
        read_blocks(pick, shared ? PICK_GROUP : m, chosen);
        if (chosen->count < lookup->formed[e]) pick_dropped(pick, PICK_GROUP);
    }
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static enum position_rule rule_of(const double *values, bool rotates)
{
    return positions_rule(rules, values[POSITIONS], rotates);
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const struct lookup *lookup = pick->call->version;
    const double *values = pick->call->options;
    uint64_t local = (uint64_t)values[LOCAL];
    uint64_t position = position_of(&pick->call->args->attend, pick->query, pick->limit);
    uint64_t window = position < local ? 0 : least(position + 1 - local, pick->limit);
    size_t formed = lookup->formed[pick->query / (size_t)values[EXECUTION]];
    uint64_t sinks = least((uint64_t)values[SINKS], window);
    uint64_t rest = formed == 0 ? sinks : blocks_begin(&lookup->shape, formed);
    struct placement truly = { .rule = POSITIONS_ORIGINAL, .query = position };
    struct placement far = { .rule = POSITIONS_CONSTANT, .query = local - 1 };
    if (rule_of(values, pick->call->places) == POSITIONS_ORIGINAL) far = truly;
    assert(rest <= window); /* blocks are n_local behind */
    if (pick->call->places) pick_place(pick, far);
    pick_range(pick, 0, sinks);
    read_chosen(pick);
    pick_range(pick, rest, window);
    if (pick->call->places) pick_place(pick, truly);
    pick_range(pick, window, pick->limit);
    return 0;
}

static int pick_blocks(const struct reading *reading, struct arena *arena,
                       struct pick_call *ret_call, struct error *err)
{
    struct lookup *lookup = arena_alloc(arena, sizeof *lookup);
    if (lookup == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a choice of blocks");
    ret_call->task = task;
    ret_call->version = lookup;
    ret_call->places = reading->attend.rope != NULL;
    return look_up(reading, arena, lookup, err);
}

static uint32_t columns(const double *values)
{
    return values[REPR] == LOGIT ? COLUMNS_QUERIES : COLUMNS_NONE;
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    bool rotates = model_rotates(model);
    return positions_check(method->name, rule_of(values, rotates), rotates, err);
}

const struct method method_infllm = {
    .name = "infllm",
    .help = "a window, and blocks behind it that are looked up, at one distance (InfLLM)",
    .options = &options,
    .fold = &representatives,
    .takes_mass = true,
    .columns = columns,
    .check = check,
    .pick = pick_blocks,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
