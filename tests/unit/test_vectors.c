/* SPDX-License-Identifier: Apache-2.0 */
/* test_vectors.c — rings of states: every search against a search in double that writes each slot
 * in turn, as the published code does. */
#include "index/vectors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/pool.h"
#include "index/index.h"
#include "tests/unit/past.h"

static const struct fold_type type = { .name = "vectors" };

static struct vectors *fold(const struct past *past, size_t sketch)
{
    struct fold_source source = { .rows = { past->views, past->view_count, past->head_dim, NULL } };
    struct vectors *vectors = NULL;
    assert_int_equal(vectors_new(&type, 2 * past->head_dim, sketch, &vectors, NULL), 0);
    for (uint64_t end = past->tokens / 3; vectors->base.tokens < past->tokens; end = past->tokens)
        assert_int_equal(vectors_advance(vectors, &source, end, NULL), 0);
    return vectors;
}

/* The best k slots, each as the token of a hit, of a ring that tokens 0 … limit-1 were written to,
 * one after the other. */
static void truth(const struct past *past, const struct vectors_args *args, size_t query,
                  struct ranked *ret_found)
{
    size_t half = past->head_dim, buckets = args->buckets;
    const float *q = args->q + query * 2 * half;
    struct ranked *all = past_alloc(args->slots, sizeof *all);
    for (uint64_t s = 0; s < args->slots; s++)
        all[s] = (struct ranked){ (double)VECTORS_UNWRITTEN, s };
    for (uint64_t t = 0; t < args->limits[query]; t++) {
        double dot = 0.0, square = 0.0;
        for (size_t d = 0; d < 2 * half; d++) {
            const float *rows = d < half ? past->k : past->v;
            double c = (double)rows[t * half + d % half];
            dot += (double)q[d] * c;
            square += c * c;
        }
        all[t % args->slots].score = args->metric == VECTORS_L2 ? 2.0 * dot - square : dot;
    }
    for (uint64_t s = 0; buckets > 0 && s < args->slots; s++) /* keep the best of each bucket */
        for (uint64_t o = s % buckets; o < args->slots; o += buckets)
            if (o != s && better_first(&all[o], &all[s]) < 0 && all[o].score > -1e30)
                all[s].score = -INFINITY;
    qsort(all, args->slots, sizeof *all, better_first);
    memcpy(ret_found, all, args->k * sizeof *all);
    free(all);
}

static void test_search(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    static const struct {
        size_t tokens, slots, k, buckets;
    } cases[] = { { 100, 64, 4, 0 },     { 100, 64, 4, 8 },        { 3, 64, 5, 0 },
                  { 3, 64, 5, 16 },      { 20000, 4096, 16, 512 }, { 20000, 4096, 16, 0 },
                  { 64, 64, 64, 0 },     { 500, 512, 16, 512 },    { 70, 64, 64, 64 },
                  { 9000, 16384, 16, 0 } };
    static const uint32_t dtypes[] = { DTYPE_FP32, DTYPE_FP16, DTYPE_BF16 };
    for (size_t turn = 0; turn < 40; turn++) {
        size_t at = turn % (sizeof cases / sizeof cases[0]), queries = turn % 5 * 8 + 1;
        struct past past = { .query_heads = 1,
                             .kv_heads = 1,
                             .head_dim = turn % 2 == 0 ? 16 : 24,
                             .tokens = cases[at].tokens,
                             .queries = queries,
                             .dtype = dtypes[turn % 3] };
        past_make(&past, &random);
        past_cut(&past, 300, &random);
        size_t width = 2 * past.head_dim, k = cases[at].k;
        float *q = past_alloc(queries * width, sizeof *q);
        for (size_t i = 0; i < queries * width; i++) q[i] = random_float(&random);
        struct vectors *vectors = fold(&past, 0);
        struct pool *pool = NULL;
        if (turn % 2 == 0) assert_int_equal(pool_open(2, &pool, NULL), 0);
        struct vectors_args args = { .vectors = vectors,
                                     .rows = { past.views, past.view_count, past.head_dim, NULL },
                                     .q = q,
                                     .limits = past.limits,
                                     .queries = queries,
                                     .slots = cases[at].slots,
                                     .k = k,
                                     .buckets = cases[at].buckets,
                                     .metric = turn % 4 == 3 ? VECTORS_DOT : VECTORS_L2,
                                     .pool = pool };
        uint64_t *slots = past_alloc(queries * k, sizeof *slots), states = 0;
        float *scores = past_alloc(queries * k, sizeof *scores);
        struct ranked *wanted = past_alloc(k, sizeof *wanted);
        struct arena arena;
        arena_init(&arena, (size_t)64 << 20);
        assert_int_equal(vectors_search(&args, &arena, slots, scores, &states, NULL), 0);
        for (size_t i = 0; i < queries; i++) {
            truth(&past, &args, i, wanted);
            for (size_t j = 0; j < k; j++)
                if (slots[i * k + j] != wanted[j].id ||
                    fabs((double)scores[i * k + j] - wanted[j].score) > 1e-3)
                    fail_msg("turn %zu query %zu rank %zu: slot %zu (%g), not %zu (%g)", turn, i, j,
                             (size_t)slots[i * k + j], (double)scores[i * k + j],
                             (size_t)wanted[j].id, wanted[j].score);
        }
        assert_true(states > 0 || past.limits[0] == 0);
        arena_fini(&arena);
        free(slots);
        free(scores);
        free(wanted);
        free(q);
        vectors_free(&vectors->base);
        pool_close(pool);
        past_free(&past);
    }
}

