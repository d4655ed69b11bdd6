/* SPDX-License-Identifier: Apache-2.0 */
/* longheads.c — LongHeads (Lu et al., arXiv 2402.10685) and the code beside it
 * (LuLuLuyi/LongHeads): every query head chooses the chunks of a long past that suit it, as many as
 * the model's training length holds, and sees them as if they stood next to each other.
 *
 *     granularity     chunks of w tokens (index/blocks.h); what is no whole chunk yet is read whole
 *     representative  chunk attention, one vector for each query head and chunk: its q and k are
 *                     rotated by their places in it, it attends to itself without a mask, O; q_c is
 *                     the mean of O; c = softmax(q_c · k s) k
 *     selector        the unrotated query times c; the first chunk, the last, the best P-3 between
 *     share           none: each query head chooses for itself, each query for itself
 *     budget          P = attention / w chunks; below the attention length everything is read
 *     positions       contiguous: chosen chunks in order at 0 … R-1
 *     merge           joint softmax
 *
 * Decoding (a request with one query) chooses among the complete chunks and reads the tail besides,
 * at most (P-1) w tokens and the tail. A batch of queries is a prefill: the chunk that a query's
 * last token is in counts as one of the P, complete or not, and the chunk before it as the last
 * one. The two differ only where a chunk has just been completed.
 *
 * Faithful: representative, selection, the chunk that is dropped as soon as the attention length is
 * reached, positions, w = 256 and 4096 (LLaMA 2). The queries of a chunk are needed to represent
 * it, so appends must carry them; they are kept as fp16 (index/columns.h).
 *
 * Ours: lengths count what is stored below the query's limit. The published code stores a token
 * before it asks; a client that asks first and attends to that token itself sees it one place
 * behind the R tokens, where it belongs, and one chunk is completed one token later. GQA: a
 * representative for each query head, made from the keys of its KV head.
 *
 * Keys that came rotated cannot be moved, so such a model is refused unless `positions = original`
 * says that true distances are wanted. Then a representative is the published one turned by the
 * chunk's first position (attention inside a chunk only knows distances), and the query, which
 * comes rotated, is compared with it at its true distance: the source's choice is unbiased by
 * distance, this one is not.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "index/blocks.h"
#include "index/pick.h"
#include "index/positions.h"
#include "memory/methods/methods.h"

enum { CHUNK, ATTENTION, POSITIONS, OPTIONS };
enum { AUTO, CONTIGUOUS, ORIGINAL };
enum { FORCED = 3 }; /* the first chunk, the last, and the tail */

static const char *const choices[] = { "auto", "contiguous", "original" };
static const struct option_spec specs[OPTIONS] = {
    [CHUNK] = OPTION_WHOLE("chunk", "tokens of a chunk", 256, 1, 4096),
    [ATTENTION] = OPTION_WHOLE("attention", "tokens that a query attends to at most, the length "
                               "that the model was trained on; 3 chunks at least", 4096, 3,
                               1 << 22),
    [POSITIONS] = OPTION_CHOICE("positions", "where chosen chunks are rotated; auto: contiguous, "
                                "which needs keys that memd rotates", AUTO, choices),
};
static const struct option_table options = { "longheads", specs, OPTIONS };

/* ---- representatives ---- */

static const struct fold_type representatives;

static struct blocks_shape shape_of(const double *values, size_t query_heads, size_t head_dim)
{
    return (struct blocks_shape){ .tokens = (uint64_t)values[CHUNK], .heads = query_heads,
                                  .head_dim = head_dim };
}

static uint64_t reach(const double *values, uint64_t tokens)
{
    struct blocks_shape shape = shape_of(values, 1, 8);
    return blocks_reach(&shape, 0, tokens);
}

static int open_representatives(const struct fold_source *source, struct fold **ret_fold,
                                struct error *err)
{
    struct blocks_shape shape = shape_of(source->options, source->query_heads, source->head_dim);
    return blocks_open(&representatives, &shape, ret_fold, err);
}

/* A chunk that attends to itself. */
struct chunk {
    size_t tokens, head_dim;
    float *k;              /* (w, D) rotated by their places */
    float *q;              /* (w, D) the same, times the scale */
    float *o;              /* (w, D) */
    void *raw;             /* (w, D) as stored, or fp32 */
    float *max, *sum, *lse; /* (w) */
    uint32_t *visible;     /* (w) */
};

static float *chunk_init(struct chunk *chunk, size_t tokens, size_t head_dim)
{
    size_t matrix = tokens * head_dim;
    float *memory = malloc((4 * matrix + 3 * tokens) * sizeof(float) + tokens * sizeof(uint32_t));
    *chunk = (struct chunk){ .tokens = tokens, .head_dim = head_dim };
    if (memory == NULL) return NULL;
    chunk->k = memory;
    chunk->q = memory + matrix;
    chunk->o = memory + 2 * matrix;
    chunk->raw = memory + 3 * matrix;
    chunk->max = memory + 4 * matrix;
    chunk->sum = chunk->max + tokens;
    chunk->lse = chunk->sum + tokens;
    chunk->visible = (uint32_t *)(void *)(chunk->lse + tokens);
    return memory;
}

