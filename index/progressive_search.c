/* SPDX-License-Identifier: Apache-2.0 */
/* progressive_search.c — the k best tokens through the same levels, each one scored exactly in the
 * end.
 *
 * The level above only says what need not be looked at. Per query row:
 *
 *     1. the clusters with the highest centroid score + 2 deviations are opened, enough for 4 k
 *        tokens; the k-th best of their 4-bit scores and of the exact rows is a first threshold;
 *     2. every cluster that reaches it with 4 deviations is opened, the threshold rises;
 *     3. every token whose 4-bit score reaches it with 4 deviations of rounding is scored from its
 *        exact key.
 *
 * Deviations of scores in a cluster are known from key_spread, those of rounding from the step. So
 * the k best are found with k to 3 k keys read, as long as they do not hide alone in a cluster of
 * others. Keys at 8 bits before the exact ones would save 8% of the bytes at k = 100; left out.
 */
#include <math.h>
#include <string.h>

#include "attention/backend.h"
#include "base/arena.h"
#include "base/tensor.h"
#include "index/backend.h"
#include "index/exact.h"
#include "index/progressive_block.h"
#include "index/topk.h"

enum { SCORE_ROWS = 256, EXACT_FROM = 4 /* share of tokens wanted from which all keys are read */ };

static const float first_deviations = 2.0F, deviations = 4.0F;

/* The answer's heap of row m. */
static struct topk answer_heap(const struct block *block, size_t m)
{
    const struct index_hits *hits = block->call->hits;
    size_t at = block_answer_row(block, m) * hits->k;
    return (struct topk){ .ids = hits->ids + at, .scores = hits->scores + at, .k = hits->k };
}

/* Row m's scratch heap of k entries. */
static struct topk scratch_heap(const struct block *block, size_t m, size_t k)
{
    size_t at = m * PROGRESSIVE_SCRATCH(block->call->hits->k);
    return (struct topk){ .ids = block->best_ids + at, .scores = block->best_scores + at, .k = k };
}

/* Rows begin … end-1 of the scan, exactly, into the answer's heaps. */
static void offer_rows(struct block *block, size_t begin, size_t end)
{
    struct scan *scan = (struct scan *)&block->call->scan;
    struct scan_run run;
    float scores[BLOCK_ROWS * SCORE_ROWS];
    scan_open(block->cursor, scan, block->kv_head, begin, end);
    while (scan_next(block->cursor, &run)) {
        for (size_t at = 0; at < run.rows; at += SCORE_ROWS) {
            struct scan_run part = run;
            part.k = (const unsigned char *)run.k + at * run.k_stride_bytes;
            part.position += at;
            part.rows = run.rows - at < SCORE_ROWS ? run.rows - at : SCORE_ROWS;
            block->call->backend->score(&(struct score_args){
                .q = block->q, .queries = block->rows, .head_dim = block->head_dim, .k = part.k,
                .k_stride_bytes = part.k_stride_bytes, .tokens = part.rows, .dtype = part.k_dtype,
                .scores = scores });
            for (size_t m = 0; m < block->rows; m++) {
                struct topk heap = answer_heap(block, m);
                uint32_t visible = scan_visible(scan, block_query(block, m), &part);
                for (size_t row = 0; row < visible; row++)
                    topk_offer(&heap, scores[m * part.rows + row], part.position + row);
            }
        }
        block->level_rows[INDEX_EXACT] += run.rows;
        block->level_bytes[INDEX_EXACT] += run.rows * block->head_dim * dtype_bytes(run.v_dtype);
    }
}

/* Scores of all centroids to block_scored, deviations of the scores in their clusters into
 * priority. */
static void score_centroids(struct block *block)
{
    block->scored_count = block->tabled_count = 0;
    for (size_t p = 0; p < block->segment_count; p++) {
        size_t at = p * block->rows;
        block_score_centroids(block, p, block_scored(block, p));
        const float *key_spread = block_key_spread(block, p);
        for (size_t m = 0; m < block->rows; m++)
            for (size_t c = 0; c < PLANES_CLUSTERS; c++)
                block->priority[(at + m) * PLANES_CLUSTERS + c] =
                    block->deviation[at + m] * sqrtf(key_spread[c]);
    }
    block->level_rows[INDEX_CLUSTERS] += block->segment_count * PLANES_CLUSTERS;
    block->level_bytes[INDEX_CLUSTERS] += block_centroid_bytes(block);
}