static void test_positions(void **state)
{
    (void)state;
    for (uint64_t written = 0; written < 30; written++) {
        uint64_t ring[8];
        for (size_t s = 0; s < 8; s++) ring[s] = INDEX_NONE;
        for (uint64_t t = 0; t < written; t++) ring[t % 8] = t;
        for (size_t s = 0; s < 8; s++) assert_true(vectors_position(8, written, s) == ring[s]);
    }
}

static void test_load_and_products(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct past past = { .query_heads = 1,
                         .kv_heads = 1,
                         .head_dim = 1024,
                         .tokens = 200,
                         .queries = 1,
                         .dtype = DTYPE_BF16 };
    past_make(&past, &random);
    past_cut(&past, 50, &random);
    struct rows rows = { past.views, past.view_count, 1024, NULL };
    uint64_t positions[150];
    float *states = past_alloc(150 * 2048, sizeof *states), products[150];
    for (size_t i = 0; i < 150; i++) positions[i] = i % 7 == 0 ? INDEX_NONE : 199 - i;
    vectors_load(&rows, positions, 150, states);
    for (size_t i = 0; i < 150; i++)
        for (size_t d = 0; d < 2048; d++) {
            size_t at = (199 - i) * 1024 + d % 1024;
            float wanted = i % 7 == 0 ? 0.0F : d < 1024 ? past.k[at] : past.v[at];
            assert_true(states[i * 2048 + d] == wanted);
        }
    vectors_products(states + 2048, 1, states, 150, 2048, products);
    for (size_t i = 0; i < 150; i++) {
        double sum = 0.0;
        for (size_t d = 0; d < 2048; d++)
            sum += (double)states[2048 + d] * (double)states[i * 2048 + d];
        assert_true(fabs((double)products[i] - sum) < 1e-2);
    }
    free(states);
    past_free(&past);
}

enum {
    TOKENS = 9000,
    W = 256,
    N = 20,
    NEAR = 16,
    RERANK = 128,
    SKETCH = 128,
    PROBES = 16,
    CHANGE = SKETCHES_SAMPLE + 400,
    CENTRES = 64,
    RANK = 24,
};

/* What states are made of: a few centres, and a few directions to go from them, as those of a model
 * are. Two subjects, of which the sample that sketches learn from has seen one. */
struct subjects {
    float centres[2][CENTRES][W], directions[2][RANK][W];
};

/* ret_values (count, W); the second subject from `change` on. */
static void draw_states(const struct subjects *subjects, size_t count, size_t change,
                        uint64_t *random, float *ret_values)
{
    for (size_t i = 0; i < count; i++) {
        size_t subject = i >= change;
        const float *centre = subjects->centres[subject][random_below(random, CENTRES)];
        float *value = ret_values + i * W;
        for (size_t d = 0; d < W; d++) value[d] = 3.0F + centre[d] + 0.1F * random_float(random);
        for (size_t r = 0; r < RANK; r++) {
            float far = 0.3F * random_float(random);
            for (size_t d = 0; d < W; d++) value[d] += far * subjects->directions[subject][r][d];
        }
    }
}

