/* SPDX-License-Identifier: Apache-2.0 */
/* cases.h — what the tests of emulated kernels draw, and the truth in float64 that they compare
 * with.
 *
 * Rows are in memory of exactly their size, so that AddressSanitizer sees every read beside them;
 * results are NaN before a launch, so that what was not written is not close to anything.
 */
#ifndef MEMD_TESTS_SIMT_CASES_H
#define MEMD_TESTS_SIMT_CASES_H

#include "attention/cuda/launch.h"
#include "attention/rope.h"
#include "attention/softmax.h"
#include "tests/kernels/checks.h"
#include "tests/simt/emulator.h"

/* NORMAL: N(0, 1). HUGE: whole numbers, whose scores are exact and thousands apart. VAST: scores of
 * 0 and ±6e36. INFINITE: scores of 0 and, by overflow, -inf, which counts as not visible. */
enum fill { FILL_NORMAL, FILL_HUGE, FILL_VAST, FILL_INFINITE, FILLS };

static const uint32_t case_dtypes[][2] = { { DTYPE_FP16, DTYPE_FP16 }, { DTYPE_BF16, DTYPE_BF16 },
                                           { DTYPE_FP32, DTYPE_FP32 }, { DTYPE_FP32, DTYPE_FP16 },
                                           { DTYPE_FP32, DTYPE_BF16 } };
static const uint32_t case_dims[] = { 64, 80, 96, 128, 256 };
static const uint32_t case_counts[] = { 0, 1, 31, 33, 1025 };
enum {
    CASE_DTYPES = sizeof case_dtypes / sizeof case_dtypes[0],
    CASE_DIMS = sizeof case_dims / sizeof case_dims[0],
    CASE_COUNTS = sizeof case_counts / sizeof case_counts[0],
};

/* Which values of any two properties have met in one launch: not every combination can be run,
 * every pair can, and a test shows that it was. */
enum { CASE_AXES = 7, CASE_VALUES = 8 };
struct case_pairs {
    const char *names[CASE_AXES];
    unsigned values[CASE_AXES]; /* 0 … values-1 each; 0: there is no such property */
    bool met[CASE_AXES][CASE_AXES][CASE_VALUES][CASE_VALUES];
};

static inline void case_meet(struct case_pairs *pairs, const unsigned *values)
{
    for (unsigned a = 0; a < CASE_AXES; a++)
        for (unsigned b = 0; b < CASE_AXES; b++) pairs->met[a][b][values[a]][values[b]] = true;
}

static inline void case_pairs_end(struct checks *checks, const struct case_pairs *pairs)
{
    for (unsigned a = 0; a < CASE_AXES; a++)
        for (unsigned b = 0; b < a; b++)
            for (unsigned i = 0; i < pairs->values[a] * pairs->values[b]; i++) {
                unsigned x = i / pairs->values[b], y = i % pairs->values[b];
                if (pairs->met[a][b][x][y]) checks->passed++;
                else checks->failed++;
                if (!pairs->met[a][b][x][y])
                    printf("FAILED %s %u never met %s %u\n", pairs->names[a], x, pairs->names[b],
                           y);
            }
}

static inline float case_key(enum fill fill, uint32_t d, uint64_t *random)
{
    if (fill == FILL_NORMAL) return checks_normal(random);
    if (fill == FILL_HUGE) return (float)random_below(random, 5) - 2.0F;
    if (d != 0) return 0.0F;
    if (fill == FILL_VAST) return ((float)random_below(random, 3) - 1.0F) * 6e4F;
    return random_below(random, 2) == 0 ? 0.0F : -6e4F;
}

static inline float case_query(enum fill fill, uint32_t d, uint32_t head_dim, uint64_t *random)
{
    if (fill == FILL_NORMAL) return checks_normal(random) / sqrtf((float)head_dim);
    if (fill == FILL_HUGE) return ((float)random_below(random, 5) - 2.0F) * 1024.0F;
    if (d != 0) return 0.0F;
    return fill == FILL_VAST ? 1e32F : 3e38F;
}

