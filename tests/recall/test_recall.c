/* SPDX-License-Identifier: Apache-2.0 */
/* test_recall.c — floors of progressive attention on keys and queries of a real model.
 *
 * tests/golden/kv_recall.bin is one KV head of SmolLM2-135M's layer 8 over 5,376 tokens of prose
 * (the King James Bible, public domain) with 24 positions of its three query heads;
 * scripts/recall-fixture cut it from a trace of tests/bench/retrieval/capture.py. The layer has
 * near copies of keys, outliers and sinks: what random vectors lack. Errors are against a softmax
 * in double; the floors are about a third wider than what was measured.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/half.h"
#include "index/exact.h"
#include "index/progressive.h"

enum { SEGMENTS = 5, K = 100 };

struct trace {
    unsigned char *bytes;
    size_t tokens, head_dim, queries, group;
    float scale;
    uint64_t *limits;          /* (n) */
    const float *query_square; /* (D) */
    const uint16_t *k, *v, *q; /* (T, D), (T, D), (n, group, D) fp16 */
    struct view views[SEGMENTS + 1];
    struct planes planes[SEGMENTS];
    const struct planes *table[SEGMENTS + 1];
    unsigned char *payloads[2 * SEGMENTS];
};

static unsigned char *read_file(const char *name)
{
    char path[4096];
    const char *root = getenv("MEMD_SOURCE_ROOT");
    snprintf(path, sizeof path, "%s/tests/golden/%s", root == NULL ? "." : root, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("%s cannot be read", path);
    unsigned char *bytes = aligned_alloc(64, (size_t)2 << 20);
    if (bytes == NULL || fread(bytes, 1, (size_t)2 << 20, file) < 1000) fail_msg("%s: short", path);
    fclose(file);
    return bytes;
}

static void trace_open(struct trace *trace)
{
    *trace = (struct trace){ .bytes = read_file("kv_recall.bin") };
    struct bytes_reader in = bytes_reader(trace->bytes, 24);
    trace->tokens = bytes_get_le32(&in);
    trace->head_dim = bytes_get_le32(&in);
    trace->queries = bytes_get_le32(&in);
    trace->group = bytes_get_le32(&in);
    trace->scale = 1.0F / sqrtf((float)trace->head_dim);
    assert_int_equal(trace->tokens, 5376);
    trace->limits = (uint64_t *)(void *)(trace->bytes + 24);
    for (size_t i = 0; i < trace->queries; i++) trace->limits[i]++; /* a query sees its own token */
    trace->query_square = (const float *)(const void *)(trace->limits + trace->queries);
    trace->k = (const uint16_t *)(const void *)(trace->query_square + trace->head_dim);
    trace->v = trace->k + trace->tokens * trace->head_dim;
    trace->q = trace->v + trace->tokens * trace->head_dim;
}

static void trace_code(struct trace *trace)
{
    struct planes_layout layout;
    planes_layout_init(trace->head_dim, &layout);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    for (size_t i = 0; i <= SEGMENTS; i++) {
        size_t at = i * PLANES_TOKENS, row_bytes = trace->head_dim * sizeof(uint16_t);
        trace->views[i] = (struct view){
            .k = trace->k + at * trace->head_dim, .v = trace->v + at * trace->head_dim,
            .k_stride_bytes = row_bytes, .v_stride_bytes = row_bytes,
            .tokens = i < SEGMENTS ? PLANES_TOKENS : trace->tokens - at, .position = at,
            .dtype = DTYPE_FP16 };
        if (i == SEGMENTS) break;
        unsigned char *hi = aligned_alloc(64, layout.hi_bytes);
        unsigned char *lo = aligned_alloc(64, layout.lo_bytes);
        assert_true(hi != NULL && lo != NULL);
        struct planes_source source = { .view = &trace->views[i], .queries = 1000,
                                        .query_square = trace->query_square };
        assert_int_equal(planes_encode(&layout, &source, &arena, hi, lo, NULL), 0);
        assert_int_equal(planes_open(&layout, hi, lo, &trace->planes[i], NULL), 0);
        trace->table[i] = &trace->planes[i];
        trace->payloads[2 * i] = hi;
        trace->payloads[2 * i + 1] = lo;
        arena_reset(&arena);
    }
    arena_fini(&arena);
}

static void trace_close(struct trace *trace)
{
    for (size_t i = 0; i < 2 * SEGMENTS; i++) free(trace->payloads[i]);
    free(trace->bytes);
}

static struct progressive_args args_of(struct trace *trace, size_t first, size_t queries)
{
    size_t row = trace->group * trace->head_dim;
    return (struct progressive_args){
        .base = { .attend = { .q = { .data = (void *)(uintptr_t)(trace->q + first * row),
                                     .dtype = DTYPE_FP16, .dims = 3,
                                     .shape = { queries, trace->group, trace->head_dim } },
                              .limits = trace->limits + first, .scale = trace->scale,
                              .views = trace->views, .kv_heads = 1, .view_count = SEGMENTS + 1 },
                  .target_error = 0.02F },
        .planes = trace->table, .exact_below = 0 };
}

/* Relative L2 error of o (D) for query i, head j. */
static double error_of(const struct trace *trace, size_t i, size_t j, const float *o)
{
    enum { D = 64 };
    assert_int_equal(trace->head_dim, D);
    double sums[D] = { 0.0 }, sum = 0.0, max = -INFINITY, wrong = 0.0, right = 0.0;
    double *scores = calloc(trace->tokens, sizeof *scores);
    assert_non_null(scores);
    const uint16_t *q = trace->q + (i * trace->group + j) * D;
    for (size_t t = 0; t < trace->limits[i]; t++) {
        for (size_t d = 0; d < D; d++)
            scores[t] += (double)half_from_fp16(q[d]) * (double)half_from_fp16(trace->k[t * D + d]);
        scores[t] *= (double)trace->scale;
        max = fmax(max, scores[t]);
    }
    for (size_t t = 0; t < trace->limits[i]; t++) {
        double weight = exp(scores[t] - max);
        sum += weight;
        for (size_t d = 0; d < D; d++)
            sums[d] += weight * (double)half_from_fp16(trace->v[t * D + d]);
    }
    for (size_t d = 0; d < D; d++) {
        double truth = sums[d] / sum, e = (double)o[d] - truth;
        wrong += e * e;
        right += truth * truth;
    }
    free(scores);
    return sqrt(wrong / right);
}

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* One query at a time, as a model decodes. */
static void test_error_and_prediction(void **state)
{
    (void)state;
    enum { ROWS = 72, GROUP = 3, D = 64 };
    struct trace trace;
    trace_open(&trace);
    trace_code(&trace);
    assert_int_equal(trace.queries * trace.group, ROWS);
    double sum = 0.0, ratios[ROWS];
    size_t within = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < trace.queries; i++) {
        float o[GROUP * D], lse[GROUP], predicted[GROUP], mass[GROUP * INDEX_LEVELS];
        bool limited[GROUP];
        struct index_quality quality = { .predicted_error = predicted, .mass = mass,
                                         .limited = limited };
        struct progressive_args args = args_of(&trace, i, 1);
        struct arena arena;
        arena_init(&arena, (size_t)256 << 20);
        struct index_answer answer = { .partial = { .o = o, .lse = lse, .rows = GROUP,
                                                    .head_dim = D }, .quality = &quality };
        assert_int_equal(progressive_attend(&args, &arena, &answer, NULL), 0);
        arena_fini(&arena);
        for (size_t level = 0; level < INDEX_LEVELS; level++) bytes += quality.bytes[level];
        for (size_t j = 0; j < GROUP; j++) {
            double error = error_of(&trace, i, j, o + j * D);
            sum += error;
            within += error <= 0.04;
            ratios[i * GROUP + j] = (double)predicted[j] / error;
        }
    }
    qsort(ratios, ROWS, sizeof *ratios, ascending);
    double share = (double)bytes / ((double)trace.queries * (double)trace.tokens * 4.0 * D);
    fprintf(stderr, "mean error %.4f, within twice the target %zu of %d, prediction/true %.2f, "
            "bytes %.3f\n", sum / ROWS, within, ROWS, ratios[ROWS / 2], share);
    assert_true(sum / ROWS <= 0.016);
    assert_true(within >= ROWS * 95 / 100);
    assert_true(ratios[ROWS / 2] >= 0.6 && ratios[ROWS / 2] <= 2.4);
    assert_true(share <= 0.35);
    trace_close(&trace);
}