/* What a token `far` deviations above the centroid of cluster c of segment p scores. */
static float reach(const struct block *block, size_t p, size_t m, size_t c, float far)
{
    size_t at = m * PLANES_CLUSTERS + c;
    float deviation = block->priority[p * block->rows * PLANES_CLUSTERS + at];
    return block_scored(block, p)[at] + far * deviation;
}

/* The best clusters of every row, for about 4 k tokens, into fresh. */
static void choose_best(struct block *block)
{
    memset(block->fresh, 0, block->segment_count * sizeof *block->fresh);
    for (size_t m = 0; m < block->rows; m++) {
        struct topk best = scratch_heap(block, m, block->call->hits->k / 4 + 8);
        topk_clear(&best);
        for (size_t p = 0; p < block->segment_count; p++)
            for (size_t c = 0; c < PLANES_CLUSTERS; c++)
                topk_offer(&best, reach(block, p, m, c, first_deviations), p * PLANES_CLUSTERS + c);
        for (size_t i = 0; i < best.k; i++)
            if (best.ids[i] != INDEX_NONE)
                block->fresh[best.ids[i] / PLANES_CLUSTERS] |= UINT64_C(1)
                                                               << best.ids[i] % PLANES_CLUSTERS;
    }
}

/* Every cluster that may hold one of the k best. */
static void choose_reaching(struct block *block)
{
    for (size_t p = 0; p < block->segment_count; p++) {
        uint64_t wanted = 0;
        for (size_t m = 0; m < block->rows; m++) {
            float threshold = scratch_heap(block, m, block->call->hits->k).scores[0];
            for (size_t c = 0; c < PLANES_CLUSTERS; c++)
                wanted |= (uint64_t)(reach(block, p, m, c, deviations) >= threshold) << c;
        }
        block->fresh[p] = wanted & ~block->segments[p].opened;
    }
}

/* 4-bit scores of the fresh clusters into the scratch heaps. */
static void scan_fresh(struct block *block)
{
    for (size_t p = 0; p < block->segment_count; p++) {
        size_t each = 8 * block->head_dim + block_centre_bytes(block);
        size_t bytes = (size_t)__builtin_popcountll(block->fresh[p]) * each;
        if (bytes == 0) continue;
        if (bytes > block_bytes_left(block)) {
            block->limited = true;
            continue;
        }
        const struct block_chunk *chunk = block_score_tokens(block, p, block->fresh[p], NULL);
        size_t count = chunk->count * PLANE_TILE;
        for (size_t m = 0; m < block->rows; m++) {
            struct topk heap = scratch_heap(block, m, block->call->hits->k);
            for (size_t i = 0; i < count; i++)
                topk_offer(&heap, chunk->weights[m * count + i], 0);
        }
    }
}

/* Score row `row` of segment p exactly and offer it to all rows of the block. */
static void offer_exactly(struct block *block, size_t p, size_t row)
{
    const struct view *view = block->segments[p].view;
    const struct rope *rope = block->call->args->base.attend.rope;
    if (!scan_admit((struct scan *)&block->call->scan, view, row, 1, VIEW_K)) return;
    float scores[BLOCK_ROWS];
    struct score_args args = { .q = block->q, .queries = block->rows, .head_dim = block->head_dim,
                               .k = (const unsigned char *)view->k + row * view->k_stride_bytes,
                               .k_stride_bytes = view->k_stride_bytes, .tokens = 1,
                               .dtype = view->dtype, .scores = scores };
    if (rope != NULL) {
        block->call->backend->rotate(&(struct rotate_args){
            .rope = rope, .rows = args.k, .stride_bytes = view->k_stride_bytes,
            .dtype = view->dtype, .count = 1, .position = view->position + row,
            .out = block->gather_k });
        args.k = block->gather_k;
        args.k_stride_bytes = block->head_dim * sizeof(float);
        args.dtype = DTYPE_FP32;
    }
    block->call->backend->score(&args);
    for (size_t m = 0; m < block->rows; m++) {
        struct topk heap = answer_heap(block, m);
        topk_offer(&heap, scores[m], view->position + row);
    }
    block->level_rows[INDEX_EXACT]++;
    block->level_bytes[INDEX_EXACT] += block->head_dim * dtype_bytes(view->dtype);
}

