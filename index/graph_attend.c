/* SPDX-License-Identifier: Apache-2.0 */
/* graph_attend.c — an answer: the static pattern exactly, the rest as far as the graph finds it.
 *
 * Positions fall into three ranges: [0, low) sinks, [low, high) the graph's, [high, …) the window
 * and rows behind the version. Queries of a call whose `high` differ by little share the smallest
 * one, so that the outer ranges are one exact attention for all of them; hits come from the middle
 * range only. So the two partials are disjoint (RetrievalAttention §3.3, "W and O") and merge
 * exactly.
 *
 * A search begins at the entry, one per query head. DIPR (AlayaDB §6.1) keeps what is within
 * -ln(dipr) of the best score, in logits; the best score begins as that of the 32 first and 32
 * last tokens, which hold it nearly always (ibid., window caching), so that lists are short from
 * the start. With the tail dropped, as published, nothing can be said about the error or the
 * mass: NaN.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/scan.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/exact.h"
#include "index/graph.h"
#include "index/graph_find.h"
#include "index/graph_version.h"
#include "index/plan.h"
#include "index/topk.h"

enum {
    PART_QUERIES = 64, /* of a call that go together */
    PART_SPREAD = 256, /* by so much their `high` may differ */
    SEED_TOKENS = 32,
};

/* Some queries of a call. */
struct part {
    const struct graph_version *version;
    const double *options;
    struct attend_args args; /* the part's queries over all views */
    struct attend_args outer; /* the same over [0, low) and [high, …) */
    size_t first;            /* of the part's queries in the call */
    uint64_t low, high;
    size_t width, k;
    float band;              /* 0: fixed k */
    float *best;             /* (n, H) of DIPR's seeds */
    struct graph_rows *rows; /* (G) */
    struct scan scan;        /* scan.q (G, n, H/G, D) */
    struct graph_finder *finders;
    size_t finder_count;
    const struct partial *partial; /* of the call: the outer partial, then the answer */
    const struct index_hits *hits; /* of the call: a search */
    struct index_quality *quality; /* of the call; may be NULL */
    struct plan *plan;       /* of the call; may be NULL */
    atomic_size_t next;
    atomic_int stopped;
};

struct range {
    uint64_t begin, end;
};

static uint64_t reach_of(const struct part *part, uint64_t limit)
{
    uint64_t window = (uint64_t)part->options[GRAPH_WINDOW];
    uint64_t end = part->version->first + part->version->nodes;
    uint64_t before = limit > window ? limit - window : 0;
    return before < end ? before : end;
}

/* Cut the part's arguments down to the queries from `first` on that go together. */
static void choose_queries(struct part *part, size_t first)
{
    struct attend_args *args = &part->args;
    uint64_t least = reach_of(part, args->limits[first]), most = least;
    size_t count = 1;
    for (; first + count < args->q.shape[0] && count < PART_QUERIES; count++) {
        uint64_t reach = reach_of(part, args->limits[first + count]);
        uint64_t low = reach < least ? reach : least, high = reach > most ? reach : most;
        if (high - low > PART_SPREAD) break;
        least = low;
        most = high;
    }
    uint64_t sinks = (uint64_t)part->options[GRAPH_SINKS];
    part->first = first;
    part->low = sinks > part->version->first ? sinks : part->version->first;
    part->high = least > part->low ? least : part->low;
    /* a list as long as the range would read all of it, in random order */
    if (part->band <= 0.0F && part->high - part->low <= part->width) part->high = part->low;
    size_t row_bytes = args->q.shape[1] * args->q.shape[2] * dtype_bytes(args->q.dtype);
    args->q.data = (const unsigned char *)args->q.data + first * row_bytes;
    args->q.shape[0] = count;
    args->limits += first;
    if (args->positions != NULL) args->positions += first;
}

/* ret_args: `args` over [0, begin) and [end, …) only. */
static bool take_outer(const struct attend_args *args, uint64_t begin, uint64_t end,
                       struct arena *arena, struct attend_args *ret_args)
{
    size_t most = args->view_count + 1, count = 0;
    struct view *views = arena_alloc(arena, args->kv_heads * most * sizeof *views);
    if (views == NULL) return false;
    if (end < begin) end = begin;
    for (size_t g = 0; g < args->kv_heads; g++) {
        const struct view *from = args->views + g * args->view_count;
        struct view *to = views + g * count;
        size_t here = graph_rows_clip(from, args->view_count, 0, begin, to);
        here += graph_rows_clip(from, args->view_count, end, UINT64_MAX, to + here);
        assert(g == 0 || here == count);
        count = here;
    }
    *ret_args = *args;
    ret_args->views = views;
    ret_args->view_count = count;
    return true;
}

