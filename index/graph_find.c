/* SPDX-License-Identifier: Apache-2.0 */
/* graph_find.c — search, attention over what was found, and the tail.
 *
 * The tail is a stratified sample: the wanted range is cut into TAIL_ROWS stretches and one token
 * drawn from each (HyperAttention's residual sampling, arXiv 2310.05869 §3; vAttention, arXiv
 * 2510.05688, for the error). Hits among them are left out; what remains stands for all that are no
 * hits: its sum, times rest / sampled. Where o is the answer and L its lse, the sampled terms
 * exp(s - L) (v - o) have mean zero in the long run, and their spread is the error of o. That is
 * honest as far as the sample met the heavy tokens; a graph is there to leave none.
 */
#include "index/graph_find.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/tensor.h"

enum { TAIL_ROWS = 256 };

bool graph_finder_init(struct graph_finder *ret_finder, const struct graph_rows *rows,
                       uint32_t nodes, size_t width, struct arena *arena)
{
    size_t head_bytes = rows->all.head_dim * sizeof(float);
    *ret_finder = (struct graph_finder){ 0 };
    if (!graph_beam_init(&ret_finder->beam, rows, nodes, width, arena)) return false;
    size_t room = ret_finder->beam.room > TAIL_ROWS ? ret_finder->beam.room : TAIL_ROWS;
    ret_finder->ids = arena_alloc(arena, room * sizeof *ret_finder->ids);
    ret_finder->values = arena_alloc_aligned(arena, GRAPH_LINKS_MAX * head_bytes, 64);
    ret_finder->o = arena_alloc_aligned(arena, head_bytes, 64);
    ret_finder->value = arena_alloc_aligned(arena, head_bytes, 64);
    return ret_finder->ids != NULL && ret_finder->values != NULL && ret_finder->o != NULL &&
           ret_finder->value != NULL;
}

void graph_find(struct graph_finder *finder, const struct graph_find_args *args)
{
    struct graph_beam *beam = &finder->beam;
    struct graph_query query = { .q = args->q, .links = args->links, .rows = args->rows,
                                 .width = args->width, .low = args->low, .high = args->high,
                                 .except = GRAPH_NONE, .best = args->best, .band = args->band };
    float best = graph_beam_search(beam, &query);
    float floor = args->band > 0.0F ? best - args->band : -INFINITY;
    size_t most = args->band > 0.0F ? beam->count : args->k;
    finder->hits = beam->items;
    finder->hit_count = 0;
    for (size_t i = 0; i < beam->count; i++) {
        struct graph_item item = beam->items[i];
        if (item.id < args->low || item.id >= args->high) continue;
        if (finder->hit_count == most || item.score < floor) break; /* best first */
        finder->ids[finder->hit_count] = item.id;
        finder->hits[finder->hit_count++] = item; /* never ahead of i */
    }
}

/* finder->o and *ret_lse: attention over finder->ids. */
static void attend_ids(struct graph_finder *finder, const struct graph_find_args *args,
                       size_t count, float *ret_lse)
{
    const struct graph_rows *rows = args->rows;
    struct partial partial = { .o = finder->o, .lse = ret_lse, .rows = 1,
                               .head_dim = rows->all.head_dim };
    float max = -INFINITY, sum = 0.0F;
    memset(finder->o, 0, rows->all.head_dim * sizeof *finder->o);
    for (size_t begin = 0; begin < count; begin += GRAPH_LINKS_MAX) {
        uint32_t part = GRAPH_LINKS_MAX;
        if (count - begin < part) part = (uint32_t)(count - begin);
        graph_rows_keys(rows, finder->ids + begin, part, finder->beam.keys);
        graph_rows_values(rows, finder->ids + begin, part, finder->values);
        backend_get()->partial(&(struct partial_args){
            .q = args->q, .visible = &part, .queries = 1, .head_dim = rows->all.head_dim,
            .k = finder->beam.keys, .v = finder->values,
            .k_stride_bytes = graph_rows_key_bytes(rows),
            .v_stride_bytes = rows->all.head_dim * dtype_bytes(rows->value_dtype), .tokens = part,
            .k_dtype = rows->key_dtype, .v_dtype = rows->value_dtype, .max = &max, .sum = &sum,
            .acc = finder->o });
    }
    partial_finish(&max, &sum, &partial);
    finder->values_read += count;
}

