/* SPDX-License-Identifier: Apache-2.0 */
/* test_graph.c — what the graph of `retrieval-attention` answers: recall on queries that are far
 * from all keys, and attention against sums in double over what must have been read. */
#include "index/graph.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "tests/unit/graph_fixture.h"

/* Lists of 100 are exact among so few nodes, lists of 40 are searched for in the graph. */
static void test_recall(void **state)
{
    (void)state;
    static const double lists[] = { 100, 40 };
    for (size_t i = 0; i < 2; i++) {
        struct fixture fx;
        struct past shape = { .query_heads = 4,
                              .kv_heads = 2,
                              .head_dim = 64,
                              .tokens = 4000,
                              .queries = 12,
                              .dtype = DTYPE_FP16 };
        setup(&fx, &shape);
        set(&fx, GRAPH_L, lists[i]);
        struct layer_index *version = built(&fx, NULL);
        struct index_quality quality;
        double found = recall(&fx, version, 20, &quality);
        double share = (double)quality.rows[INDEX_EXACT] /
                       (double)(shape.queries * shape.query_heads * shape.tokens);
        print_message("lists of %.0f: recall@20 %.3f reading %.3f of the keys\n", lists[i], found,
                      share);
        assert_true(found > 0.85);
        assert_true(share < 0.25);
        layer_index_put(version);
        teardown(&fx);
    }
}

/* A list that is as long as the middle range, less one: all nodes are met on the way. */
static void read_all(struct fixture *fx)
{
    set(fx, GRAPH_EF, (double)(fx->past.tokens - SINKS - WINDOW - 1));
}

static void test_search_whole(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_index *version = built(&fx, NULL);
    read_all(&fx);
    struct index_hits truth = exact(&fx.past, 50), found = hits_new(&fx.past, 50);
    struct index_quality quality = search(&fx, version, &found);
    size_t count = 3 * 4 * 50;
    for (size_t i = 0; i < count; i++) {
        if (truth.ids[i] == found.ids[i]) continue;
        assert_true(fabsf(truth.scores[i] - found.scores[i]) < 1e-5F);
    }
    /* the middle once per query head, the rest once per KV head */
    assert_int_equal(quality.rows[INDEX_EXACT], 12 * 1120 + 2 * 80);
    hits_free(&truth);
    hits_free(&found);
    layer_index_put(version);
    teardown(&fx);
}

/* Sinks, window and the exact k best of the middle. */
static void choose(const struct past *past, size_t i, size_t h, size_t k, bool *ret_chosen)
{
    uint64_t limit = past->limits[i];
    for (size_t t = 0; t < past->tokens; t++)
        ret_chosen[t] = t < limit && (t < SINKS || t + WINDOW >= limit);
    for (size_t n = 0; n < k; n++) {
        double best = -INFINITY;
        size_t at = 0;
        for (size_t t = SINKS; t < past->tokens && t + WINDOW < limit; t++) {
            double score = past_score(past, i, h, t);
            if (ret_chosen[t] || score <= best) continue;
            best = score;
            at = t;
        }
        if (best > -INFINITY) ret_chosen[at] = true;
    }
}

/* Static pattern and hits, each token once; also where a query sees less than the version has. */
static void test_attend_top_k(void **state)
{
    (void)state;
    static const uint64_t limits[] = { 1200, 1199, 700, 120 };
    struct fixture fx;
    struct past shape = small;
    shape.queries = 1;
    setup(&fx, &shape);
    struct layer_index *version = built(&fx, NULL);
    struct arena arena;
    arena_init(&arena, 16 << 20);
    set(&fx, GRAPH_K, 30);
    for (size_t turn = 0; turn < 4; turn++) {
        fx.past.limits[0] = limits[turn];
        set(&fx, GRAPH_EF, (double)(limits[turn] - SINKS - WINDOW - 1));
        struct index_args args = ask_args(&fx.past);
        struct reply reply;
        struct plan plan;
        reply_init(&reply, &fx.past);
        arena_reset(&arena);
        assert_int_equal(plan_init(&plan, &arena, NULL), 0);
        args.plan = &plan;
        assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &reply), 0);
        for (size_t h = 0; h < 4; h++) {
            bool chosen[1200], told[1200];
            choose(&fx.past, 0, h, 30, chosen);
            subset_of_plan(&plan, 0, h, 1200, told);
            assert_memory_equal(told, chosen, sizeof told);
            assert_true(subset_equals(&fx.past, &reply, 0, h, chosen));
            assert_true(isnan(reply.quality.predicted_error[h]));
            assert_false(reply.quality.limited[h]);
            assert_true(isnan(reply.quality.mass[h * INDEX_LEVELS + INDEX_EXACT]));
        }
        reply_fini(&reply);
    }
    arena_fini(&arena);
    layer_index_put(version);
    teardown(&fx);
}

