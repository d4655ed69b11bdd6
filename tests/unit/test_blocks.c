/* SPDX-License-Identifier: Apache-2.0 */
/* test_blocks.c — blocks as a fold: how many there are, that they do not depend on how they were
 * made, and that they come back from bytes; scores in double; choices against a sort. */
#include "index/blocks.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/pool.h"
#include "tests/unit/past.h"

static const struct fold_type type = { .name = "test", .free = blocks_free };

static void test_counts(void **state)
{
    (void)state;
    struct blocks_shape shape = { .first = 5, .tokens = 10, .heads = 1, .head_dim = 8 };
    assert_true(blocks_complete(&shape, 4) == 0 && blocks_complete(&shape, 14) == 0);
    assert_true(blocks_complete(&shape, 15) == 1 && blocks_complete(&shape, 25) == 2);
    assert_true(blocks_begin(&shape, 0) == 5 && blocks_begin(&shape, 3) == 35);
    /* by hand: the first block ends at 15 */
    assert_true(blocks_reach(&shape, 0, 14) == 0 && blocks_reach(&shape, 0, 15) == 15);
    assert_true(blocks_reach(&shape, 7, 21) == 0 && blocks_reach(&shape, 7, 22) == 15);
    shape.ahead = 7;
    assert_true(blocks_reach(&shape, 7, 21) == 0 && blocks_reach(&shape, 7, 22) == 22);
    assert_true(blocks_reach(&shape, 9, 33) == 22 && blocks_reach(&shape, 9, 34) == 32);
}

/* A vector that says which block and head it is; every third block lacks something. */
static int represent(const struct fold_source *source, const struct blocks_shape *shape,
                     uint64_t begin, float *ret_vectors, struct error *err)
{
    uint64_t block = (begin - shape->first) / shape->tokens;
    if (source->options != NULL && source->options[0] == (double)block)
        return error_set(err, MEMD_EUNSUPPORTED, "block %d", (int)block);
    for (size_t i = 0; i < shape->heads * shape->head_dim; i++)
        ret_vectors[i] = (float)block + (float)i / 64.0F;
    return block % 3 == 0;
}

static struct blocks *made(const struct blocks_shape *shape, const struct fold_source *source,
                           uint64_t step, uint64_t tokens)
{
    struct fold *fold = NULL;
    assert_int_equal(blocks_open(&type, shape, &fold, NULL), 0);
    for (uint64_t at = 0; at < tokens;) {
        at = at + step < tokens ? at + step : tokens;
        uint64_t end = blocks_reach(shape, shape->ahead, at);
        assert_int_equal(blocks_advance(fold, source, end, represent, NULL), 0);
        assert_true(fold->tokens == end);
    }
    return (struct blocks *)(void *)fold;
}

static void test_fold(void **state)
{
    (void)state;
    struct blocks_shape shape = { .first = 3, .tokens = 4, .ahead = 2, .heads = 3, .head_dim = 8 };
    struct fold_source source = { 0 };
    assert_int_equal(pool_open(2, &source.pool, NULL), 0);
    struct blocks *once = made(&shape, &source, 1000, 1000);
    assert_int_equal(once->count, (1000 - 3 - 2) / 4);
    assert_int_equal(once->lacking, (once->count + 2) / 3);
    assert_true(once->base.bytes >= once->count * 3 * 8 * sizeof(float));
    for (size_t i = 0; i < once->count * 24; i++)
        assert_true(once->vectors[i] == (float)(size_t)(i / 24) + (float)(i % 24) / 64.0F);
    static const uint64_t steps[] = { 1, 7, 300 };
    for (size_t i = 0; i < 3; i++) {
        struct blocks *slowly = made(&shape, &source, steps[i], 1000);
        assert_int_equal(slowly->count, once->count);
        assert_int_equal(slowly->lacking, once->lacking);
        assert_memory_equal(slowly->vectors, once->vectors, once->count * 24 * sizeof(float));
        blocks_free(&slowly->base);
    }
    blocks_free(&once->base);
    blocks_free(NULL);
    pool_close(source.pool);
}

static int refuse(void *arg)
{
    (void)arg;
    return MEMD_ECANCELLED;
}

/* What was made before an error stays, and can be gone on with. */
static void test_errors(void **state)
{
    (void)state;
    struct blocks_shape shape = { .tokens = 4, .heads = 1, .head_dim = 8 };
    double fails_at = 5;
    struct fold_source source = { .options = &fails_at }, fine = { 0 };
    struct blocks *blocks = made(&shape, &fine, 8, 8);
    struct error err = { 0 };
    struct fold *fold = &blocks->base;
    assert_int_equal(blocks_advance(fold, &source, 400, represent, &err), MEMD_EUNSUPPORTED);
    assert_string_equal(err.text, "block 5");
    assert_true(blocks->count == 5 && blocks->base.tokens == 20 && blocks->lacking == 2);
    source = (struct fold_source){ .stop = refuse };
    assert_int_equal(blocks_advance(fold, &source, 400, represent, &err), MEMD_ECANCELLED);
    assert_int_equal(blocks->count, 5);
    assert_int_equal(blocks_advance(fold, &fine, 400, represent, &err), 0);
    assert_int_equal(blocks->count, 100);
    assert_int_equal(blocks->lacking, 34);
    blocks_free(&blocks->base);
}

