/* SPDX-License-Identifier: Apache-2.0 */
/* test_progressive.c — progressive attention against a softmax in double over the same rows. */
#include "index/progressive.h"

#include "attention/rope.h"
#include "base/error.h"
#include "index/exact.h"
#include "tests/unit/asked_planes.h"

static const struct {
    size_t kv_heads, group, head_dim, tokens, queries, open;
} shapes[] = {
    { 1, 1, 64, 4096 + 300, 1, 0 }, { 2, 3, 64, 3 * 1024, 2, 1 }, { 1, 8, 128, 4096 + 1, 3, 0 },
    { 1, 4, 256, 3 * 1024 + 17, 1, 0 }, { 1, 2, 40, 2 * 1024 + 100, 5, 0 },
    { 1, 5, 96, 5 * 1024, 4, 2 }, { 1, 20, 64, 2048 + 5, 2, 0 }, { 2, 1, 72, 700, 3, 0 },
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void make(struct coded *coded, size_t shape, uint64_t *random)
{
    static const uint32_t dtypes[] = { DTYPE_FP16, DTYPE_FP32, DTYPE_BF16 };
    *coded = (struct coded){
        .past = { .kv_heads = shapes[shape].kv_heads,
                  .query_heads = shapes[shape].kv_heads * shapes[shape].group,
                  .head_dim = shapes[shape].head_dim, .tokens = shapes[shape].tokens,
                  .queries = shapes[shape].queries, .dtype = dtypes[shape % 3] } };
    past_make(&coded->past, random);
    code(coded, shapes[shape].open, shape % 2 == 0);
}

/* Random keys and values, limits anywhere: as wrong as was asked for, at most twice. */
static void test_target(void **state)
{
    (void)state;
    static const float targets[] = { 0.1F, 0.02F, 0.003F };
    uint64_t random = random_seed();
    for (size_t shape = 0; shape < SHAPES; shape++) {
        struct coded coded;
        make(&coded, shape, &random);
        for (size_t i = 0; i < 3; i++) {
            struct answer answer = ask(&coded, &(struct question){ .target = targets[i] });
            struct tally tally = judge(&coded.past, &answer);
            if (tally.worst > 2.5 * (double)targets[i] || tally.worst_lse > (double)targets[i])
                fail_msg("shape %zu target %g: error %.6f lse %.6f", shape, (double)targets[i],
                         tally.worst, tally.worst_lse);
            check_mass(&coded.past, &answer);
            answer_free(&answer);
        }
        coded_free(&coded);
    }
}

/* The same where some or all segments stand in a table, the rest where their planes are. */
static void test_tables(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t shape = 0; shape < 2 * SHAPES; shape++) {
        struct coded coded;
        make(&coded, shape / 2, &random);
        struct centroid_table *table = put_into_table(&coded, 1 + shape % 2);
        for (size_t i = 0; i < 2; i++) {
            float target = i == 0 ? 0.1F : 0.01F;
            struct answer answer = ask(&coded, &(struct question){ .target = target });
            struct tally tally = judge(&coded.past, &answer);
            if (tally.worst > 2.5 * (double)target || tally.worst_lse > (double)target)
                fail_msg("shape %zu target %g: error %.6f lse %.6f", shape, (double)target,
                         tally.worst, tally.worst_lse);
            check_mass(&coded.past, &answer);
            answer_free(&answer);
        }
        centroid_table_free(table);
        coded_free(&coded);
    }
}

/* Keys on both sides of their centroids, as the queries see them: a centroid and a variance say
 * something else of them, and all masses are estimated wrong in the same way. Values are nearly
 * alike, so that answers are right all the same. */
static void give_sides(struct past *past, uint64_t *random)
{
    size_t head_dim = past->head_dim, count = past->tokens * head_dim;
    for (size_t i = 0; i < count; i++) {
        if (i % head_dim == 0) past->k[i] = past->k[i] < 0.0F ? -0.5F : 0.5F;
        past->v[i] = 3.0F + 0.5F * random_float(random);
    }
    past_round(past);
    for (size_t i = 0; i < past->query_heads * head_dim; i++)
        past->q[i] = i % head_dim == 0 ? 16.0F : 0.5F * past->q[i];
}

