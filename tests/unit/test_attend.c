/* SPDX-License-Identifier: Apache-2.0 */
/* test_attend.c — attention over views: any cut, any split, any number of threads, limits, stop, no
 * memory. The truth in float64 comes from NumPy (tests/golden/attention); here from a double loop
 * beside it.
 */
#include "attention/attend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "attention/rope.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "tests/kernels/tolerance.h"
#include "tests/unit/past.h"

#define ARENA_BYTES ((size_t)64 << 20)


static struct partial answer_new(const struct past *past)
{
    size_t rows = past->queries * past->query_heads;
    return (struct partial){ .o = past_alloc(rows * past->head_dim, sizeof(float)),
                             .lse = past_alloc(rows, sizeof(float)), .rows = rows,
                             .head_dim = past->head_dim };
}

static void answer_free(struct partial *answer)
{
    free(answer->o);
    free(answer->lse);
}

static struct partial ask(const struct past *past, const struct attend_args *args)
{
    struct partial answer = answer_new(past);
    struct arena arena;
    arena_init(&arena, ARENA_BYTES);
    struct error err = { 0 };
    int rc = attend(args, &arena, &answer, &err);
    if (rc != 0) fail_msg("attend: %d %s", rc, err.text);
    arena_fini(&arena);
    return answer;
}

/* Row i * H + h of the answer, from a double loop over the visible tokens. */
static void check_row(const struct past *past, const struct partial *answer, size_t i, size_t h)
{
    size_t row = i * past->query_heads + h, head_dim = past->head_dim;
    size_t g = h / (past->query_heads / past->kv_heads);
    double top = -INFINITY, sum = 0.0;
    double *o = past_alloc(head_dim, sizeof *o);
    for (size_t t = 0; t < past->limits[i]; t++) top = fmax(top, past_score(past, i, h, t));
    for (size_t t = 0; t < past->limits[i]; t++) {
        double weight = exp(past_score(past, i, h, t) - top);
        const float *v = past->v + (g * past->tokens + t) * head_dim;
        sum += weight;
        for (size_t d = 0; d < head_dim; d++) o[d] += weight * (double)v[d];
    }
    struct near near = { 1e-5F, 1e-6F };
    double lse = past->limits[i] == 0 ? -INFINITY : top + log(sum);
    if (!close_to(answer->lse[row], lse, near))
        fail_msg("lse of query %zu head %zu: %.9g, expected %.9g", i, h, (double)answer->lse[row],
                 lse);
    for (size_t d = 0; d < head_dim; d++) {
        double truth = past->limits[i] == 0 ? 0.0 : o[d] / sum;
        if (!close_to(answer->o[row * head_dim + d], truth, near))
            fail_msg("o of query %zu head %zu dim %zu: %.9g, expected %.9g", i, h, d,
                     (double)answer->o[row * head_dim + d], truth);
    }
    free(o);
}

static void test_shapes(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const size_t groups[] = { 1, 3, 4, 8 }, dims[] = { 8, 64, 80, 128 };
    static const size_t tokens[] = { 1, 2, 63, 700, 1300 };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 40; turn++) {
        struct past past = { .kv_heads = turn % 3 + 1, .head_dim = dims[turn / 4 % 4],
                             .tokens = tokens[turn % 5], .queries = turn % 4 + 1,
                             .dtype = dtypes[turn % 3] };
        past.query_heads = past.kv_heads * groups[turn % 4];
        past_make(&past, &random);
        past_cut(&past, 300, &random);
        struct attend_args args = past_args(&past);
        struct partial answer = ask(&past, &args);
        for (size_t i = 0; i < past.queries; i++)
            for (size_t h = 0; h < past.query_heads; h++) check_row(&past, &answer, i, h);
        answer_free(&answer);
        past_free(&past);
    }
}

/* Many queries: several blocks and, with large D, several waves. */
static void test_many_queries(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 16, .kv_heads = 2, .head_dim = 1024, .tokens = 40,
                         .queries = 150, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    struct partial answer = ask(&past, &args);
    for (size_t i = 0; i < past.queries; i += 7) check_row(&past, &answer, i, i % 16);
    check_row(&past, &answer, past.queries - 1, 15);
    answer_free(&answer);
    past_free(&past);
}

/* Threads change nothing, not a bit; other cuts into views change the last digits at most. */
static void test_threads_and_cuts(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 6, .kv_heads = 2, .head_dim = 64, .tokens = 6000,
                         .queries = 3, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    struct partial alone = ask(&past, &args);
    size_t count = alone.rows * alone.head_dim;
    for (size_t threads = 1; threads <= 4; threads++) {
        assert_int_equal(pool_open(threads, &args.pool, NULL), 0);
        struct partial together = ask(&past, &args);
        assert_memory_equal(together.o, alone.o, count * sizeof *alone.o);
        assert_memory_equal(together.lse, alone.lse, alone.rows * sizeof *alone.lse);
        answer_free(&together);
        pool_close(args.pool);
    }
    for (int round = 0; round < 10; round++) {
        past_cut(&past, (size_t)random_below(&random, 1500) + 1, &random);
        args = past_args(&past);
        struct partial cut = ask(&past, &args);
        for (size_t i = 0; i < count; i++)
            if (!close_to(cut.o[i], (double)alone.o[i], (struct near){ 1e-6F, 0.0F }))
                fail_msg("o[%zu]: %.9g, uncut %.9g", i, (double)cut.o[i], (double)alone.o[i]);
        answer_free(&cut);
    }
    answer_free(&alone);
    past_free(&past);
}