/* `raw` (w, D) of any dtype into `rows` (w, D), rotated by places 0 … w-1 where memd rotates. */
static void turn(const struct chunk *chunk, const struct rope *rope, uint32_t dtype, float *rows)
{
    backend_get()->rotate(&(struct rotate_args){
        .rope = rope, .head_dim = chunk->head_dim, .rows = chunk->raw,
        .stride_bytes = chunk->head_dim * dtype_bytes(dtype), .dtype = dtype,
        .count = chunk->tokens, .out = rows });
}

static void load_keys(const struct chunk *chunk, const struct fold_source *source, size_t g,
                      uint64_t begin)
{
    struct rows rows = source->rows;
    rows.rope = NULL;
    rows_keys(&rows, g, begin, chunk->tokens, chunk->raw);
    turn(chunk, source->rows.rope, DTYPE_FP32, chunk->k);
}

static void load_queries(const struct chunk *chunk, const struct fold_source *source, size_t head,
                         uint64_t begin)
{
    rows_queries(&source->rows, source->columns, head, begin, chunk->tokens, chunk->raw);
    turn(chunk, source->rows.rope, DTYPE_FP16, chunk->q);
    for (size_t i = 0; i < chunk->tokens * chunk->head_dim; i++) chunk->q[i] *= source->scale;
}

/* Attention of the first `queries` of chunk->q over all keys, with the keys as values, into
 * chunk->o. */
static void attend_keys(const struct chunk *chunk, size_t queries)
{
    size_t dim = chunk->head_dim, row_bytes = dim * sizeof(float);
    struct partial partial = { .o = chunk->o, .lse = chunk->lse, .rows = queries, .head_dim = dim };
    for (size_t i = 0; i < queries; i++) {
        chunk->max[i] = -INFINITY;
        chunk->sum[i] = 0.0F;
        chunk->visible[i] = (uint32_t)chunk->tokens;
    }
    memset(chunk->o, 0, queries * row_bytes);
    backend_get()->partial(&(struct partial_args){
        .q = chunk->q, .visible = chunk->visible, .queries = queries, .head_dim = dim,
        .k = chunk->k, .v = chunk->k, .k_stride_bytes = row_bytes, .v_stride_bytes = row_bytes,
        .tokens = chunk->tokens, .k_dtype = DTYPE_FP32, .v_dtype = DTYPE_FP32, .max = chunk->max,
        .sum = chunk->sum, .acc = chunk->o });
    partial_finish(chunk->max, chunk->sum, &partial);
}

/* c of one query head, whose keys and queries are loaded. ret_vector (D) */
static void represent_head(const struct chunk *chunk, float scale, float *ret_vector)
{
    size_t dim = chunk->head_dim;
    attend_keys(chunk, chunk->tokens);
    for (size_t d = 0; d < dim; d++) {
        double sum = 0.0;
        for (size_t t = 0; t < chunk->tokens; t++) sum += (double)chunk->o[t * dim + d];
        chunk->q[d] = (float)(sum / (double)chunk->tokens) * scale;
    }
    attend_keys(chunk, 1);
    memcpy(ret_vector, chunk->o, dim * sizeof *ret_vector);
}

static int represent(const struct fold_source *source, const struct blocks_shape *shape,
                     uint64_t begin, float *ret_vectors, struct error *err)
{
    struct chunk chunk;
    CLEANUP(free_ptr) float *memory = chunk_init(&chunk, (size_t)shape->tokens, shape->head_dim);
    if (memory == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for a chunk of %" PRIu64 " tokens",
                         shape->tokens);
    size_t group = source->query_heads / source->kv_heads;
    for (size_t h = 0; h < source->query_heads; h++) {
        if (h % group == 0) load_keys(&chunk, source, h / group, begin);
        load_queries(&chunk, source, h, begin);
        represent_head(&chunk, source->scale, ret_vectors + h * shape->head_dim);
    }
    return 0;
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
    ret_facts[0] = (struct fold_fact){ "chunks", (double)blocks_of(fold)->count };
    return 1;
}

static const struct fold_type representatives = {
    .name = "longheads", .reach = reach, .open = open_representatives, .free = blocks_free,
    .advance = advance, .save = blocks_save, .load = load, .describe = describe };

/* ---- queries ---- */

/* Consecutive tokens that are read. */
struct span {
    uint64_t begin, end;
};

/* Scratch of a task. */
struct scratch {
    uint64_t *ids;      /* (P) */
    struct span *spans; /* (P + 1) */
    float *scores;      /* (chunks) */
    float *best;        /* (P) */
};

static size_t budget(const double *values)
{
    return (size_t)values[ATTENTION] / (size_t)values[CHUNK];
}

static size_t task_bytes(size_t most, size_t chunks)
{
    return (most + 1) * sizeof(struct span) + most * sizeof(uint64_t) +
           (most + chunks) * sizeof(float);
}