static void merge(const struct graph_finder *finder, float lse, const struct partial *into)
{
    struct partial part = { .o = finder->o, .lse = &lse, .rows = 1, .head_dim = into->head_dim };
    assert(into->rows == 1);
    partial_merge(into, &part);
}

void graph_find_attend(struct graph_finder *finder, const struct graph_find_args *args,
                       const struct partial *into)
{
    float lse = -INFINITY;
    attend_ids(finder, args, finder->hit_count, &lse);
    merge(finder, lse, into);
}

/* One token of each stretch -> finder->ids, without hits; their number. */
static size_t sample(struct graph_finder *finder, const struct graph_find_args *args)
{
    uint64_t *hit = finder->beam.visited; /* serves as a set of hits */
    size_t span = args->high - args->low, kept = 0;
    size_t rows = span < TAIL_ROWS ? span : TAIL_ROWS;
    memset(hit, 0, (args->links->nodes / 64 + 1) * sizeof *hit);
    for (size_t i = 0; i < finder->hit_count; i++) graph_bit_set(hit, finder->hits[i].id);
    for (size_t i = 0; i < rows; i++) {
        size_t begin = span * i / rows, end = span * (i + 1) / rows;
        size_t at = begin + (size_t)(graph_draw(args->seed, i) % (end - begin));
        uint32_t id = args->low + (uint32_t)at;
        if (!graph_bit(hit, id)) finder->ids[kept++] = id;
    }
    return kept;
}

/* The spread of the sample's terms exp(s - L) (v - o): sum of squares minus the mean's. */
static double spread(struct graph_finder *finder, const struct graph_find_args *args, size_t count,
                     const struct partial *answer)
{
    const struct graph_rows *rows = args->rows;
    size_t head_dim = rows->all.head_dim, row_bytes = head_dim * dtype_bytes(rows->value_dtype);
    double squares = 0.0, mean_square = 0.0;
    memset(finder->o, 0, head_dim * sizeof *finder->o); /* the sum of the terms */
    for (size_t begin = 0; begin < count; begin += GRAPH_LINKS_MAX) {
        size_t part = count - begin < GRAPH_LINKS_MAX ? count - begin : GRAPH_LINKS_MAX;
        graph_rows_keys(rows, finder->ids + begin, part, finder->beam.keys);
        graph_rows_values(rows, finder->ids + begin, part, finder->values);
        backend_get()->score(&(struct score_args){
            .q = args->q, .queries = 1, .head_dim = head_dim, .k = finder->beam.keys,
            .k_stride_bytes = graph_rows_key_bytes(rows), .tokens = part,
            .dtype = rows->key_dtype, .scores = finder->beam.scores });
        for (size_t i = 0; i < part; i++) {
            double weight = exp((double)finder->beam.scores[i] - (double)answer->lse[0]);
            backend_widen((const unsigned char *)finder->values + i * row_bytes, rows->value_dtype,
                          1, head_dim, finder->value);
            for (size_t d = 0; d < head_dim; d++) {
                double term = weight * ((double)finder->value[d] - (double)answer->o[d]);
                squares += term * term;
                finder->o[d] += (float)term;
            }
        }
    }
    for (size_t d = 0; d < head_dim; d++)
        mean_square += (double)finder->o[d] * (double)finder->o[d];
    return squares - mean_square / (double)count;
}

struct graph_tail graph_find_tail(struct graph_finder *finder, const struct graph_find_args *args,
                                  const struct partial *into)
{
    struct graph_tail tail = { .error = NAN, .lse = -INFINITY };
    double rest = (double)(args->high - args->low) - (double)finder->hit_count;
    assert(rest > 0.0);
    size_t count = sample(finder, args);
    if (count == 0) return tail;
    attend_ids(finder, args, count, &tail.lse);
    tail.lse += (float)log(rest / (double)count);
    merge(finder, tail.lse, into);
    if (count < 2) return tail;
    double variance = spread(finder, args, count, into) / (double)(count - 1);
    double square = rest * rest / (double)count * (1.0 - (double)count / rest) * variance;
    double norm = 0.0;
    for (size_t d = 0; d < into->head_dim; d++) norm += (double)into->o[d] * (double)into->o[d];
    if (norm > 0.0) tail.error = (float)sqrt((square > 0.0 ? square : 0.0) / norm);
    return tail;
}
