/* SPDX-License-Identifier: Apache-2.0 */
/* windowed.h — a past that grows on the host, its window on a fake device, and questions that go to
 * both. For tests that have cmocka.
 */
#ifndef MEMD_TESTS_SIMT_WINDOWED_H
#define MEMD_TESTS_SIMT_WINDOWED_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/attend.h"
#include "attention/cuda/accelerator.h"
#include "attention/cuda/accelerator_state.h"
#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/tensor.h"
#include "tests/kernels/tolerance.h"
#include "tests/random.h"
#include "tests/simt/emulator.h"
#include "tests/simt/fake_device.h"

enum { G = 2, H = 6, D = 64, SINKS = 3, RING = 50, TOKENS_MAX = 400, VIEW_TOKENS = 64 };
enum { WINDOW_BYTES = (SINKS + RING) * G * D * 2 * 2 };

struct past {
    uint16_t k[TOKENS_MAX * G * D], v[TOKENS_MAX * G * D]; /* (T, G, D) fp16 */
    uint64_t tokens;
    struct rope *rope;
    struct accelerator *accelerator;
    struct window *window;
};

static uint64_t random_state;
static struct rope rope;
static unsigned told; /* on_lost */

static inline void on_lost(void *arg, const char *why)
{
    (void)arg;
    (void)why;
    told++;
}

static inline struct accelerator_config windowed_config(uint64_t window_bytes)
{
    return (struct accelerator_config){ .ordinal = -1, .window_bytes = window_bytes,
                                        .travel_bytes = 1 << 20, .sink_tokens = SINKS,
                                        .window_tokens = RING, .on_lost = on_lost };
}

static inline struct accelerator *open_fake(uint64_t window_bytes)
{
    struct accelerator *accelerator = NULL;
    struct error err = { 0 };
    struct accelerator_config config = windowed_config(window_bytes);
    fake_device_lose(0);
    fake_device_limit(UINT64_C(1) << 30);
    if (accelerator_open(&fake_device_table, &config, &accelerator, &err) < 0) fail_msg("%s",
                                                                                      err.text);
    return accelerator;
}

static inline struct past *past_new(struct accelerator *accelerator, struct rope *with)
{
    struct past *past = calloc(1, sizeof *past);
    assert_non_null(past);
    past->rope = with;
    past->accelerator = accelerator;
    past->window = window_new(accelerator, &(struct window_shape){ G, D, DTYPE_FP16, with });
    assert_non_null(past->window);
    return past;
}

static inline void past_free(struct past *past)
{
    window_free(past->window);
    free(past);
}

static inline struct tensor rows_of(const uint16_t *from, uint64_t position, size_t count)
{
    return (struct tensor){ .data = from + position * G * D, .dtype = DTYPE_FP16, .dims = 3,
                            .shape = { count, G, D } };
}

/* Grow by `count` tokens; feed the window, or leave it behind. */
static inline void grow(struct past *past, size_t count, bool feed)
{
    assert_true(past->tokens + count <= TOKENS_MAX);
    for (size_t i = past->tokens * G * D; i < (past->tokens + count) * G * D; i++) {
        past->k[i] = half_to_fp16(2.0F * random_float(&random_state));
        past->v[i] = half_to_fp16(random_float(&random_state));
    }
    struct tensor k = rows_of(past->k, past->tokens, count);
    struct tensor v = rows_of(past->v, past->tokens, count);
    if (feed) window_feed(past->window, past->tokens, &k, &v);
    past->tokens += count;
}

struct question {
    size_t queries;
    struct attend_device device;
    float q[8 * H * D];
    uint64_t positions[8], limits[8];
    struct view views[G * (TOKENS_MAX / VIEW_TOKENS + 1)];
    struct attend_args args;
};

static inline void ask(const struct past *past, size_t queries, struct question *question)
{
    size_t views = (size_t)(past->tokens + VIEW_TOKENS - 1) / VIEW_TOKENS;
    *question = (struct question){ .queries = queries };
    for (size_t i = 0; i < queries * H * D; i++)
        question->q[i] = 2.0F * random_float(&random_state);
    for (size_t i = 0; i < queries; i++) {
        question->positions[i] = past->tokens + i;
        question->limits[i] = i == 0 ? past->tokens : random_below(&random_state, past->tokens + 2);
    }
    for (size_t i = 0; i < G * views; i++) {
        size_t g = i / views, first = i % views * VIEW_TOKENS;
        size_t at = (first * G + g) * D, left = (size_t)past->tokens - first;
        question->views[i] = (struct view){
            .k = past->k + at, .v = past->v + at, .k_stride_bytes = sizeof(uint16_t) * G * D,
            .v_stride_bytes = sizeof(uint16_t) * G * D, .position = first, .dtype = DTYPE_FP16,
            .tokens = left < VIEW_TOKENS ? left : VIEW_TOKENS };
    }
    question->args = (struct attend_args){
        .q = { .data = question->q, .dtype = DTYPE_FP32, .dims = 3, .shape = { queries, H, D } },
        .positions = question->positions, .limits = question->limits, .scale = 0.125F,
        .rope = past->rope, .views = question->views, .kv_heads = G, .view_count = views };
    question->device = (struct attend_device){ .accelerator = past->accelerator,
                                               .window = past->window };
    question->args.device = &question->device;
}

static inline void compare(const struct partial *got, const struct partial *truth)
{
    struct near near = tolerance_of(DTYPE_FP16)->kernel;
    for (size_t i = 0; i < truth->rows * truth->head_dim; i++)
        if (!close_to(got->o[i], (double)truth->o[i], near))
            fail_msg("o[%zu] is %.9g, on the CPU %.9g", i, (double)got->o[i],
                     (double)truth->o[i]);
    for (size_t i = 0; i < truth->rows; i++)
        if (!close_to(got->lse[i], (double)truth->lse[i], near))
            fail_msg("lse[%zu] is %.9g, on the CPU %.9g", i, (double)got->lse[i],
                     (double)truth->lse[i]);
}

static inline void on_cpu(const struct question *question, const struct partial *ret_truth)
{
    struct arena arena;
    struct attend_args args = question->args;
    args.device = NULL;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(attend(&args, &arena, ret_truth, NULL), 0);
    arena_fini(&arena);
}

/* Ask accelerator and CPU; returns the accelerator's rc. Compared where it answered. */
static inline int check(struct past *past, size_t queries)
{
    static struct question question;
    static float o[2][8 * H * D], lse[2][8 * H];
    struct partial got = { o[0], lse[0], queries * H, D };
    struct partial truth = { o[1], lse[1], queries * H, D };
    struct error err = { 0 };
    ask(past, queries, &question);
    memset(o, 0xFF, sizeof o);
    int rc = accelerator_attend(&question.args, &got, &err);
    if (rc == 0) {
        on_cpu(&question, &truth);
        compare(&got, &truth);
    }
    return rc;
}

static inline struct accelerator_stats stats_of(struct accelerator *accelerator)
{
    struct accelerator_stats stats;
    accelerator_get_stats(accelerator, &stats);
    return stats;
}

#endif