/* `count` rows of D elements. */
static inline void *case_rows(enum fill fill, bool keys, uint32_t dtype, size_t count,
                              uint32_t head_dim, uint64_t *random)
{
    size_t element = dtype_bytes(dtype);
    size_t bytes = count * head_dim * element;
    unsigned char *rows = malloc(bytes > 0 ? bytes : 1);
    if (rows == NULL) exit(1);
    for (size_t i = 0; i < count * head_dim; i++) {
        float value =
            keys ? case_key(fill, (uint32_t)(i % head_dim), random) : checks_normal(random);
        half_store(&value, 1, dtype, rows + i * element);
    }
    return rows;
}

static inline float *case_queries(enum fill fill, size_t count, uint32_t head_dim,
                                  uint64_t *random)
{
    float *q = checks_alloc(count * head_dim * sizeof *q);
    for (size_t i = 0; i < count * head_dim; i++)
        q[i] = case_query(fill, (uint32_t)(i % head_dim), head_dim, random);
    return q;
}

static inline float *case_results(size_t count)
{
    float *values = checks_alloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = NAN;
    return values;
}

/* One row of float64 attention, from scores and values that somebody fetches. */
struct truth_row {
    double *scores; /* (count), -inf: not seen */
    const float *values; /* (count, D) */
    size_t count, head_dim;
};

static inline void truth_attend(const struct truth_row *row, float *ret_o, float *ret_lse)
{
    double top = -INFINITY, sum = 0.0;
    for (size_t i = 0; i < row->count; i++) top = fmax(top, row->scores[i]);
    for (size_t i = 0; top > -INFINITY && i < row->count; i++)
        sum += row->scores[i] = exp(row->scores[i] - top);
    for (size_t d = 0; d < row->head_dim; d++) {
        double value = 0.0;
        for (size_t i = 0; sum > 0.0 && i < row->count; i++)
            value += row->scores[i] / sum * (double)row->values[i * row->head_dim + d];
        ret_o[d] = (float)value;
    }
    *ret_lse = sum > 0.0 ? (float)(top + log(sum)) : -INFINITY;
}

/* A launch, its rc and the emulator's objection. */
static inline void case_launched(struct checks *checks, const char *what, int rc)
{
    const char *failure = simt_take_failure();
    if (rc == 0 && failure == NULL) {
        checks->passed++;
        return;
    }
    if (checks->failed++ < CHECKS_SHOWN)
        printf("FAILED %s: launch gave %d, %s\n", what, rc, failure == NULL ? "" : failure);
}

/* The table of a rope for kernels. turns (rotary_dims / 2), of the caller. */
static inline struct launch_rope case_rope(const struct rope *rope, uint64_t *turns)
{
    const double two_pi = 6.283185307179586476925;
    for (size_t i = 0; i < rope->rotary_dims / 2; i++)
        turns[i] = (uint64_t)(rope->inv_freq[i] / two_pi * 0x1p64);
    return (struct launch_rope){ .turns = turns, .rotary_dims = (uint32_t)rope->rotary_dims,
                                 .pairing = (uint32_t)rope->pairing,
                                 .magnitude = (float)rope->magnitude };
}

/* Leave out each barrier of the kernel that `run` launches: does at least one order of threads then
 * give something else? `same` compares what the last run gave with what is right. */
static inline void case_barriers(struct checks *checks, const char *what, void (*run)(void *arg),
                                 bool (*same)(void *arg), void *arg)
{
    int lines[16];
    if (!simt_is_emulated()) return;
    simt_take_barriers(lines, 16);
    run(arg);
    unsigned count = simt_take_barriers(lines, 16);
    if (count == 0 || !same(arg)) {
        checks->failed++;
        printf("FAILED %s: %u barriers, %s\n", what, count, same(arg) ? "right" : "wrong");
    }
    for (unsigned i = 0; i < count; i++) {
        bool seen = false;
        simt_leave_out_barrier(lines[i]);
        for (int order = 0; order < SIMT_ORDERS; order++) {
            simt_set_order((enum simt_order)order, 5);
            run(arg);
            seen |= !same(arg);
        }
        if (seen) checks->passed++;
        else checks->failed++;
        if (!seen) printf("FAILED %s: nothing shows that line %d is left out\n", what, lines[i]);
    }
    simt_leave_out_barrier(0);
    simt_take_failure();
}

#endif