static struct scratch scratch_at(const struct pick *pick)
{
    size_t most = budget(pick->call->options);
    struct scratch scratch = { .spans = pick->scratch };
    scratch.ids = (uint64_t *)(void *)(scratch.spans + most + 1);
    scratch.best = (float *)(void *)(scratch.ids + most);
    scratch.scores = scratch.best + most;
    return scratch;
}

/* Spans of the chosen chunks and of everything behind the first `chunks` of them; how many. */
static size_t spans_of(const struct scratch *scratch, size_t chosen, uint64_t tokens, uint64_t rest,
                       uint64_t limit)
{
    size_t count = 0;
    for (size_t i = 0; i <= chosen; i++) {
        struct span span = { rest, limit };
        if (i < chosen) span.begin = scratch->ids[i] * tokens;
        if (i < chosen) span.end = span.begin + tokens;
        if (count > 0 && scratch->spans[count - 1].end == span.begin)
            scratch->spans[count - 1].end = span.end;
        else scratch->spans[count++] = span;
    }
    return count;
}

/* Kept tokens before `position`, and positions between the limit and it. */
static uint64_t kept_before(const struct span *spans, size_t count, uint64_t position,
                            uint64_t limit)
{
    uint64_t before = position > limit ? position - limit : 0;
    for (size_t i = 0; i < count && spans[i].begin < position; i++)
        before += (spans[i].end < position ? spans[i].end : position) - spans[i].begin;
    return before;
}

/* Everything for one head, chunks next to each other. */
static void read_spans(struct pick *pick, size_t m, const struct span *spans, size_t count)
{
    bool moves = pick->call->places && pick->call->options[POSITIONS] != ORIGINAL;
    struct placement placement = { .rule = POSITIONS_CACHE_INDEX };
    if (moves)
        placement.query = kept_before(spans, count,
                                      pick->call->args->attend.positions[pick->query],
                                      pick->limit);
    uint64_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        placement.shift = spans[i].begin - kept;
        if (moves) pick_place(pick, placement);
        pick_span(pick, m, spans[i].begin, spans[i].end);
        kept += spans[i].end - spans[i].begin;
    }
}

static void place_truly(struct pick *pick)
{
    if (!pick->call->places) return;
    uint64_t position = pick->call->args->attend.positions[pick->query];
    pick_place(pick, (struct placement){ .rule = POSITIONS_ORIGINAL, .query = position });
}

static int task(struct pick *pick, struct error *err)
{
    (void)err;
    const struct blocks *blocks = pick->call->version;
    const double *values = pick->call->options;
    uint64_t tokens = (uint64_t)values[CHUNK], limit = pick->limit;
    place_truly(pick);
    if ((double)limit < values[ATTENTION]) {
        pick_range(pick, 0, limit);
        return 0;
    }
    bool prefill = pick->call->args->attend.q.shape[0] > 1;
    size_t chunks = (size_t)((prefill ? limit - 1 : limit) / tokens);
    struct blocks_wanted wanted = { .first = 1, .last = 1, .best = budget(values) - FORCED };
    struct scratch scratch = scratch_at(pick);
    assert(chunks <= blocks->count); /* the fold is up to date */
    for (size_t m = 0; m < pick->group; m++) {
        blocks_scores(blocks, pick->kv_head * pick->group + m,
                      pick->unplaced + m * pick->head_dim, 1, chunks, scratch.scores);
        size_t chosen = blocks_choose(scratch.scores, chunks, &wanted, scratch.best, scratch.ids);
        size_t spans = spans_of(&scratch, chosen, tokens, chunks * tokens, limit);
        read_spans(pick, m, scratch.spans, spans);
        if (chosen < chunks) pick_dropped(pick, PICK_GROUP);
    }
    return 0;
}

static int pick_chunks(const struct reading *reading, struct arena *arena,
                       struct pick_call *ret_call, struct error *err)
{
    (void)arena;
    (void)err;
    const struct blocks *blocks = blocks_of(reading->fold);
    ret_call->task = task;
    ret_call->version = blocks;
    ret_call->places = reading->attend.rope != NULL;
    ret_call->scratch_bytes = task_bytes(budget(reading->options), blocks->count);
    return 0;
}

static uint32_t columns(const double *values)
{
    (void)values;
    return COLUMNS_QUERIES;
}

static int check(const struct method *method, const struct model *model, const double *values,
                 struct error *err)
{
    if (budget(values) < FORCED)
        return error_set(err, MEMD_EINVAL, "%s: an attention length of %g tokens holds fewer than "
                         "%d chunks of %g", method->name, values[ATTENTION], FORCED, values[CHUNK]);
    if (model_rotates(model) || values[POSITIONS] == ORIGINAL) return 0;
    return error_set(err, MEMD_EUNSUPPORTED, "%s: chunks are moved next to each other, which needs "
                     "keys that memd rotates; this model's keys come as they are. With positions = "
                     "original they stay where they are", method->name);
}

const struct method method_longheads = {
    .name = "longheads",
    .help = "every head reads the chunks that suit it, side by side (LongHeads)",
    .options = &options,
    .fold = &representatives,
    .columns = columns,
    .check = check,
    .pick = pick_chunks,
    .attend = method_attend_picked,
    .search = method_search_picked,
};