/* The sample says of masses what it is sure of, however little it can mend of the answer. */
static void test_masses(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t round = 0; round < 4; round++) {
        struct coded coded = { .past = { .kv_heads = 1, .query_heads = 4, .queries = 1,
                                         .head_dim = 64, .tokens = 12 * 1024 + 9,
                                         .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        give_sides(&coded.past, &random);
        code(&coded, 0, false);
        struct answer answer = ask(&coded, &(struct question){ .target = 0.1F });
        struct tally tally = judge(&coded.past, &answer);
        if (tally.worst > 0.2 || tally.worst_lse > 0.4)
            fail_msg("error %.6f lse %.6f", tally.worst, tally.worst_lse);
        answer_free(&answer);
        coded_free(&coded);
    }
}

/* Keys of a segment are near a key of its own, and queries near that of segment 2. */
static void give_topics(struct past *past, uint64_t *random)
{
    size_t head_dim = past->head_dim, count = past->kv_heads * past->tokens * head_dim;
    float topics[16 * 128];
    for (size_t i = 0; i < 16 * head_dim; i++) topics[i] = random_float(random);
    for (size_t i = 0; i < count; i++) {
        size_t segment = i / head_dim % past->tokens / PLANES_TOKENS;
        past->k[i] = 2.0F * topics[segment * head_dim + i % head_dim] + 0.5F * past->k[i];
    }
    past_round(past);
    for (size_t i = 0; i < past->query_heads * head_dim; i++)
        past->q[i] = 12.0F * topics[2 * head_dim + i % head_dim] + past->q[i];
}

/* Centroids at 4 bits tell which segments hold nothing, by half of the bytes; the answer is as good
 * as without them. */
static void test_blank_segments(void **state)
{
    (void)state;
    uint64_t random = random_seed(), bytes[2] = { 0 };
    for (size_t round = 0; round < 8; round++) {
        struct coded coded = { .past = { .kv_heads = 1 + round % 2, .query_heads = 4, .queries = 1,
                                         .head_dim = round < 4 ? 64 : 72, .tokens = 10 * 1024 + 9,
                                         .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        give_topics(&coded.past, &random);
        code(&coded, 0, true);
        struct answer without = ask(&coded, &(struct question){ .target = 0.02F });
        struct centroid_table *table = put_into_table(&coded, 1);
        struct answer with = ask(&coded, &(struct question){ .target = 0.02F });
        assert_true(judge(&coded.past, &with).worst <= 0.04);
        assert_true(judge(&coded.past, &without).worst <= 0.04);
        bytes[0] += with.quality.bytes[INDEX_CLUSTERS];
        bytes[1] += without.quality.bytes[INDEX_CLUSTERS];
        answer_free(&with);
        answer_free(&without);
        centroid_table_free(table);
        coded_free(&coded);
    }
    if (10 * bytes[0] > 8 * bytes[1])
        fail_msg("%llu bytes of centroids, %llu without", (unsigned long long)bytes[0],
                 (unsigned long long)bytes[1]);
}

/* Some segments are looked at first, to see whether clusters are worth it, and not estimated again:
 * the answer is the same as without that look, bit for bit, with a table too. */
static void test_looks_first(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t round = 0; round < 4; round++) {
        struct coded coded = { .past = { .kv_heads = 1, .query_heads = 2, .queries = 1,
                                         .head_dim = 64, .tokens = 26 * 1024 + 9,
                                         .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        give_sides(&coded.past, &random);
        code(&coded, 0, true);
        struct centroid_table *table = round % 2 == 0 ? put_into_table(&coded, 1) : NULL;
        struct question question = { .target = round < 2 ? 0.1F : 0.02F };
        struct answer without = ask(&coded, &question);
        question.exact_below = UINT64_MAX;
        struct answer with = ask(&coded, &question);
        assert_true(with.quality.rows[INDEX_EXACT] < coded.past.tokens); /* they are worth it */
        assert_memory_equal(with.partial.o, without.partial.o,
                            with.partial.rows * 64 * sizeof(float));
        assert_memory_equal(with.partial.lse, without.partial.lse,
                            with.partial.rows * sizeof(float));
        assert_memory_equal(with.quality.bytes, without.quality.bytes,
                            sizeof with.quality.bytes);
        answer_free(&without);
        answer_free(&with);
        centroid_table_free(table);
        coded_free(&coded);
    }
}

/* Keys of every segment lie somewhere else, far enough for 4 bits of a table's space to say nothing
 * of them: errors are no larger than without it (some are large, keys without structure hide single
 * tokens). */
static void test_drift(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    double sums[2] = { 0.0 };
    for (size_t round = 0; round < 6; round++) {
        struct coded coded = { .past = { .kv_heads = 1, .query_heads = 4, .queries = 1,
                                         .head_dim = 64, .tokens = 16 * 1024 + 9,
                                         .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        struct past *past = &coded.past;
        float places[17 * 64];
        for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
            places[i] = i % 64 < 32 ? 0.0F : (float)(8 << round % 3) * random_float(&random);
        for (size_t i = 0; i < past->tokens * 64; i++)
            past->k[i] += places[i / 64 / PLANES_TOKENS * 64 + i % 64];
        past_round(past);
        for (size_t i = 0; i < (size_t)4 * 64; i++) past->q[i] *= 6.0F;
        code(&coded, 0, true);
        struct answer without = ask(&coded, &(struct question){ .target = 0.05F });
        struct centroid_table *table = put_into_table(&coded, 1);
        struct answer with = ask(&coded, &(struct question){ .target = 0.05F });
        sums[0] += judge(past, &without).worst;
        sums[1] += judge(past, &with).worst;
        answer_free(&without);
        answer_free(&with);
        centroid_table_free(table);
        coded_free(&coded);
    }
    if (sums[1] > sums[0] + 0.6)
        fail_msg("errors sum to %.3f, to %.3f without the table", sums[1], sums[0]);
}

/* target 0 is attend, bit for bit; a target too small for codes ends at the exact rows. */
static void test_exact(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t shape = 0; shape < SHAPES; shape++) {
        struct coded coded;
        make(&coded, shape, &random);
        struct answer exact = answer_new(&coded.past);
        struct attend_args args = past_args(&coded.past);
        struct arena arena;
        arena_init(&arena, (size_t)1 << 30);
        assert_int_equal(attend(&args, &arena, &exact.partial, NULL), 0);
        arena_fini(&arena);
        struct answer zero = ask(&coded, &(struct question){ .target = 0.0F });
        size_t rows = exact.partial.rows, bytes = rows * coded.past.head_dim * sizeof(float);
        assert_memory_equal(zero.partial.o, exact.partial.o, bytes);
        assert_memory_equal(zero.partial.lse, exact.partial.lse, rows * sizeof(float));
        struct answer tiny = ask(&coded, &(struct question){ .target = 1e-7F });
        struct tally tally = judge(&coded.past, &tiny);
        if (tally.worst > 4e-6 || tally.worst_lse > 4e-6)
            fail_msg("shape %zu: error %.3g lse %.3g", shape, tally.worst, tally.worst_lse);
        answer_free(&exact);
        answer_free(&zero);
        answer_free(&tiny);
        coded_free(&coded);
    }
}

/* Few rows: exactly, without being told. */
static void test_rule(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded;
    make(&coded, 1, &random);
    struct answer answer = ask(&coded, &(struct question){ .target = 0.1F,
                                                           .exact_below = UINT64_MAX });
    assert_int_equal(answer.quality.bytes[INDEX_CLUSTERS], 0);
    assert_int_equal(answer.quality.rows[INDEX_EXACT],
                     2 * coded.past.kv_heads * coded.past.tokens);
    answer_free(&answer);
    coded_free(&coded);
}

/* Random keys have no clusters: left to the rule, everything is read exactly in the end. Returns
 * the rows of clusters that were read on the way. */
static uint64_t give_up(size_t segments)
{
    uint64_t random = random_seed();
    struct coded coded = { .past = { .kv_heads = 1, .query_heads = 2, .head_dim = 16,
                                     .tokens = segments * 1024 + 5, .queries = 1,
                                     .dtype = DTYPE_FP16 } };
    past_make(&coded.past, &random);
    code(&coded, 0, true);
    struct answer answer = ask(&coded, &(struct question){ .target = 0.001F,
                                                           .exact_below = UINT64_MAX });
    struct tally tally = judge(&coded.past, &answer);
    if (tally.worst > 1e-5) fail_msg("error %.3g", tally.worst);
    for (size_t row = 0; row < answer.partial.rows; row++) {
        assert_true(answer.quality.predicted_error[row] == 0.0F);
        assert_true(fabsf(answer.quality.mass[row * INDEX_LEVELS + INDEX_EXACT] - 1.0F) < 1e-5F);
    }
    assert_int_equal(answer.quality.rows[INDEX_LO], 0);
    uint64_t rows = answer.quality.rows[INDEX_CLUSTERS];
    answer_free(&answer);
    coded_free(&coded);
    return rows;
}

static void test_gives_up(void **state)
{
    (void)state;
    assert_in_range(give_up(13), (uintmax_t)13 * PLANES_CLUSTERS,
                    (uintmax_t)2 * 13 * PLANES_CLUSTERS);
}

/* Of 26 segments all centroids are scored before that, and mean values of 3 are read. */
static void test_gives_up_early(void **state)
{
    (void)state;
    assert_in_range(give_up(26), (uintmax_t)26 * PLANES_CLUSTERS,
                    (uintmax_t)(26 + 3) * PLANES_CLUSTERS);
}

/* The same bits on one thread and on three. */
static void test_pool(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded;
    make(&coded, 2, &random);
    struct pool *pool = NULL;
    assert_int_equal(pool_open(3, &pool, NULL), 0);
    struct answer one = ask(&coded, &(struct question){ .target = 0.02F });
    struct answer many = ask(&coded, &(struct question){ .target = 0.02F, .pool = pool });
    assert_memory_equal(one.partial.o, many.partial.o,
                        one.partial.rows * coded.past.head_dim * sizeof(float));
    assert_memory_equal(one.quality.bytes, many.quality.bytes, sizeof one.quality.bytes);
    pool_close(pool);
    answer_free(&one);
    answer_free(&many);
    coded_free(&coded);
}

/* No more bytes than allowed, and the answer says so. */
static uint64_t bytes_of(const struct answer *answer)
{
    uint64_t bytes = 0;
    for (size_t level = 0; level < INDEX_LEVELS; level++) bytes += answer->quality.bytes[level];
    return bytes;
}

/* Any budget that pays for what is always read is kept to, with centroids in a table too. */
static void test_budgets(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded;
    make(&coded, 0, &random);
    struct centroid_table *table = put_into_table(&coded, 1);
    struct answer least = ask(&coded, &(struct question){ .target = 0.002F, .max_bytes = 1 });
    struct answer most = ask(&coded, &(struct question){ .target = 0.002F });
    uint64_t from = bytes_of(&least), all = bytes_of(&most);
    for (uint64_t part = 25; part < 500; part++) { /* sinks are opened always */
        uint64_t budget = from + (all - from) * part / 500;
        struct answer answer = ask(&coded, &(struct question){ .target = 0.002F,
                                                               .max_bytes = budget });
        if (bytes_of(&answer) > budget)
            fail_msg("%llu of %llu bytes", (unsigned long long)bytes_of(&answer),
                     (unsigned long long)budget);
        answer_free(&answer);
    }
    answer_free(&least);
    answer_free(&most);
    centroid_table_free(table);
    coded_free(&coded);
}

static void test_budget(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded;
    make(&coded, 3, &random);
    struct answer free_of_it = ask(&coded, &(struct question){ .target = 0.002F });
    uint64_t budget = bytes_of(&free_of_it) / 2;
    struct answer answer = ask(&coded, &(struct question){ .target = 0.002F,
                                                           .max_bytes = budget });
    uint64_t spent = bytes_of(&answer);
    struct tally tally = judge(&coded.past, &answer);
    if (spent > budget || tally.worst > 0.5)
        fail_msg("%llu of %llu bytes, error %.4f", (unsigned long long)spent,
                 (unsigned long long)budget, tally.worst);
    for (size_t row = 0; row < answer.partial.rows; row++) {
        assert_true(answer.quality.limited[row]);
        assert_true(answer.quality.predicted_error[row] > 0.002F);
    }
    answer_free(&free_of_it);
    answer_free(&answer);
    coded_free(&coded);
}

/* Keys stored unrotated: planes hold them rotated, exact rows are rotated while read. */
static void test_rope(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct rope rope;
    assert_int_equal(rope_init(&(struct rope_config){ .theta = 10000.0 }, 64, &rope, NULL), 0);
    struct coded coded = { .past = { .kv_heads = 1, .query_heads = 3, .head_dim = 64,
                                     .tokens = 6 * 1024 + 50, .queries = 2, .dtype = DTYPE_FP16 },
                           .rope = &rope };
    past_make(&coded.past, &random);
    code(&coded, 1, false);
    struct answer coarse = ask(&coded, &(struct question){ .target = 0.02F });
    struct answer exact = ask(&coded, &(struct question){ .target = 0.0F });
    for (size_t row = 0; row < exact.partial.rows; row++) {
        double wrong = 0.0, right = 1e-30;
        for (size_t d = row * 64; d < (row + 1) * 64; d++) {
            double e = (double)coarse.partial.o[d] - (double)exact.partial.o[d];
            wrong += e * e;
            right += (double)exact.partial.o[d] * (double)exact.partial.o[d];
        }
        if (sqrt(wrong / right) > 0.05) fail_msg("row %zu: %.4f", row, sqrt(wrong / right));
    }
    answer_free(&coarse);
    answer_free(&exact);
    coded_free(&coded);
}

/* Take all bytes of rows and lo away, after copies were made. */
static void shut(struct gate *gate, const struct coded *coded)
{
    const struct past *past = &coded->past;
    struct planes_layout layout;
    planes_layout_init(past->head_dim, &layout);
    size_t views = past->kv_heads * past->view_count, lo_bytes = layout.lo_bytes;
    size_t bytes = past->kv_heads * past->tokens * past->head_dim * dtype_bytes(past->dtype);
    *gate = (struct gate){ .coded = coded, .k = past_alloc(bytes, 1), .v = past_alloc(bytes, 1),
                           .lo = past_alloc(views, lo_bytes), .row_bytes = bytes,
                           .lo_bytes = lo_bytes };
    memcpy(gate->k, past->k_rows, bytes);
    memcpy(gate->v, past->v_rows, bytes);
    memset(past->k_rows, 0xff, bytes);
    memset(past->v_rows, 0xff, bytes);
    for (size_t i = 0; i < views; i++) {
        if (coded->table[i] == NULL) continue;
        unsigned char *lo = coded->payloads[2 * i + 1];
        if (lo == NULL) abort(); /* what has a place in the table was coded */
        memcpy(gate->lo + i * lo_bytes, lo, lo_bytes);
        memset(lo, 0xff, lo_bytes);
    }
}

static void gate_free(struct gate *gate)
{
    free(gate->k);
    free(gate->v);
    free(gate->lo);
}

/* Search finds what a search of everything finds: 99 of 100. */
static void test_search(void **state)
{
    (void)state;
    enum { K = 40 };
    uint64_t random = random_seed();
    size_t found = 0, wanted = 0;
    for (size_t shape = 0; shape < 2 * SHAPES; shape++) {
        struct coded coded;
        make(&coded, shape / 2, &random);
        struct centroid_table *table = shape % 2 == 0 ? NULL : put_into_table(&coded, 1);
        size_t rows = coded.past.queries * coded.past.query_heads;
        struct index_hits truth = { .ids = past_alloc(rows * K, sizeof(uint64_t)),
                                    .scores = past_alloc(rows * K, sizeof(float)), .k = K };
        struct index_hits hits = truth;
        hits.ids = past_alloc(rows * K, sizeof *hits.ids);
        hits.scores = past_alloc(rows * K, sizeof *hits.scores);
        struct index_quality quality = { 0 };
        struct progressive_args args = { .base = { .attend = past_args(&coded.past),
                                                   .target_error = 0.02F },
                                         .planes = coded.table };
        struct arena arena;
        struct gate gate;
        arena_init(&arena, (size_t)1 << 30);
        assert_int_equal(exact_search(&args.base.attend, &arena, &truth, NULL), 0);
        shut(&gate, &coded);
        args.base.attend.admit = admit;
        args.base.attend.admit_arg = &gate;
        assert_int_equal(progressive_search(&args, &arena, &hits, &quality, NULL), 0);
        assert_int_equal(coded.past.v_rows[0], 0xff); /* keys are all that a search reads */
        arena_fini(&arena);
        gate_free(&gate);
        for (size_t row = 0; row < rows; row++) {
            uint64_t visible = coded.past.limits[row / coded.past.query_heads];
            for (size_t i = 0; i < K; i++) {
                float score = hits.scores[row * K + i];
                if (i > 0) assert_true(score <= hits.scores[row * K + i - 1]);
                if (truth.ids[row * K + i] == INDEX_NONE) {
                    assert_true(hits.ids[row * K + i] == INDEX_NONE);
                    continue;
                }
                assert_true(hits.ids[row * K + i] < visible);
                wanted++;
                for (size_t j = 0; j < K; j++)
                    found += hits.ids[row * K + j] == truth.ids[row * K + i];
            }
        }
        free(truth.ids);
        free(truth.scores);
        free(hits.ids);
        free(hits.scores);
        centroid_table_free(table);
        coded_free(&coded);
    }
    if ((double)found < 0.99 * (double)wanted) fail_msg("%zu of %zu found", found, wanted);
}

/* Whatever is read was asked for: with all else in ones the answer is the same, bit for bit. */
static void test_admit(void **state)
{
    (void)state;
    static const float targets[] = { 0.3F, 0.02F, 0.003F, 1e-7F, 0.0F };
    uint64_t random = random_seed();
    for (size_t i = 0; i < SHAPES * 5; i++) {
        struct coded coded;
        struct gate gate;
        make(&coded, i / 5, &random);
        struct question question = { .target = targets[i % 5] };
        struct answer truth = ask(&coded, &question);
        shut(&gate, &coded);
        question.gate = &gate;
        gate.refuses_lo = true;
        struct answer without = ask(&coded, &question);
        struct tally tally = judge(&coded.past, &without);
        if (!(tally.worst <= 2.5 * (double)targets[i % 5] + 4e-6))
            fail_msg("shape %zu without lo: error %.6f", i / 5, tally.worst);
        memset(coded.past.k_rows, 0xff, gate.row_bytes);
        memset(coded.past.v_rows, 0xff, gate.row_bytes);
        gate.refuses_lo = false;
        struct answer answer = ask(&coded, &question);
        size_t bytes = answer.partial.rows * coded.past.head_dim * sizeof(float);
        assert_memory_equal(answer.partial.o, truth.partial.o, bytes);
        gate_free(&gate);
        answer_free(&truth);
        answer_free(&answer);
        answer_free(&without);
        coded_free(&coded);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_target),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_masses),
        cmocka_unit_test(test_blank_segments),
        cmocka_unit_test(test_looks_first),
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_gives_up),
        cmocka_unit_test(test_gives_up_early),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_drift),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_admit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