static double error_of(const struct reply *reply, const struct reply *truth, size_t row)
{
    size_t head_dim = truth->answer.partial.head_dim;
    double apart = 0.0, norm = 0.0;
    for (size_t d = 0; d < head_dim; d++) {
        double a = (double)reply->answer.partial.o[row * head_dim + d];
        double b = (double)truth->answer.partial.o[row * head_dim + d];
        apart += (a - b) * (a - b);
        norm += b * b;
    }
    return sqrt(apart / norm);
}

static void make_truth(const struct past *past, struct reply *ret_truth)
{
    struct attend_args args = past_args(past);
    struct arena arena;
    reply_init(ret_truth, past);
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(attend(&args, &arena, &ret_truth->answer.partial, NULL), 0);
    arena_fini(&arena);
}

/* Everything is read: by DIPR with a wide band, node after node, and by a list so long that the
 * middle is read in order. */
static void test_attend_whole(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    past_cut(&fx.past, 333, &fx.random);
    fx.past.limits[1] = 1150;
    fx.past.limits[2] = 40;
    struct layer_index *version = built(&fx, NULL);
    struct reply reply, truth;
    struct index_args args = ask_args(&fx.past);
    make_truth(&fx.past, &truth);
    for (int turn = 0; turn < 3; turn++) {
        reply_init(&reply, &fx.past);
        set(&fx, GRAPH_DIPR, turn == 0 ? 1e-300 : 0.0);
        set(&fx, GRAPH_K, turn == 1 ? 1e6 : 20);
        set(&fx, GRAPH_EF, turn == 2 ? 1e6 : 20);
        assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &reply), 0);
        for (size_t row = 0; row < 12; row++) {
            double error = error_of(&reply, &truth, row);
            if (error > 2e-6) fail_msg("turn %d row %zu: error %.3g", turn, row, error);
            assert_true(fabsf(reply.answer.partial.lse[row] - truth.answer.partial.lse[row]) <
                        2e-6F);
            assert_true(reply.quality.predicted_error[row] == 0.0F);
            assert_true(reply.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] > 0.999999F);
        }
        reply_fini(&reply);
    }
    reply_fini(&truth);
    layer_index_put(version);
    teardown(&fx);
}

/* All tokens with a share of the best weight, whatever their number. */
static void test_dipr(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct layer_index *version = built(&fx, NULL);
    struct index_args args = ask_args(&fx.past);
    struct reply reply;
    reply_init(&reply, &fx.past);
    set(&fx, GRAPH_DIPR, 0.02);
    set(&fx, GRAPH_EF, 1120); /* only the band decides */
    assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &reply), 0);
    for (size_t row = 0; row < 12; row++) {
        bool chosen[1200];
        double best = -INFINITY;
        for (size_t t = 0; t < 1200; t++)
            if (t < 32 || t >= 1168 || (t >= SINKS && t < 1200 - WINDOW))
                best = fmax(best, past_score(&fx.past, row / 4, row % 4, t));
        for (size_t t = 0; t < 1200; t++)
            chosen[t] = t < SINKS || t + WINDOW >= 1200 ||
                        past_score(&fx.past, row / 4, row % 4, t) >= best + log(0.02);
        assert_true(subset_equals(&fx.past, &reply, row / 4, row % 4, chosen));
    }
    reply_fini(&reply);
    layer_index_put(version);
    teardown(&fx);
}

