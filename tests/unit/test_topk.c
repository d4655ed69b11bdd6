/* SPDX-License-Identifier: Apache-2.0 */
/* test_topk.c — both ways to the best k against a full sort, with ties. */
#include "index/topk.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "index/index.h"
#include "tests/random.h"
#include "tests/ranked.h"

enum { MOST = 300 };

/* Distinct ids in random order; scores of few values in every other turn. */
static size_t draw(struct ranked *entries, size_t turn, uint64_t *random)
{
    size_t count = (size_t)random_below(random, MOST) + 1;
    for (size_t i = 0; i < count; i++) {
        float score = turn % 2 == 0 ? random_float(random) : (float)random_below(random, 3);
        entries[i] = (struct ranked){ score, i };
    }
    for (size_t i = count - 1; i > 0; i--) {
        size_t other = (size_t)random_below(random, i + 1);
        struct ranked entry = entries[i];
        entries[i] = entries[other];
        entries[other] = entry;
    }
    return count;
}

static void test_heap(void **state)
{
    (void)state;
    uint64_t random = random_seed(), ids[MOST];
    float scores[MOST];
    for (size_t turn = 0; turn < 2000; turn++) {
        struct ranked entries[MOST];
        size_t count = draw(entries, turn, &random), k = (size_t)random_below(&random, MOST) + 1;
        struct topk top = { ids, scores, k };
        topk_clear(&top);
        for (size_t i = 0; i < count; i++) topk_offer(&top, (float)entries[i].score, entries[i].id);
        topk_sort(&top);
        qsort(entries, count, sizeof *entries, better_first);
        for (size_t i = 0; i < k; i++) {
            assert_true(ids[i] == (i < count ? entries[i].id : INDEX_NONE));
            assert_true(scores[i] == (i < count ? entries[i].score : -INFINITY));
        }
    }
}

static void test_select(void **state)
{
    (void)state;
    uint64_t random = random_seed(), ids[MOST];
    float scores[MOST];
    for (size_t turn = 0; turn < 4000; turn++) {
        struct ranked entries[MOST], kept[MOST];
        size_t count = draw(entries, turn, &random);
        size_t k = (size_t)random_below(&random, count + 1);
        for (size_t i = 0; i < count; i++) {
            ids[i] = entries[i].id;
            scores[i] = (float)entries[i].score;
        }
        topk_select(&(struct topk){ ids, scores, count }, k);
        for (size_t i = 0; i < count; i++) kept[i] = (struct ranked){ scores[i], ids[i] };
        qsort(entries, count, sizeof *entries, better_first);
        qsort(kept, k, sizeof *kept, better_first);
        qsort(kept + k, count - k, sizeof *kept, better_first);
        for (size_t i = 0; i < count; i++)
            assert_true(kept[i].id == entries[i].id && kept[i].score == entries[i].score);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heap),
        cmocka_unit_test(test_select),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