/* Could the token at place `at` of a chunk be among the k best of some row? */
static bool may_belong(const struct block *block, const struct block_chunk *chunk, size_t at,
                       float step)
{
    size_t k = block->call->hits->k, count = chunk->count * PLANE_TILE;
    for (size_t m = 0; m < block->rows; m++) {
        float square = block->square[chunk->segment * block->rows + m];
        float slack = deviations * step * sqrtf(square / 12.0F);
        if (chunk->weights[m * count + at] + slack >= scratch_heap(block, m, k).scores[0])
            return true;
    }
    return false;
}

static void offer_chunk(struct block *block, const struct block_chunk *chunk)
{
    const struct planes *planes = block->segments[chunk->segment].planes;
    for (size_t at = 0; at < chunk->count * PLANE_TILE; at++) {
        size_t place = (size_t)chunk->tiles[at / PLANE_TILE] * PLANE_TILE + at % PLANE_TILE;
        if (!may_belong(block, chunk, at, block_step(planes->key_scale[place]))) continue;
        if (block_bytes_left(block) < 4 * block->head_dim) {
            block->limited = true;
            return;
        }
        offer_exactly(block, chunk->segment, planes->rows[place]);
    }
}

static void search_planes(struct block *block)
{
    size_t k = block->call->hits->k;
    score_centroids(block);
    choose_best(block);
    for (size_t m = 0; m < block->rows; m++) {
        struct topk heap = scratch_heap(block, m, k), exact = answer_heap(block, m);
        memcpy(heap.ids, exact.ids, k * sizeof *heap.ids);
        memcpy(heap.scores, exact.scores, k * sizeof *heap.scores);
    }
    scan_fresh(block);
    choose_reaching(block);
    scan_fresh(block);
    for (size_t i = 0; i < block->chunk_count; i++) offer_chunk(block, &block->chunks[i]);
}

static void search_block(struct block *block)
{
    for (size_t m = 0; m < block->rows; m++) {
        struct topk heap = answer_heap(block, m);
        topk_clear(&heap);
    }
    block_sort_views(block, offer_rows);
    if (block->segment_count > 0) search_planes(block);
    for (size_t m = 0; m < block->rows; m++) {
        struct topk heap = answer_heap(block, m);
        topk_sort(&heap);
        const struct index_quality *quality = block->call->quality;
        if (quality != NULL && quality->limited != NULL)
            quality->limited[block_answer_row(block, m)] = block->limited;
    }
}

/* Everything was read exactly, or nothing can be said about errors of a softmax. */
static void fill_quality(const struct progressive_args *args, const struct progressive *call,
                         struct index_quality *ret_quality)
{
    const struct attend_args *attend = &args->base.attend;
    size_t rows = attend->q.shape[0] * attend->q.shape[1];
    for (size_t row = 0; row < rows; row++) {
        if (ret_quality->predicted_error != NULL) ret_quality->predicted_error[row] = NAN;
        if (ret_quality->mass != NULL)
            memset(ret_quality->mass + row * INDEX_LEVELS, 0, INDEX_LEVELS * sizeof(float));
        if (call == NULL && ret_quality->limited != NULL) ret_quality->limited[row] = false;
    }
    if (call == NULL) {
        struct exact_cost cost = exact_cost(attend, 1);
        ret_quality->bytes[INDEX_EXACT] += cost.bytes;
        ret_quality->rows[INDEX_EXACT] += cost.rows;
        return;
    }
    progressive_count(call, ret_quality);
}

int progressive_search(const struct progressive_args *args, struct arena *arena,
                       const struct index_hits *ret_hits, struct index_quality *ret_quality,
                       struct error *err)
{
    const struct attend_args *attend = &args->base.attend;
    if (attend->q.shape[0] == 0 || ret_hits->k == 0) return 0;
    size_t segments = progressive_segments(args);
    if (progressive_is_exact(args, segments) ||
        ret_hits->k * EXACT_FROM > segments * PLANES_TOKENS) {
        int rc = exact_search(attend, arena, ret_hits, err);
        if (rc == 0 && ret_quality != NULL) fill_quality(args, NULL, ret_quality);
        return rc;
    }
    struct progressive call = { .args = args, .backend = backend_get(),
                                .planes = plane_backend_get(), .quality = ret_quality,
                                .hits = ret_hits, .block_bytes = UINT64_MAX, .run = search_block };
    int rc = progressive_run(&call, segments, arena, err);
    if (rc == 0 && ret_quality != NULL) fill_quality(args, &call, ret_quality);
    return rc;
}
