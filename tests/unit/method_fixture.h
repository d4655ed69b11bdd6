/* SPDX-License-Identifier: Apache-2.0 */
/* method_fixture.h — methods that exist in tests alone, for what storage keeps on a method's
 * behalf: columns and states.
 *
 * METHOD_TABLE(METHOD_FIXTURES) puts them into the table of methods. They answer a query by
 * comparing what they are given, of every token, with the rule of store_fixture.h; the answer is
 * that of exact attention where K and V are kept, and nothing where states are.
 *
 *     name            keeps
 *     test-marks      marks (small: a segment's are copied when they are mapped)
 *     test-queries    queries
 *     test-both       queries and marks
 *     test-planes     marks, beside planes
 *     test-states     states of 32 elements
 *     test-all        states of 48 elements, queries and marks
 *     test-sees-all   marks, and is given every row whatever the limits
 *     test-ring       states of 32 elements, and a ring of 40; retrieves what method_retrieves says
 *     test-wide-ring  the same with a ring of 4096
 */
#ifndef MEMD_TESTS_METHOD_FIXTURE_H
#define MEMD_TESTS_METHOD_FIXTURE_H

#include "tests/unit/store_fixture.h"

#include <assert.h>

#include "attention/softmax.h"
#include "index/rows.h"
#include "tests/unit/method_table.h"

/* Tokens below `cut` have this salt, those from it on the other one. */
static struct {
    uint32_t below, above;
    uint64_t cut;
} method_salts = { 1, 1, 0 };

/* What the last query of this thread was given. */
static _Thread_local struct {
    uint64_t tokens, rows;
    uint32_t layer, layers;
    uint64_t ring[40];
    size_t ring_count;
} method_saw;

static inline int method_differs(const struct reading *reading, uint64_t position, const char *what,
                                 struct error *err)
{
    return error_set(err, MEMD_ECORRUPT, "layer %u token %llu: %s differ", reading->layer,
                     (unsigned long long)position, what);
}

static inline int method_check_token(const struct reading *reading, const struct rows *rows,
                                     uint64_t position, size_t state_width, struct error *err)
{
    const struct columns *columns = &reading->columns;
    const struct tensor *q = &reading->attend.q;
    struct place place = { reading->layer, position };
    uint32_t salt = position < method_salts.cut ? method_salts.below : method_salts.above;
    const unsigned char *record = columns->mask != 0 ? rows_columns(rows, position) : NULL;
    if ((columns->mask & COLUMNS_MARKS) != 0 &&
        columns_marks(columns, record) != fixture_mark(salt, place))
        return method_differs(reading, position, "marks", err);
    size_t values = (columns->mask & COLUMNS_QUERIES) != 0 ? q->shape[1] * q->shape[2] : 0;
    for (size_t j = 0; j < values; j++) {
        if (half_from_fp16(columns_query(columns, record)[j]) != fixture_query(salt, place, j))
            return method_differs(reading, position, "queries", err);
    }
    float state[256];
    if (state_width > 0) {
        rows_keys(rows, 0, position, 1, state);
        rows_values(rows, 0, position, 1, state + state_width / 2);
    }
    for (size_t j = 0; j < state_width; j++) {
        if (state[j] != fixture_value(salt, place.layer, position, j + 300000))
            return method_differs(reading, position, "states", err);
    }
    return 0;
}

static inline int method_check_tokens(const struct method *method, const struct reading *reading,
                                      struct error *err)
{
    size_t width = method_state_width(method, reading->options);
    struct rows rows = { .views = reading->attend.views,
                         .view_count = reading->attend.view_count,
                         .head_dim = width > 0 ? width / 2 : reading->attend.q.shape[2],
                         .rope = reading->attend.rope };
    int rc = 0;
    method_saw.tokens = reading->tokens;
    method_saw.rows = rows_tokens(&rows);
    method_saw.layer = reading->layer;
    method_saw.layers = reading->layers;
    if (width > 0 && (reading->attend.kv_heads != 1 || reading->attend.rope != NULL))
        return error_set(err, MEMD_ECORRUPT, "%zu heads of states", reading->attend.kv_heads);
    for (uint64_t t = 0; rc == 0 && t < rows_tokens(&rows); t++)
        rc = method_check_token(reading, &rows, t, width, err);
    return rc;
}

static inline int method_attend_checked(const struct method *method, const struct reading *reading,
                                        struct arena *arena, const struct index_answer *ret_answer,
                                        struct error *err)
{
    int rc = method_check_tokens(method, reading, err);
    if (rc < 0) return rc;
    if (method->state_width == NULL)
        return method_attend_exactly(reading, arena, ret_answer, err);
    partial_clear(&ret_answer->partial);
    return 0;
}