/* A sample instead of nothing: nearer to the truth, and an error of the right size. */
static void test_tail(void **state)
{
    (void)state;
    struct fixture fx;
    struct past shape = { .query_heads = 4, .kv_heads = 2, .head_dim = 32, .tokens = 3000,
                          .queries = 20, .dtype = DTYPE_BF16 };
    setup(&fx, &shape);
    struct layer_index *version = built(&fx, NULL);
    for (size_t i = 0; i < 20 * 4 * 32; i++) fx.past.q[i] *= 0.3F; /* a heavy tail */
    struct index_args args = ask_args(&fx.past);
    struct reply dropped, estimated, truth;
    make_truth(&fx.past, &truth);
    reply_init(&dropped, &fx.past);
    reply_init(&estimated, &fx.past);
    set(&fx, GRAPH_EF, 200);
    assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &dropped), 0);
    set(&fx, GRAPH_TAIL, 1);
    assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &estimated), 0);
    double without = 0.0, with = 0.0, predicted = 0.0;
    for (size_t row = 0; row < 80; row++) {
        const float *mass = estimated.quality.mass + row * INDEX_LEVELS;
        without += error_of(&dropped, &truth, row);
        with += error_of(&estimated, &truth, row);
        predicted += (double)estimated.quality.predicted_error[row];
        assert_true(fabsf(mass[INDEX_EXACT] + mass[INDEX_CLUSTERS] - 1.0F) < 1e-5F);
    }
    print_message("error without tail %.3f, with %.3f, predicted %.3f\n", without / 80, with / 80,
                  predicted / 80);
    assert_true(with < 0.5 * without);
    assert_true(predicted > 0.7 * with && predicted < 1.4 * with);
    reply_fini(&dropped);
    reply_fini(&estimated);
    reply_fini(&truth);
    layer_index_put(version);
    teardown(&fx);
}

/* Keys and queries that are stored unrotated. */
static void test_rope(void **state)
{
    (void)state;
    struct fixture fx;
    setup(&fx, &small);
    struct rope rope;
    struct rope_config config = { .theta = 1e4 };
    assert_int_equal(rope_init(&config, 32, &rope, NULL), 0);
    struct layer_source source = { .rope = &rope };
    struct layer_index *version = NULL;
    assert_int_equal(build(&fx, 1200, &source, NULL, &version), 0);
    set(&fx, GRAPH_EF, 1118);
    set(&fx, GRAPH_K, 30);
    struct index_args args = ask_args(&fx.past);
    args.attend.rope = &rope;
    struct reply reply;
    reply_init(&reply, &fx.past);
    assert_int_equal(reply_ask(&graph_type, version, &args, fx.options, &reply), 0);
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t t = 0; t < 1200; t++) { /* the truth's keys and queries */
        rope_angles(&rope, t, cos, sin);
        for (size_t g = 0; g < 2; g++)
            rope_apply(&rope, cos, sin, fx.past.k + (g * 1200 + t) * 32, 1);
    }
    for (size_t i = 0; i < 3; i++) {
        rope_angles(&rope, fx.past.positions[i], cos, sin);
        rope_apply(&rope, cos, sin, fx.past.q + i * 128, 4);
    }
    for (size_t row = 0; row < 12; row++) {
        bool chosen[1200];
        choose(&fx.past, row / 4, row % 4, 30, chosen);
        assert_true(subset_equals(&fx.past, &reply, row / 4, row % 4, chosen));
    }
    reply_fini(&reply);
    layer_index_put(version);
    teardown(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recall),
        cmocka_unit_test(test_search_whole),
        cmocka_unit_test(test_attend_top_k),
        cmocka_unit_test(test_attend_whole),
        cmocka_unit_test(test_dipr),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_rope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