static void test_bytes(void **state)
{
    (void)state;
    struct blocks_shape shape = { .first = 3, .tokens = 4, .heads = 2, .head_dim = 8 };
    struct fold_source source = { 0 };
    static const uint64_t tokens[] = { 0, 6, 7, 400 };
    for (size_t i = 0; i < 4; i++) {
        struct blocks *blocks = made(&shape, &source, 1000, tokens[i]);
        struct fold *fold = NULL;
        size_t bytes = blocks_save(&blocks->base, NULL);
        unsigned char *data = past_alloc(bytes, 1);
        assert_int_equal(blocks_save(&blocks->base, data), bytes);
        assert_int_equal(blocks_load(&type, &shape, data, bytes, &fold, NULL), 0);
        const struct blocks *loaded = blocks_of(fold);
        assert_true(loaded->count == blocks->count && loaded->lacking == blocks->lacking);
        assert_true(loaded->base.tokens == blocks->base.tokens && loaded->base.type == &type);
        assert_memory_equal(loaded->vectors, blocks->vectors, blocks->count * 16 * sizeof(float));
        uint64_t end = blocks_reach(&shape, 0, 500);
        assert_int_equal(blocks_advance(fold, &source, end, represent, NULL), 0);
        assert_int_equal(loaded->count, (500 - 3) / 4);
        blocks_free(fold);
        for (size_t cut = 0; cut < bytes; cut += cut < 70 ? 1 : 60)
            assert_int_equal(blocks_load(&type, &shape, data, cut, &fold, NULL), MEMD_ECORRUPT);
        struct blocks_shape other = shape;
        other.tokens = 5;
        assert_int_equal(blocks_load(&type, &other, data, bytes, &fold, NULL), MEMD_ECORRUPT);
        for (size_t at = 0; at < 56; at++) { /* any byte of the header */
            data[at] ^= 0x40;
            assert_int_equal(blocks_load(&type, &shape, data, bytes, &fold, NULL),
                             MEMD_ECORRUPT);
            data[at] ^= 0x40;
        }
        free(data);
        blocks_free(&blocks->base);
    }
}

static int represent_randomly(const struct fold_source *source, const struct blocks_shape *shape,
                              uint64_t begin, float *ret_vectors, struct error *err)
{
    (void)source;
    (void)err;
    uint64_t random = begin + 17;
    for (size_t i = 0; i < shape->heads * shape->head_dim; i++)
        ret_vectors[i] = random_float(&random);
    return 0;
}

static void test_scores(void **state)
{
    (void)state;
    enum { HEADS = 5, DIM = 40, QUERIES = 3, COUNT = 150 };
    uint64_t random = random_seed();
    struct blocks_shape shape = { .tokens = 2, .heads = HEADS, .head_dim = DIM };
    struct fold_source source = { 0 };
    struct fold *fold = NULL;
    assert_int_equal(blocks_open(&type, &shape, &fold, NULL), 0);
    assert_int_equal(blocks_advance(fold, &source, 400, represent_randomly, NULL), 0);
    const struct blocks *blocks = blocks_of(fold);
    float q[HEADS * DIM], scores[QUERIES * COUNT], scratch[COUNT];
    for (size_t i = 0; i < HEADS * DIM; i++) q[i] = random_float(&random);
    double sums[COUNT] = { 0 };
    for (size_t head = 0; head < HEADS; head++) {
        blocks_scores(blocks, head, q, QUERIES, COUNT, scores);
        for (size_t i = 0; i < QUERIES * COUNT; i++) {
            const float *row = blocks->vectors + (i % COUNT * HEADS + head) * DIM;
            double sum = 0.0, own = 0.0;
            for (size_t d = 0; d < DIM; d++) {
                sum += (double)row[d] * (double)q[i / COUNT * DIM + d];
                own += (double)row[d] * (double)q[head * DIM + d];
            }
            assert_true(fabs((double)scores[i] - sum) < 1e-5);
            if (i < COUNT) sums[i] += own;
        }
    }
    blocks_scores_shared(blocks, q, COUNT, scratch, scores);
    for (size_t i = 0; i < COUNT; i++) assert_true(fabs((double)scores[i] - sums[i]) < 2e-5);
    blocks_scores_shared(blocks, q, 0, scratch, scores);
    blocks_scores(blocks, 0, q, 1, 0, scores);
    blocks_free(fold);
}

/* Few different scores, so that ties decide. */
static void test_choices(void **state)
{
    (void)state;
    uint64_t random = random_seed();
    for (size_t turn = 0; turn < 2000; turn++) {
        size_t count = random_below(&random, 40);
        struct blocks_wanted wanted = { random_below(&random, 3), random_below(&random, 3),
                                        random_below(&random, 20) };
        float scores[40], scratch[20];
        struct ranked hits[40];
        bool chosen[40] = { false };
        uint64_t ids[24];
        size_t between = 0, found = 0;
        for (size_t i = 0; i < count; i++) {
            scores[i] = (float)random_below(&random, 5);
            if (random_below(&random, 9) == 0) scores[i] = -INFINITY;
            chosen[i] = i < wanted.first || i + wanted.last >= count;
            if (!chosen[i]) hits[between++] = (struct ranked){ (double)scores[i], i };
            if (scores[i] == -INFINITY && i % 2 == 0) scores[i] = NAN; /* as bad as it gets */
        }
        qsort(hits, between, sizeof *hits, better_first);
        for (size_t i = 0; i < between && i < wanted.best; i++) chosen[hits[i].id] = true;
        size_t got = blocks_choose(scores, count, &wanted, scratch, ids);
        for (size_t i = 0; i < count; i++)
            if (chosen[i] && (found == got || ids[found++] != i))
                fail_msg("turn %zu: block %zu is not chosen", turn, i);
        assert_int_equal(found, got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts), cmocka_unit_test(test_fold),
        cmocka_unit_test(test_errors), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_scores), cmocka_unit_test(test_choices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