static void count_read(struct index_quality *quality, uint64_t rows, uint64_t bytes)
{
    if (quality == NULL) return;
    quality->rows[INDEX_EXACT] += rows;
    quality->bytes[INDEX_EXACT] += bytes;
}

/* What an exact reading of args has read. */
static void count_outer(const struct attend_args *args, unsigned parts,
                        struct index_quality *quality)
{
    struct exact_cost cost = exact_cost(args, parts);
    count_read(quality, cost.rows, cost.bytes);
}

static void count_finders(const struct part *part)
{
    size_t value_bytes = part->args.q.shape[2] * dtype_bytes(part->rows[0].value_dtype);
    for (size_t i = 0; i < part->finder_count; i++) {
        const struct graph_finder *finder = &part->finders[i];
        /* keys as stored; keys of hits are read once, those of a sample twice as cheaply */
        uint64_t rows = finder->beam.keys_read + finder->values_read;
        count_read(part->quality, rows,
                   rows * value_bytes + finder->beam.edges_read * sizeof(uint32_t));
    }
}

static struct graph_find_args find_args(const struct part *part, size_t i, size_t h)
{
    const struct scan *scan = &part->scan;
    size_t g = h / scan->group, j = h % scan->group;
    size_t row = (g * scan->queries + i) * scan->group + j;
    uint64_t first = part->version->first;
    return (struct graph_find_args){
        .rows = &part->rows[g], .links = &part->version->links[g],
        .q = scan->q + row * scan->head_dim, .low = (uint32_t)(part->low - first),
        .high = (uint32_t)(part->high - first), .width = part->width, .k = part->k,
        .best = part->band > 0.0F ? part->best[i * scan->heads + h] : -INFINITY,
        .band = part->band, .seed = part->args.limits[i] << 8 | g };
}

/* `exact` is the lse of what was read; the tail, if it was estimated, is all that is known of the
 * rest. */
static void judge(const struct part *part, size_t row, double exact, struct graph_tail tail)
{
    struct index_quality *quality = part->quality;
    if (quality == NULL) return;
    float *mass = quality->mass + row * INDEX_LEVELS;
    double rest = exp((double)tail.lse - exact);
    mass[INDEX_EXACT] = tail.lse > -INFINITY ? (float)(1.0 / (1.0 + rest)) : NAN;
    if (tail.lse > -INFINITY) mass[INDEX_CLUSTERS] = (float)(rest / (1.0 + rest));
    quality->predicted_error[row] = tail.error;
}

/* A set of tokens that were read where they stand, for some heads of query i. */
static void note(const struct part *part, size_t i, uint32_t head, uint32_t heads,
                 const struct range *range)
{
    if (part->plan == NULL) return;
    uint64_t place = part->args.positions == NULL ? 0 : part->args.positions[i];
    plan_add(part->plan, &(struct plan_run){ .query = (uint32_t)(part->first + i), .head = head,
                                             .heads = heads, .first = range->begin,
                                             .count = range->end - range->begin,
                                             .placed = range->begin, .query_placed = place });
}

static void note_outer(const struct part *part)
{
    uint32_t heads = (uint32_t)part->args.q.shape[1];
    for (size_t i = 0; i < part->args.q.shape[0]; i++) {
        uint64_t limit = part->args.limits[i];
        uint64_t low = part->low < limit ? part->low : limit;
        uint64_t high = part->high < limit ? part->high : limit;
        note(part, i, 0, heads, &(struct range){ 0, low });
        note(part, i, 0, heads, &(struct range){ high > low ? high : low, limit });
    }
}

static void note_hits(const struct part *part, const struct graph_finder *finder, size_t i,
                      size_t h)
{
    for (size_t at = 0; at < finder->hit_count; at++) {
        uint64_t id = part->version->first + finder->hits[at].id;
        note(part, i, (uint32_t)h, 1, &(struct range){ id, id + 1 });
    }
}

/* The hits of query head h of query i join the outer partial. */
static void answer_head(const struct part *part, struct graph_finder *finder, size_t i, size_t h)
{
    size_t row = (part->first + i) * part->scan.heads + h, head_dim = part->scan.head_dim;
    struct partial into = { .o = part->partial->o + row * head_dim,
                            .lse = part->partial->lse + row, .rows = 1, .head_dim = head_dim };
    struct graph_find_args args = find_args(part, i, h);
    graph_find(finder, &args);
    graph_find_attend(finder, &args, &into);
    note_hits(part, finder, i, h);
    if (finder->hit_count == args.high - args.low) return; /* all of it was read */
    double exact = (double)into.lse[0];
    struct graph_tail tail = { .error = NAN, .lse = -INFINITY };
    if (part->options[GRAPH_TAIL] != 0.0) tail = graph_find_tail(finder, &args, &into);
    judge(part, row, exact, tail);
}

