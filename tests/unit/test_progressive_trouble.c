/* SPDX-License-Identifier: Apache-2.0 */
/* test_progressive_trouble.c — keys and queries that clusters or codes have a hard time with. */
#include "index/progressive.h"

#include "tests/unit/asked_planes.h"

enum trouble { UNIFORM, NEEDLE, COPIES, ZEROS, HUGE_KEY, TROUBLES };

/* Rewrite the keys of a past so that clusters or codes have a hard time. */
static void trouble_keys(struct past *past, enum trouble trouble)
{
    size_t head_dim = past->head_dim, needle = past->tokens / 3;
    size_t count = past->kv_heads * past->tokens * head_dim;
    for (size_t i = 0; i < count; i++) {
        size_t token = i / head_dim % past->tokens, d = i % head_dim;
        if (trouble == UNIFORM) past->k[i] *= 1e-3F;
        if (trouble == COPIES) past->k[i] = past->k[i % (8 * head_dim)];
        if (trouble == ZEROS) past->k[i] = past->v[i] = token % 2 == 0 ? 0.0F : past->v[i];
        if (trouble == NEEDLE && token == needle) past->k[i] = 8.0F * past->q[d];
        if (trouble == HUGE_KEY && token == needle) past->k[i] = 300.0F * past->q[d];
    }
    past_round(past);
}

/* Every token weighs the same, so that codes of keys and what a value has over its cluster's mean
 * drop out: nothing is left but the rounding of the means. */
static void test_flat(void **state)
{
    (void)state;
    static const float targets[] = { 0.1F, 0.02F, 0.003F, 1e-9F };
    uint64_t random = random_seed();
    for (size_t i = 0; i < 4; i++) {
        struct coded coded = { .past = { .kv_heads = 1, .query_heads = 2, .head_dim = 64,
                                         .tokens = 8 * 1024, .queries = 1, .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        memset(coded.past.q, 0, 2 * 64 * sizeof *coded.past.q);
        code(&coded, 0, false);
        struct answer answer = ask(&coded, &(struct question){ .target = targets[i] });
        struct tally tally = judge(&coded.past, &answer);
        double predicted = (double)answer.quality.predicted_error[0];
        if (!(tally.worst <= (double)targets[i] + 1e-6) ||
            fabs(tally.worst - predicted) > 0.75 * fmax(tally.worst, predicted) + 1e-6)
            fail_msg("target %g: error %.9f, predicted %.9f", (double)targets[i], tally.worst,
                     predicted);
        check_mass(&coded.past, &answer);
        answer_free(&answer);
        coded_free(&coded);
    }
}

static void test_trouble(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t i = 0; i < (size_t)2 * TROUBLES; i++) {
        enum trouble trouble = (enum trouble)(i / 2);
        struct coded coded = { .past = { .kv_heads = 1, .query_heads = 4, .head_dim = 64,
                                         .tokens = 8 * 1024 + 9, .queries = 1,
                                         .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        trouble_keys(&coded.past, trouble);
        code(&coded, 0, true);
        struct centroid_table *table = i % 2 == 0 ? NULL : put_into_table(&coded, 1);
        struct answer answer = ask(&coded, &(struct question){ .target = 0.02F });
        struct tally tally = judge(&coded.past, &answer);
        if (!(tally.worst <= 0.05))
            fail_msg("trouble %d: error %.6f", trouble, tally.worst);
        check_mass(&coded.past, &answer);
        answer_free(&answer);
        centroid_table_free(table);
        coded_free(&coded);
    }
}

/* One token is hundreds of nats above what its cluster says of it, and where nothing is opened at
 * first, or bytes do not pay for it, it is the sample that finds it. */
static void test_sampled(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t i = 0; i < 16; i++) {
        struct coded coded = { .past = { .kv_heads = 1, .query_heads = 4, .head_dim = 64,
                                         .tokens = 8 * 1024 + 9, .queries = 1,
                                         .dtype = DTYPE_FP16 } };
        past_make(&coded.past, &random);
        trouble_keys(&coded.past, HUGE_KEY);
        code(&coded, 0, true);
        struct centroid_table *table = i % 2 == 0 ? NULL : put_into_table(&coded, 1);
        struct question question = { .target = i < 8 ? 1.0F : 0.02F, .max_bytes = i < 8 ? 0 : 1 };
        struct answer answer = ask(&coded, &question);
        struct tally tally = judge(&coded.past, &answer);
        if (i < 8 && !(tally.worst <= 1.0 && tally.worst_lse <= 0.5))
            fail_msg("round %zu: error %.6f lse %.6f", i, tally.worst, tally.worst_lse);
        for (size_t row = 0; row < answer.partial.rows; row++)
            if (!isfinite(answer.partial.o[row * 64]) || !isfinite(answer.partial.lse[row]) ||
                isnan(answer.quality.predicted_error[row]))
                fail_msg("round %zu row %zu is no number", i, row);
        check_mass(&coded.past, &answer);
        answer_free(&answer);
        centroid_table_free(table);
        coded_free(&coded);
    }
}

/* One query of a block sees nothing, the others do. */
static void test_sees_nothing(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    struct coded coded = { .past = { .kv_heads = 1, .query_heads = 2, .head_dim = 64,
                                     .tokens = 3 * 1024, .queries = 2, .dtype = DTYPE_FP16 } };
    past_make(&coded.past, &random);
    coded.past.limits[0] = 0;
    coded.past.limits[1] = 3 * 1024;
    code(&coded, 0, true);
    struct answer answer = ask(&coded, &(struct question){ .target = 0.02F });
    check_mass(&coded.past, &answer);
    for (size_t row = 0; row < 2; row++) assert_true(answer.partial.lse[row] == -INFINITY);
    for (size_t i = 0; i < 2 * INDEX_LEVELS; i++) assert_true(answer.quality.mass[i] == 0.0F);
    answer_free(&answer);
    coded_free(&coded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_trouble),
        cmocka_unit_test(test_sampled),
        cmocka_unit_test(test_sees_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