struct clustered {
    struct past past;
    struct vectors *vectors;
    float *q; /* (N, W) */
};

/* With a change of subject, which half of the queries follow, or without. */
static void clustered_make(struct clustered *set, bool change, uint64_t *random)
{
    struct past *past = &set->past;
    *past = (struct past){ .query_heads = 1,
                           .kv_heads = 1,
                           .head_dim = W / 2,
                           .tokens = TOKENS,
                           .queries = N,
                           .dtype = DTYPE_FP32 };
    past_make(past, random);
    struct subjects *subjects = past_alloc(1, sizeof *subjects);
    float *numbers = (float *)subjects, *states = past_alloc(TOKENS * W, sizeof *states);
    for (size_t i = 0; i < sizeof *subjects / sizeof *numbers; i++)
        numbers[i] = random_float(random);
    set->q = past_alloc(N * W, sizeof *set->q);
    draw_states(subjects, TOKENS, change ? CHANGE : TOKENS, random, states);
    draw_states(subjects, N, change ? N / 2 : N, random, set->q);
    for (size_t t = 0; t < TOKENS; t++) {
        memcpy(past->k_rows + t * W / 2 * 4, states + t * W, W / 2 * 4);
        memcpy(past->v_rows + t * W / 2 * 4, states + t * W + W / 2, W / 2 * 4);
    }
    past_cut(past, 700, random);
    set->vectors = fold(past, SKETCH);
    free(subjects);
    free(states);
}

/* States that were read. */
static uint64_t look(const struct vectors_args *args, uint64_t *ret_slots, float *ret_scores)
{
    uint64_t read = 0;
    struct arena arena;
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(vectors_search(args, &arena, ret_slots, ret_scores, &read, NULL), 0);
    arena_fini(&arena);
    return read;
}

/* How many of the nearest a search finds, of *ret_asked, whatever else is asked or was stored
 * later: as of some earlier tokens and in rings of two sizes. */
static size_t count_found(const struct clustered *set, size_t probes, size_t *ret_asked)
{
    const struct past *past = &set->past;
    static const uint64_t limits[] = { TOKENS, 5000, 3000, 900 };
    uint64_t exact[N * NEAR], near[N * NEAR], one[NEAR], all[N];
    float exact_scores[N * NEAR], near_scores[N * NEAR], one_scores[NEAR];
    size_t found = 0, asked = 0;
    for (size_t turn = 0; turn < 8; turn++) {
        struct vectors_args args = { .vectors = set->vectors,
                                     .rows = { past->views, past->view_count, W / 2, NULL },
                                     .q = set->q,
                                     .limits = all,
                                     .queries = N,
                                     .slots = turn < 4 ? 16384 : 4096,
                                     .k = NEAR,
                                     .metric = turn % 2 == 0 ? VECTORS_L2 : VECTORS_DOT };
        for (size_t i = 0; i < N; i++) all[i] = limits[turn % 4];
        look(&args, exact, exact_scores);
        args.rerank = RERANK;
        args.probes = probes;
        uint64_t read = look(&args, near, near_scores);
        bool guessed = limits[turn % 4] >= SKETCHES_SAMPLE; /* else all are read, by two batches */
        assert_true(read == (guessed ? N * RERANK : 2 * limits[turn % 4]));
        for (size_t i = 0; i < N * NEAR; i++)
            for (size_t j = i / NEAR * NEAR; j < (i / NEAR + 1) * NEAR; j++) {
                if (exact[i] != near[j]) continue;
                assert_true(exact_scores[i] == near_scores[j]);
                found++;
            }
        asked += N * NEAR;
        struct vectors_args alone = args; /* one of them, and beside others with other limits */
        alone.q = set->q + 7 * W;
        alone.queries = 1;
        look(&alone, one, one_scores);
        assert_memory_equal(one, near + 7 * NEAR, sizeof one);
        for (size_t i = 0; i < N; i++) all[i] = i == 7 ? all[7] : limits[i % 4];
        look(&args, near, near_scores);
        assert_memory_equal(one, near + 7 * NEAR, sizeof one);
    }
    *ret_asked = asked;
    return found;
}