/* The hits of query head h of query i join the row's k best of the outer ranges. */
static void search_head(const struct part *part, struct graph_finder *finder, size_t i, size_t h)
{
    size_t k = part->hits->k, row = (part->first + i) * part->scan.heads + h;
    struct topk top = { .ids = part->hits->ids + row * k, .scores = part->hits->scores + row * k,
                        .k = k };
    struct graph_find_args args = find_args(part, i, h);
    graph_find(finder, &args);
    for (size_t at = 0; at < k / 2; at++) { /* worst first is a heap again */
        uint64_t id = top.ids[at];
        float score = top.scores[at];
        top.ids[at] = top.ids[k - 1 - at];
        top.scores[at] = top.scores[k - 1 - at];
        top.ids[k - 1 - at] = id;
        top.scores[k - 1 - at] = score;
    }
    for (size_t at = 0; at < finder->hit_count; at++)
        topk_offer(&top, finder->hits[at].score, part->version->first + finder->hits[at].id);
    topk_sort(&top);
}

/* idx is the finder's; query heads are handed out one by one */
static void run_task(void *arg, size_t idx)
{
    struct part *part = arg;
    size_t items = part->scan.queries * part->scan.heads;
    for (;;) {
        size_t item = atomic_fetch_add_explicit(&part->next, 1, memory_order_relaxed);
        if (item >= items || atomic_load_explicit(&part->stopped, memory_order_relaxed) != 0)
            return;
        int code = part->args.stop == NULL ? 0 : part->args.stop(part->args.stop_arg);
        if (code != 0) atomic_store_explicit(&part->stopped, code, memory_order_relaxed);
        size_t i = item / part->scan.heads, h = item % part->scan.heads;
        if (code == 0 && part->hits == NULL) answer_head(part, &part->finders[idx], i, h);
        if (code == 0 && part->hits != NULL) search_head(part, &part->finders[idx], i, h);
    }
}

/* The best scores among the first and the last tokens. */
static int seed_best(struct part *part, struct arena *arena, struct error *err)
{
    size_t rows = part->args.q.shape[0] * part->args.q.shape[1];
    uint64_t last = UINT64_MAX, *ids = arena_alloc(arena, rows * sizeof *ids);
    struct attend_args args;
    part->best = arena_alloc(arena, rows * sizeof *part->best);
    for (size_t i = 0; i < part->args.q.shape[0]; i++)
        if (part->args.limits[i] < last) last = part->args.limits[i];
    last = last > 2 * SEED_TOKENS ? last - SEED_TOKENS : SEED_TOKENS;
    if (ids == NULL || part->best == NULL ||
        !take_outer(&part->args, SEED_TOKENS, last, arena, &args))
        return error_set(err, MEMD_ENOMEM, "no memory for the scores of %zu query heads", rows);
    count_outer(&args, 1, part->quality);
    struct index_hits hits = { .ids = ids, .scores = part->best, .k = 1 };
    return exact_search(&args, arena, &hits, err);
}

static bool prepare(struct part *part, struct arena *arena)
{
    struct attend_args *args = &part->args;
    size_t queries = args->q.shape[0], heads = args->q.shape[1], head_dim = args->q.shape[2];
    const struct graph_version *version = part->version;
    float *q = arena_alloc_aligned(arena, queries * heads * head_dim * sizeof *q, 64);
    part->rows = arena_alloc(arena, args->kv_heads * sizeof *part->rows);
    part->finder_count = part->plan != NULL ? 1 : pool_threads(args->pool) + 1;
    if (part->finder_count > queries * heads) part->finder_count = queries * heads;
    part->finders = arena_calloc(arena, part->finder_count, sizeof *part->finders);
    if (q == NULL || part->rows == NULL || part->finders == NULL) return false;
    scan_init(&part->scan, args, 0, queries, q);
    for (size_t g = 0; g < args->kv_heads; g++) {
        graph_rows_init(&part->rows[g],
                        &(struct rows){ .views = args->views + g * args->view_count,
                                        .view_count = args->view_count, .head_dim = head_dim,
                                        .rope = args->rope });
        part->rows[g].first = version->first;
    }
    bool some = part->low > version->first || part->high < version->first + version->nodes;
    size_t width = some || part->band > 0.0F ? version->nodes : part->width;
    for (size_t i = 0; i < part->finder_count; i++)
        if (!graph_finder_init(&part->finders[i], &part->rows[0], version->nodes, width, arena))
            return false;
    return true;
}