/* Views of any partition of the tokens, asked apart and merged, are the whole. */
static void test_merge_of_parts(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 4, .kv_heads = 1, .head_dim = 64, .tokens = 900,
                         .queries = 2, .dtype = DTYPE_BF16 };
    past_make(&past, &random);
    past_cut(&past, 50, &random);
    struct attend_args args = past_args(&past);
    struct partial whole = ask(&past, &args), merged = answer_new(&past);
    partial_clear(&merged);
    struct view *set = past_alloc(past.view_count, sizeof *set);
    for (size_t part = 0; part < 3; part++) { /* every third view, in descending order */
        args.views = set;
        args.view_count = 0;
        for (size_t i = past.view_count; i-- > 0;)
            if (i % 3 == part) set[args.view_count++] = past.views[i];
        struct partial answer = ask(&past, &args);
        partial_merge(&merged, &answer);
        answer_free(&answer);
    }
    for (size_t i = 0; i < whole.rows * whole.head_dim; i++)
        if (!close_to(merged.o[i], (double)whole.o[i], (struct near){ 2e-6F, 0.0F }))
            fail_msg("o[%zu]: %.9g, whole %.9g", i, (double)merged.o[i], (double)whole.o[i]);
    free(set);
    answer_free(&merged);
    answer_free(&whole);
    past_free(&past);
}

/* Keys stored unrotated and rotated while reading, against keys rotated beforehand. */
static void test_rope_while_reading(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 6, .kv_heads = 2, .head_dim = 128, .tokens = 777,
                         .queries = 3, .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    past_cut(&past, 200, &random);
    struct rope rope;
    struct rope_config config = { .theta = 1e4, .rotary_dims = 96 };
    assert_int_equal(rope_init(&config, past.head_dim, &rope, NULL), 0);
    struct attend_args args = past_args(&past);
    args.rope = &rope;
    struct partial reading = ask(&past, &args);
    float *k = (float *)(void *)past.k_rows;
    float cos[ROPE_PAIRS_MAX], sin[ROPE_PAIRS_MAX];
    for (size_t row = 0; row < past.kv_heads * past.tokens; row++) {
        rope_angles(&rope, row % past.tokens, cos, sin);
        rope_apply(&rope, cos, sin, k + row * past.head_dim, 1);
    }
    for (size_t i = 0; i < past.queries; i++) {
        rope_angles(&rope, past.positions[i], cos, sin);
        float *q = past.q + i * past.query_heads * past.head_dim;
        rope_apply(&rope, cos, sin, q, past.query_heads);
    }
    args.rope = NULL;
    struct partial before = ask(&past, &args);
    for (size_t i = 0; i < before.rows * before.head_dim; i++)
        if (!close_to(reading.o[i], (double)before.o[i], (struct near){ 2e-6F, 0.0F }))
            fail_msg("o[%zu]: %.9g, expected %.9g", i, (double)reading.o[i], (double)before.o[i]);
    answer_free(&reading);
    answer_free(&before);
    past_free(&past);
}

static void test_nothing_to_see(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 10,
                         .queries = 2, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    past.limits[0] = past.limits[1] = 0;
    for (int round = 0; round < 2; round++) { /* no visible token; no view at all */
        struct partial answer = ask(&past, &args);
        for (size_t i = 0; i < answer.rows * answer.head_dim; i++) assert_true(answer.o[i] == 0.0F);
        for (size_t i = 0; i < answer.rows; i++) assert_true(answer.lse[i] == -INFINITY);
        answer_free(&answer);
        args.view_count = 0;
        args.views = NULL;
    }
    past_free(&past);
}

struct patience {
    atomic_int asked;
    int limit;
};

static int lose_patience(void *arg)
{
    struct patience *patience = arg;
    return atomic_fetch_add(&patience->asked, 1) < patience->limit ? 0 : MEMD_EDEADLINE;
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 2, .kv_heads = 1, .head_dim = 64, .tokens = 5000,
                         .queries = 1, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    struct partial answer = answer_new(&past);
    for (int limit = 0; limit < 4; limit++) {
        struct patience patience = { .limit = limit };
        struct arena arena;
        struct error err = { 0 };
        arena_init(&arena, ARENA_BYTES);
        args.stop = lose_patience;
        args.stop_arg = &patience;
        memset(answer.o, 0x55, answer.rows * answer.head_dim * sizeof *answer.o);
        float before = answer.o[0];
        assert_int_equal(attend(&args, &arena, &answer, &err), MEMD_EDEADLINE);
        assert_int_equal(err.code, MEMD_EDEADLINE);
        assert_int_equal(patience.asked, limit + 1); /* nobody asks again */
        assert_memory_equal(&answer.o[0], &before, sizeof before);
        arena_fini(&arena);
    }
    answer_free(&answer);
    past_free(&past);
}

static void test_arena_limit(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 8, .kv_heads = 2, .head_dim = 64, .tokens = 3000,
                         .queries = 4, .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct attend_args args = past_args(&past);
    struct partial answer = answer_new(&past);
    size_t limit = 0;
    int rc = MEMD_ENOMEM;
    for (; rc != 0; limit += 4096) {
        struct arena arena;
        struct error err = { 0 };
        arena_init(&arena, limit);
        rc = attend(&args, &arena, &answer, &err);
        if (rc != 0) assert_int_equal(rc, MEMD_ENOMEM);
        assert_int_equal(err.code, rc);
        arena_fini(&arena);
    }
    assert_in_range(limit, 3 * 4096, (size_t)4 << 20);
    answer_free(&answer);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),          cmocka_unit_test(test_many_queries),
        cmocka_unit_test(test_threads_and_cuts), cmocka_unit_test(test_merge_of_parts),
        cmocka_unit_test(test_rope_while_reading), cmocka_unit_test(test_nothing_to_see),
        cmocka_unit_test(test_stop),            cmocka_unit_test(test_arena_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