/* Sketches find nearly what an exact search finds, of a subject that the sample has not seen too;
 * cells do where they have seen it. */
static void test_sketched(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (int change = 0; change < 2; change++) {
        struct clustered set;
        size_t asked = 0;
        clustered_make(&set, change == 1, &random);
        assert_true(set.vectors->sketches.count == TOKENS);
        assert_true(set.vectors->base.bytes > TOKENS * (SKETCH + 20));
        size_t all = count_found(&set, SKETCHES_CELLS, &asked);
        size_t some = count_found(&set, PROBES, &asked);
        if (all * 1000 < asked * 980) fail_msg("%zu of %zu were found", all, asked);
        /* 91 to 100 of 100, as the clusters fell; of two subjects 76 to 90 (70 seeds) */
        if (change == 0 && some * 1000 < asked * 880)
            fail_msg("%zu of %zu were found in %d cells", some, asked, PROBES);
        if (change == 1 && some * 1000 < asked * 700)
            fail_msg("%zu of %zu of two subjects were found", some, asked);
        vectors_free(&set.vectors->base);
        free(set.q);
        past_free(&set.past);
    }
}

/* A guess is off by about |q - mean| |c - mean| / sqrt(S / 2) where no direction is better than
 * another, and right on average. Cells hold every state once, by position. */
static void test_guesses(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    enum { WIDE = 512, S = 128, ALL = SKETCHES_SAMPLE + 100 };
    struct past past = { .query_heads = 1,
                         .kv_heads = 1,
                         .head_dim = WIDE / 2,
                         .tokens = ALL,
                         .queries = 1,
                         .dtype = DTYPE_FP16 };
    past_make(&past, &random);
    struct vectors *vectors = fold(&past, S);
    const struct sketches *sketches = &vectors->sketches;
    float q[WIDE], *room = past_alloc(sketches_room(sketches, 1), sizeof *room);
    bool *there = past_alloc(ALL, sizeof *there);
    _Alignas(64) float guesses[SKETCHES_TILE];
    double bias = 0.0, square = 0.0, length = 0.0;
    for (size_t d = 0; d < WIDE; d++) {
        q[d] = random_float(&random) + 0.5F;
        length += (double)q[d] * (double)q[d];
    }
    struct sketches_queries asked;
    uint16_t askers[SKETCHES_CELLS];
    memset(there, 0, ALL * sizeof *there);
    sketches_probe(sketches, sketches_ask(sketches, q, 1, room, &asked), 1, 1, false, askers);
    size_t looked_into = 0;
    for (size_t c = 0; c < SKETCHES_CELLS; c++) {
        looked_into += askers[c];
        uint64_t before = 0;
        for (uint64_t e = 0; e < sketches->cells[c].count; e++) {
            const struct sketches_tile *tile = sketches->cells[c].tiles[e / SKETCHES_TILE];
            size_t i = (size_t)(e % SKETCHES_TILE), t = (size_t)tile->positions[i];
            assert_true(t < ALL && !there[t] && (e == 0 || t > before));
            assert_true(sketches_before(sketches, c, t) == e);
            assert_true(sketches_before(sketches, c, t + 1) == e + 1);
            there[t] = true;
            before = t;
            if (i == 0) sketches_products(sketches, &asked, tile, NULL, guesses);
            double product = 0.0, norm = 0.0;
            for (size_t d = 0; d < WIDE; d++) {
                float *rows = d < WIDE / 2 ? past.k : past.v;
                double x = (double)rows[t * WIDE / 2 + d % (WIDE / 2)];
                product += x * (double)q[d];
                norm += x * x;
            }
            assert_true(fabs((double)tile->squares[i] - norm) < 1e-3);
            double error = ((double)guesses[i] + (double)tile->biases[i] - product) /
                           sqrt(length * norm / (0.5 * S));
            bias += error / ALL;
            square += error * error / ALL;
        }
    }
    for (size_t t = 0; t < ALL; t++) assert_true(there[t]);
    assert_int_equal(looked_into, 1);
    if (fabs(bias) > 0.15 || square > 1.3 || square < 0.3)
        fail_msg("guesses are off by %g, their square by %g", bias, square);
    free(room);
    free(there);
    vectors_free(&vectors->base);
    past_free(&past);
}