static inline int method_search_checked(const struct method *method, const struct reading *reading,
                                        struct arena *arena, const struct index_hits *ret_hits,
                                        struct index_quality *ret_quality, struct error *err)
{
    int rc = method_check_tokens(method, reading, err);
    return rc < 0 ? rc : method_search_exactly(reading, arena, ret_hits, ret_quality, err);
}

/* Of a ring, when `tokens` are stored: about a quarter, another one each time. */
static inline bool method_retrieves(uint64_t position, uint64_t tokens)
{
    return ((position * 2654435761U) >> 7) % 4 == tokens % 4;
}

static inline int method_attend_ring(const struct method *method, const struct reading *reading,
                                     struct arena *arena, const struct index_answer *ret_answer,
                                     struct error *err)
{
    const struct lru *ring = reading->ring;
    uint64_t *found = arena_calloc(arena, ring->count + 1, sizeof *found);
    if (found == NULL) return error_set(err, MEMD_ENOMEM, "no memory for what was found");
    method_saw.ring_count = ring->count < 40 ? ring->count : 40;
    memcpy(method_saw.ring, ring->positions, method_saw.ring_count * sizeof *found);
    for (size_t i = 0; i < ring->count; i++)
        found[i] = method_retrieves(ring->positions[i], reading->tokens) ? ring->positions[i]
                                                                         : INDEX_NONE;
    *reading->uses = (struct ring_uses){ found, ring->count };
    return method_attend_checked(method, reading, arena, ret_answer, err);
}

static inline size_t method_ring_40(const double *options)
{
    (void)options;
    return 40;
}

static inline size_t method_ring_4096(const double *options)
{
    (void)options;
    return 4096;
}

static inline uint32_t method_keeps_marks(const double *options)
{
    (void)options;
    return COLUMNS_MARKS;
}

static inline uint32_t method_keeps_queries(const double *options)
{
    (void)options;
    return COLUMNS_QUERIES;
}

static inline uint32_t method_keeps_both(const double *options)
{
    (void)options;
    return COLUMNS_QUERIES | COLUMNS_MARKS;
}

static inline size_t method_width_32(const double *options)
{
    (void)options;
    return 32;
}

static inline size_t method_width_48(const double *options)
{
    (void)options;
    return 48;
}

static const struct option_table method_no_options = { .owner = "test" };

#define METHOD_CHECKED                                                           \
    .help = "for tests", .options = &method_no_options,                          \
    .attend = method_attend_checked, .search = method_search_checked

#define METHOD_RINGED                                                            \
    .state_width = method_width_32, .help = "for tests",                         \
    .options = &method_no_options, .attend = method_attend_ring,                 \
    .search = method_search_checked

static const struct method method_fixtures[] = {
    { .name = "test-marks", .columns = method_keeps_marks, METHOD_CHECKED },
    { .name = "test-queries", .columns = method_keeps_queries, METHOD_CHECKED },
    { .name = "test-both", .columns = method_keeps_both, METHOD_CHECKED },
    { .name = "test-planes", .columns = method_keeps_marks, .planes = true, METHOD_CHECKED },
    { .name = "test-sees-all", .columns = method_keeps_marks, .sees_all = true, METHOD_CHECKED },
    { .name = "test-states", .state_width = method_width_32, METHOD_CHECKED },
    { .name = "test-all", .state_width = method_width_48, .columns = method_keeps_both,
      METHOD_CHECKED },
    { .name = "test-ring", METHOD_RINGED, .ring = method_ring_40 },
    { .name = "test-wide-ring", METHOD_RINGED, .ring = method_ring_4096 },
};

#define METHOD_FIXTURES                                                                     \
    &method_fixtures[0], &method_fixtures[1], &method_fixtures[2], &method_fixtures[3],    \
        &method_fixtures[4], &method_fixtures[5], &method_fixtures[6], &method_fixtures[7],    \
        &method_fixtures[8]
static_assert(sizeof method_fixtures / sizeof method_fixtures[0] == 9, "all of them");

/* New contexts have this method; appends bring what it keeps. */
static inline void method_use(struct fixture *fx, const char *name)
{
    const struct method *method = method_find(name);
    assert_non_null(method);
    fx->method = method->name;
    fx->columns = method_columns(method, NULL);
    fx->state_width = method_state_width(method, NULL);
}

/* A fixture whose contexts have this method. */
static inline void method_begin(struct fixture *fx, const char *name)
{
    fixture_begin(fx);
    method_use(fx, name);
    method_salts.below = method_salts.above = 1;
    method_salts.cut = 0;
}

/* Columns and states of all tokens below `limit` are what was appended. */
static inline void method_expect(struct fixture *fx, struct context *context, uint64_t limit)
{
    struct answer answer;
    struct error err = { 0 };
    for (uint32_t layer = 0; layer < fx->model.layers; layer++)
        ASSERT_OK(fixture_attend(fx, context, layer, limit, &answer, &err), err);
}

#endif
