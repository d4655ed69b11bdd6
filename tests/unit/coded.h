/* SPDX-License-Identifier: Apache-2.0 */
/* coded.h — a random stored past (past.h) whose full segments have planes. */
#ifndef MEMD_TESTS_UNIT_CODED_H
#define MEMD_TESTS_UNIT_CODED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>

#include "base/arena.h"
#include "index/planes.h"
#include "tests/unit/past.h"

/* A prediction is right on the median (index/progressive.c). The more of a row's weight one token
 * has, the further the error of one draw may be off: of 4,000 rows as they are asked about here, of
 * queries up to three times as long as those of a past, the worst was 3.5 times what was predicted.
 */
#define PREDICTED_OFF 4.0

/* A past whose full segments have planes. */
struct coded {
    struct past past;
    struct planes *planes;             /* (G, view_count) */
    const struct planes **table;       /* (G, view_count) */
    unsigned char **payloads;          /* (G, view_count, 2) */
    const struct rope *rope;
};

static inline unsigned char *payload(size_t bytes)
{
    unsigned char *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == NULL) abort();
    return memory;
}

/* Mean of q_c² over the queries of KV head g. ret_square (D) */
static inline void mean_square(const struct past *past, size_t g, float *ret_square)
{
    size_t group = past->query_heads / past->kv_heads, head_dim = past->head_dim;
    for (size_t d = 0; d < head_dim; d++) ret_square[d] = 0.0F;
    for (size_t i = 0; i < past->queries; i++)
        for (size_t h = g * group; h < (g + 1) * group; h++)
            for (size_t d = 0; d < head_dim; d++) {
                float q = past->q[(i * past->query_heads + h) * head_dim + d];
                ret_square[d] += q * q / (float)(past->queries * group);
            }
}

/* Views of 1,024 tokens; planes for all but the last `open` of the full ones. */
static inline void code(struct coded *coded, size_t open, bool observed)
{
    struct past *past = &coded->past;
    struct planes_layout layout;
    planes_layout_init(past->head_dim, &layout);
    uint64_t random = 1;
    past_cut(past, past->tokens, &random);
    struct view *whole = past->views;
    size_t count = (past->tokens + PLANES_TOKENS - 1) / PLANES_TOKENS;
    size_t row_bytes = past->head_dim * dtype_bytes(past->dtype);
    past->views = past_alloc(past->kv_heads * count, sizeof *past->views);
    past->view_count = count;
    coded->planes = past_alloc(past->kv_heads * count, sizeof *coded->planes);
    coded->table = past_alloc(past->kv_heads * count, sizeof *coded->table);
    coded->payloads = past_alloc(past->kv_heads * count * 2, sizeof *coded->payloads);
    float *square = past_alloc(past->head_dim, sizeof *square);
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    for (size_t i = 0; i < past->kv_heads * count; i++) {
        size_t g = i / count, at = i % count * PLANES_TOKENS;
        struct view *view = &past->views[i];
        *view = whole[g];
        view->k = (const unsigned char *)view->k + at * row_bytes;
        view->v = (const unsigned char *)view->v + at * row_bytes;
        view->position = at;
        view->tokens = past->tokens - at < PLANES_TOKENS ? past->tokens - at : PLANES_TOKENS;
        if (view->tokens < PLANES_TOKENS || i % count + open >= count) continue;
        unsigned char **hi = &coded->payloads[2 * i], **lo = hi + 1;
        *hi = payload(layout.hi_bytes);
        *lo = payload(layout.lo_bytes);
        mean_square(past, g, square);
        struct planes_source source = { .view = view, .rope = coded->rope,
                                        .query_square = observed ? square : NULL,
                                        .queries = observed ? past->queries : 0 };
        assert_int_equal(planes_encode(&layout, &source, &arena, *hi, *lo, NULL), 0);
        assert_int_equal(planes_open(&layout, *hi, *lo, &coded->planes[i], NULL), 0);
        coded->table[i] = &coded->planes[i];
        arena_reset(&arena);
    }
    arena_fini(&arena);
    free(square);
    free(whole);
}

static inline void coded_free(struct coded *coded)
{
    for (size_t i = 0; i < coded->past.kv_heads * coded->past.view_count * 2; i++)
        free(coded->payloads[i]);
    free(coded->payloads);
    free(coded->planes);
    free(coded->table);
    past_free(&coded->past);
}

#endif