/* The middle range. */
static int run_graph(struct part *part, struct arena *arena, struct error *err)
{
    int rc = part->band > 0.0F ? seed_best(part, arena, err) : 0;
    if (rc < 0) return rc;
    if (!prepare(part, arena))
        return error_set(err, MEMD_ENOMEM, "no memory to search a graph of %u nodes",
                         part->version->nodes);
    pool_for(part->args.pool, part->finder_count, run_task, part);
    rc = atomic_load_explicit(&part->stopped, memory_order_relaxed);
    if (rc != 0)
        return error_set(err, rc, "%s while searching a graph of %u nodes", error_text(rc),
                         part->version->nodes);
    count_finders(part);
    return 0;
}

/* Nothing was left out of the part's rows, so far. */
static void judge_exact(const struct part *part)
{
    size_t heads = part->args.q.shape[1], begin = part->first * heads;
    struct index_quality *quality = part->quality;
    if (quality == NULL) return;
    for (size_t row = begin; row < begin + part->args.q.shape[0] * heads; row++) {
        memset(quality->mass + row * INDEX_LEVELS, 0, INDEX_LEVELS * sizeof *quality->mass);
        quality->mass[row * INDEX_LEVELS + INDEX_EXACT] = 1.0F;
        quality->predicted_error[row] = 0.0F;
        quality->limited[row] = false;
    }
}

static int run_outer(const struct part *part, struct arena *arena, struct error *err)
{
    size_t begin = part->first * part->args.q.shape[1];
    size_t rows = part->args.q.shape[0] * part->args.q.shape[1];
    if (part->hits != NULL) {
        size_t k = part->hits->k;
        struct index_hits hits = { .ids = part->hits->ids + begin * k,
                                   .scores = part->hits->scores + begin * k, .k = k };
        count_outer(&part->outer, 1, part->quality);
        return exact_search(&part->outer, arena, &hits, err);
    }
    struct partial partial = { .o = part->partial->o + begin * part->args.q.shape[2],
                               .lse = part->partial->lse + begin, .rows = rows,
                               .head_dim = part->args.q.shape[2] };
    count_outer(&part->outer, 2, part->quality);
    note_outer(part);
    judge_exact(part);
    return attend(&part->outer, arena, &partial, err);
}

static int run_parts(const struct part *whole, struct arena *arena, struct error *err)
{
    const struct graph_version *version = whole->version;
    assert(whole->args.kv_heads == version->kv_heads);
    if (whole->quality != NULL) {
        memset(whole->quality->rows, 0, sizeof whole->quality->rows);
        memset(whole->quality->bytes, 0, sizeof whole->quality->bytes);
    }
    int rc = 0;
    for (size_t first = 0, count; rc == 0 && first < whole->args.q.shape[0]; first += count) {
        struct part part = *whole;
        choose_queries(&part, first);
        count = part.args.q.shape[0];
        if (!take_outer(&part.args, part.low, part.high, arena, &part.outer))
            return error_set(err, MEMD_ENOMEM, "no memory for views");
        rc = run_outer(&part, arena, err);
        if (rc == 0 && part.low < part.high) rc = run_graph(&part, arena, err);
    }
    return rc;
}

int graph_attend(const struct layer_index *version, const struct index_args *args,
                 const double *options, struct arena *arena, const struct index_answer *ret_answer,
                 struct error *err)
{
    size_t k = (size_t)options[GRAPH_K], width = (size_t)options[GRAPH_EF];
    double alpha = options[GRAPH_DIPR];
    struct part whole = { .version = (const struct graph_version *)version, .options = options,
                          .args = args->attend, .k = k, .width = width > k ? width : k,
                          .band = alpha > 0.0 ? (float)-log(alpha) : 0.0F,
                          .partial = &ret_answer->partial, .quality = ret_answer->quality,
                          .plan = args->plan };
    return run_parts(&whole, arena, err);
}

int graph_search(const struct layer_index *version, const struct index_args *args,
                 const double *options, struct arena *arena, const struct index_found *ret_found,
                 struct error *err)
{
    size_t k = ret_found->hits.k, width = (size_t)options[GRAPH_EF];
    if (k == 0) return 0;
    struct part whole = { .version = (const struct graph_version *)version, .options = options,
                          .args = args->attend, .k = k, .width = width > k ? width : k,
                          .hits = &ret_found->hits, .quality = ret_found->quality };
    return run_parts(&whole, arena, err);
}