static void test_recall(void **state)
{
    (void)state;
    struct trace trace;
    trace_open(&trace);
    trace_code(&trace);
    size_t rows = trace.queries * trace.group, found = 0;
    struct index_hits truth = { .ids = calloc(rows * K, sizeof(uint64_t)),
                                .scores = calloc(rows * K, sizeof(float)), .k = K };
    struct index_hits hits = { .ids = calloc(rows * K, sizeof(uint64_t)),
                               .scores = calloc(rows * K, sizeof(float)), .k = K };
    assert_true(truth.ids != NULL && truth.scores != NULL && hits.ids != NULL &&
                hits.scores != NULL);
    struct index_quality quality = { 0 };
    struct progressive_args args = args_of(&trace, 0, trace.queries);
    struct arena arena;
    arena_init(&arena, (size_t)256 << 20);
    assert_int_equal(exact_search(&args.base.attend, &arena, &truth, NULL), 0);
    assert_int_equal(progressive_search(&args, &arena, &hits, &quality, NULL), 0);
    arena_fini(&arena);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < K; i++)
            for (size_t j = 0; j < K; j++)
                found += truth.ids[row * K + i] == hits.ids[row * K + j];
    fprintf(stderr, "recall@%d %.4f\n", K, (double)found / (double)(rows * K));
    assert_true((double)found >= 0.99 * (double)(rows * K));
    assert_true(quality.bytes[INDEX_HI] > 0); /* it did not just read everything */
    free(truth.ids);
    free(truth.scores);
    free(hits.ids);
    free(hits.scores);
    trace_close(&trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_and_prediction),
        cmocka_unit_test(test_recall),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
