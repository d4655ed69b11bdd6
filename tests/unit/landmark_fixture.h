/* SPDX-License-Identifier: Apache-2.0 */
/* landmark_fixture.h — a random past with landmarks, and the method `landmark` asked about it. */
#ifndef MEMD_TESTS_UNIT_LANDMARK_FIXTURE_H
#define MEMD_TESTS_UNIT_LANDMARK_FIXTURE_H

#include "attention/rope.h"
#include "memory/methods/landmark.h"
#include "memory/methods/methods.h"
#include "tests/unit/subset.h"

enum { K, BLOCKS, SHARE, POSITIONS, GATE_TOKEN, CUTOFF };
enum { STINGY = 1, ORIGINAL = 2 };

struct setting {
    struct past past;
    unsigned char *marks; /* (T) */
    struct columns columns;
    struct rope rope;
    bool rotates;
    double options[OPTIONS_MAX];
    float *gate; /* (G, D) */
    struct param item;
    struct params params;
    struct fold *fold;
    struct reading reading;
    struct reply reply, local;
};

static inline const struct method *landmark(void)
{
    return &method_landmark;
}

static inline struct fold_source source_of(struct setting *set)
{
    struct past *past = &set->past;
    for (size_t i = 0; i < past->kv_heads * past->view_count; i++) {
        past->views[i].columns = set->marks + past->views[i].position;
        past->views[i].columns_stride_bytes = 1;
    }
    return (struct fold_source){ .rows = { past->views, past->view_count, past->head_dim,
                                           set->rotates ? &set->rope : NULL },
                                 .kv_heads = past->kv_heads,
                                 .query_heads = past->query_heads,
                                 .head_dim = past->head_dim,
                                 .columns = &set->columns,
                                 .options = set->options };
}

/* past, marks and options are given. */
static inline void set_up(struct setting *set, uint64_t *random)
{
    struct past *past = &set->past;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, past->head_dim, &set->rope, NULL), 0);
    columns_init(COLUMNS_MARKS, past->query_heads, past->head_dim, &set->columns);
    set->gate = past_alloc(past->kv_heads * past->head_dim, sizeof(float));
    for (size_t i = 0; i < past->kv_heads * past->head_dim; i++)
        set->gate[i] = 2.0F * random_float(random);
    set->item = (struct param){ .name = "gate",
                                .layer = PARAM_ALL_LAYERS,
                                .value = { .data = set->gate,
                                           .dtype = DTYPE_FP32,
                                           .dims = 2,
                                           .shape = { past->kv_heads, past->head_dim } } };
    set->params = (struct params){ &set->item, 1, 1 };
    struct fold_source source = source_of(set);
    assert_int_equal(landmark()->fold->open(&source, &set->fold, NULL), 0);
    uint64_t end = past->tokens / 3; /* rows come in pieces: it must not matter */
    for (; set->fold->tokens < past->tokens; end = past->tokens)
        assert_int_equal(landmark()->fold->advance(set->fold, &source, end, NULL), 0);
    set->reading = (struct reading){ .attend = past_args(past),
                                     .fold = set->fold,
                                     .layers = 1,
                                     .options = set->options,
                                     .params = &set->params,
                                     .tokens = past->tokens };
    if (set->rotates) set->reading.attend.rope = &set->rope;
    reply_init(&set->reply, past);
    reply_init(&set->local, past);
}

static inline void take_down(struct setting *set)
{
    landmark()->fold->free(set->fold);
    free(set->gate);
    free(set->marks);
    reply_fini(&set->reply);
    reply_fini(&set->local);
    past_free(&set->past);
}

static inline int ask(struct setting *set, struct error *err)
{
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    int rc = landmark()->attend(landmark(), &set->reading, &arena, &set->reply.answer, err);
    arena_fini(&arena);
    return rc;
}

#endif
