/* SPDX-License-Identifier: Apache-2.0 */
/* builder_fixture.h — what tests of derived data share: wait for it, count it, ask with it.
 *
 * What answers are worth is said by tests/unit/test_progressive.c; here every answer is compared
 * with the exact one, by the error that was asked for.
 */
#ifndef MEMD_TESTS_BUILDER_FIXTURE_H
#define MEMD_TESTS_BUILDER_FIXTURE_H

#include "tests/unit/store_fixture.h"

#include <math.h>

static inline struct build_progress wait_built(struct fixture *fx, struct context *context)
{
    struct build_progress progress = { 0 };
    struct error err = { 0 };
    ASSERT_OK(catalog_sync(fx->catalog, &err), err);
    ASSERT_OK(catalog_wait_built(fx->catalog, context_id(context), NULL, NULL, &progress, &err),
              err);
    return progress;
}

static inline void expect_built(struct fixture *fx, struct context *context, uint64_t segments)
{
    struct build_progress progress = wait_built(fx, context);
    assert_int_equal(progress.last_failure, 0);
    assert_int_equal(progress.segments, segments);
    assert_int_equal(progress.built, segments);
}

static inline struct catalog_stats stats_of(struct fixture *fx)
{
    struct catalog_stats stats;
    catalog_get_stats(fx->catalog, &stats);
    return stats;
}

static inline struct context_info stat_of(struct fixture *fx, struct context *context)
{
    struct context_info info;
    struct error err = { 0 };
    ASSERT_OK(catalog_stat(fx->catalog, context_id(context), &fx->arena, &info, &err), err);
    return info;
}

/* Everything; how many findings, the first of them in `text`. */
static inline size_t verify(struct fixture *fx, char text[256])
{
    struct walk_args args = { .context_id = 0 };
    struct error err = { 0 };
    unsigned char cursor[LIMIT_CURSOR_BYTES];
    size_t findings = 0;
    do {
        struct verify_step step = { 0 };
        ASSERT_OK(catalog_verify(fx->catalog, &args, &fx->arena, &step, &err), err);
        if (step.finding_count > 0 && findings == 0) snprintf(text, 256, "%s", step.findings[0]);
        findings += step.finding_count;
        if (step.cursor_bytes > 0) memcpy(cursor, step.cursor, step.cursor_bytes);
        args.cursor = cursor;
        args.cursor_bytes = step.cursor_bytes;
    } while (args.cursor_bytes > 0);
    return findings;
}

static inline void expect_clean(struct fixture *fx)
{
    char text[256];
    if (verify(fx, text) > 0) fail_msg("verify: %s", text);
}

enum { QUERIES = 3, SEGMENT_BYTES = 2 * 2 * (48 + 1024 * 16 * 2) + 48 + 4096 }; /* with ids */

/* QUERIES queries at the end of what is stored; o (QUERIES, H, D). */
static inline void ask(struct fixture *fx, struct context *context, double target, float *o,
                struct quality *quality)
{
    size_t heads = fx->model.query_heads, dim = fx->model.head_dim;
    float q[QUERIES * 4 * 64], lse[QUERIES * 4];
    uint64_t positions[QUERIES];
    for (size_t i = 0; i < QUERIES * heads * dim; i++) q[i] = fixture_value(78, 1, 9, i) * 2;
    for (size_t i = 0; i < QUERIES; i++) positions[i] = context_layer_tokens(context, 1);
    struct query query = {
        .layer = 1,
        .q = { .data = q, .dtype = DTYPE_FP32, .dims = 3, .shape = { QUERIES, heads, dim } },
        .positions = positions,
        .target_error = target,
    };
    struct partial partial = { .o = o, .lse = lse, .rows = QUERIES * heads, .head_dim = dim };
    struct error err = { 0 };
    ASSERT_OK(context_attend(context, &query, &fx->arena, &partial, quality, &err), err);
}

/* The answers at a target are within three times of it. */
static inline void expect_answers(struct fixture *fx, struct context *context, double target)
{
    size_t dim = fx->model.head_dim, rows = QUERIES * fx->model.query_heads;
    float exact[QUERIES * 4 * 64], close[QUERIES * 4 * 64];
    struct quality quality;
    ask(fx, context, 0, exact, &quality);
    assert_true(quality.exact);
    assert_int_equal(quality.bytes_read, quality.bytes_exact);
    ask(fx, context, target, close, &quality);
    for (size_t i = 0; i < rows; i++) {
        double difference = 0, norm = 0;
        for (size_t d = i * dim; d < (i + 1) * dim; d++) {
            difference += pow((double)exact[d] - (double)close[d], 2);
            norm += pow((double)exact[d], 2);
        }
        if (sqrt(difference) > 3 * target * sqrt(norm))
            fail_msg("answer %zu: error %g at a target of %g", i, sqrt(difference / norm), target);
    }
}

#endif