/* Cells are another order of the same states: with all of them looked into, and all seen states
 * looked at again, a search is exact; and it is the same whoever counts, and however appends were
 * cut. */
static void test_all_cells(void **state)
{
    (void)state;
    uint64_t random = random_seed(), exact[N * NEAR], near[N * NEAR], limits[N];
    float scores[N * NEAR];
    struct clustered set;
    clustered_make(&set, true, &random);
    struct pool *pool = NULL;
    assert_int_equal(pool_open(3, &pool, NULL), 0);
    struct rows rows = { set.past.views, set.past.view_count, W / 2, NULL };
    struct vectors_args args = { .vectors = set.vectors,
                                 .rows = rows,
                                 .q = set.q,
                                 .limits = limits,
                                 .queries = N,
                                 .slots = 8200,
                                 .k = NEAR };
    for (size_t i = 0; i < N; i++) { /* each asks for a state that it must not see */
        limits[i] = TOKENS - 10 - i * 10;
        size_t hidden = limits[i] + i % 10;
        memcpy(set.q + i * W, set.past.k_rows + hidden * W / 2 * 4, W / 2 * 4);
        memcpy(set.q + i * W + W / 2, set.past.v_rows + hidden * W / 2 * 4, W / 2 * 4);
    }
    look(&args, exact, scores);
    args.rerank = 8200 / 16 - 1; /* more would be exact anyway */
    args.probes = SKETCHES_CELLS;
    look(&args, near, scores);
    size_t found = 0;
    for (size_t i = 0; i < N * NEAR; i++) found += exact[i] == near[i];
    if (found * 1000 < (size_t)N * NEAR * 999) fail_msg("%zu of %d are found", found, N * NEAR);
    args.rerank = RERANK;
    args.probes = PROBES;
    look(&args, exact, scores);
    args.pool = pool;
    look(&args, near, scores);
    assert_memory_equal(exact, near, sizeof exact);
    vectors_free(&set.vectors->base);
    struct fold_source source = { .rows = rows };
    assert_int_equal(vectors_new(&type, W, SKETCH, &set.vectors, NULL), 0);
    for (uint64_t end = 0; end < TOKENS; end += 1 + random_below(&random, 700))
        assert_int_equal(vectors_advance(set.vectors, &source, end, NULL), 0);
    assert_int_equal(vectors_advance(set.vectors, &source, TOKENS, NULL), 0);
    args.vectors = set.vectors;
    look(&args, near, scores);
    assert_memory_equal(exact, near, sizeof exact);
    pool_close(pool);
    vectors_free(&set.vectors->base);
    free(set.q);
    past_free(&set.past);
}

static int refuse(void *arg)
{
    (void)arg;
    return MEMD_ECANCELLED;
}

static void test_stop(void **state)
{
    (void)state;
    uint64_t random = random_seed(), slots[4], states = 0;
    struct past past = { .query_heads = 1,
                         .kv_heads = 1,
                         .head_dim = 16,
                         .tokens = 200,
                         .queries = 1,
                         .dtype = DTYPE_FP32 };
    past_make(&past, &random);
    struct vectors *vectors = fold(&past, 0);
    float q[32] = { 1 }, scores[4];
    struct vectors_args args = { .vectors = vectors,
                                 .rows = { past.views, 1, 16, NULL },
                                 .q = q,
                                 .limits = past.limits,
                                 .queries = 1,
                                 .slots = 64,
                                 .k = 4,
                                 .stop = refuse };
    struct arena arena;
    struct error err = { 0 };
    arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(vectors_search(&args, &arena, slots, scores, &states, &err), MEMD_ECANCELLED);
    arena_fini(&arena);
    args.stop = NULL;
    arena_init(&arena, 16);
    assert_int_equal(vectors_search(&args, &arena, slots, scores, &states, &err), MEMD_ENOMEM);
    arena_fini(&arena);
    vectors_free(&vectors->base);
    past_free(&past);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_load_and_products),
        cmocka_unit_test(test_sketched),
        cmocka_unit_test(test_guesses),
        cmocka_unit_test(test_all_cells),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
