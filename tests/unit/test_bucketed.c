/* SPDX-License-Identifier: Apache-2.0 */
/* test_bucketed.c — the worked cases (top-4 of eight in four buckets, neighbours in a ring of
 * eight), and random ones against a definition by hand. */
#include "index/bucketed.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "index/index.h"
#include "index/topk.h"
#include "tests/random.h"

enum { MOST = 64 };

struct room {
    uint64_t ids[MOST], best_ids[MOST];
    float scores[MOST], best_scores[MOST];
};

static void test_worked_case(void **state)
{
    (void)state;
    static const float scores[] = { 9, 8, 1, 2, 7, 6, 0, 3 };
    static const uint64_t expected[] = { 0, 1, 7, 2 }; /* the set 0, 1, 2, 7, best first */
    struct room room;
    struct bucketed bucketed = { room.ids, room.scores, 4 };
    struct topk best = { room.best_ids, room.best_scores, 4 };
    bucketed_clear(&bucketed);
    bucketed_offer(&bucketed, scores, 8, 0);
    bucketed_best(&bucketed, &best);
    for (size_t i = 0; i < 4; i++) assert_int_equal(best.ids[i], expected[i]);
}

static void test_neighbours(void **state)
{
    (void)state;
    static const struct {
        uint64_t hit, expected[4];
        size_t width;
    } cases[] = {
        { 7, { 7, 7 }, 2 },       { 7, { 6, 7, 7, 7 }, 4 }, { 0, { 0, 0, 1, 2 }, 4 },
        { 3, { 3, 4 }, 2 },       { 5, { 5 }, 1 },          { 4, { 3, 4, 5, 6 }, 4 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t ids[4];
        bucketed_neighbours(cases[i].hit, cases[i].width, 8, ids);
        for (size_t j = 0; j < cases[i].width; j++)
            if (ids[j] != cases[i].expected[j])
                fail_msg("case %zu: neighbour %zu is %zu", i, j, (size_t)ids[j]);
    }
}

/* The best of `count` scores in bucket b, ties to the lower entry; INDEX_NONE: it is empty. */
static uint64_t winner(const float *scores, size_t count, uint64_t first, size_t buckets, size_t b)
{
    uint64_t found = INDEX_NONE;
    for (uint64_t id = first; id < first + count; id++)
        if (id % buckets == b &&
            (found == INDEX_NONE || scores[id - first] > scores[found - first]))
            found = id;
    return found;
}

/* However the entries are cut into calls, and in whatever order these come. */
static void test_any_cut(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 500; turn++) {
        float scores[200];
        size_t count = (size_t)random_below(&random, 200) + 1;
        size_t buckets = (size_t)random_below(&random, MOST) + 1, half = count / 2;
        uint64_t first = random_below(&random, 1000);
        for (size_t i = 0; i < count; i++) scores[i] = (float)random_below(&random, 9);
        struct room room;
        struct bucketed bucketed = { room.ids, room.scores, buckets };
        bucketed_clear(&bucketed);
        bucketed_offer(&bucketed, scores + half, count - half, first + half);
        for (size_t i = 0; i < half; i++) bucketed_offer(&bucketed, scores + i, 1, first + i);
        for (size_t b = 0; b < buckets; b++)
            if (bucketed.ids[b] != winner(scores, count, first, buckets, b))
                fail_msg("turn %zu, bucket %zu: %zu", turn, b, (size_t)bucketed.ids[b]);
        size_t k = (size_t)random_below(&random, MOST) + 1;
        struct topk best = { room.best_ids, room.best_scores, k };
        bucketed_best(&bucketed, &best);
        for (size_t i = 1; i < k; i++)
            assert_true(best.ids[i] == INDEX_NONE ||
                        topk_worse(best.scores[i], best.ids[i], best.scores[i - 1],
                                   best.ids[i - 1]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worked_case),
        cmocka_unit_test(test_neighbours),
        cmocka_unit_test(test_any_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
