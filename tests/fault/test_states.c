/* SPDX-License-Identifier: Apache-2.0 */
/* test_states.c — a fold of states that runs out of memory is as it was, sketches included: where
 * other states come to the positions that it had not reached (a truncate took those), it becomes
 * what a fold of these states alone is, number by number.
 */
#include "index/vectors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "index/sketches.h"
#include "tests/fault/allocations.h"
#include "tests/unit/past.h"

enum { WIDTH = 32, SKETCH = 16, EVERY = 17 };

static const struct fold_type type = { .name = "vectors" };

static struct vectors *start(void)
{
    struct vectors *vectors = NULL;
    assert_int_equal(vectors_new(&type, WIDTH, SKETCH, &vectors, NULL), 0);
    return vectors;
}

static int advance(struct vectors *vectors, const struct past *past, uint64_t end)
{
    struct fold_source source = { .rows = { past->views, past->view_count, past->head_dim, NULL } };
    return vectors_advance(vectors, &source, end, NULL);
}

/* The same states as `past` below `tokens`, and others from there on. */
static void follow_otherwise(const struct past *past, uint64_t tokens, struct past *ret_other)
{
    uint64_t random = 1000 + tokens;
    size_t bytes = (size_t)tokens * past->head_dim * dtype_bytes(past->dtype);
    *ret_other = (struct past){ .query_heads = 1, .kv_heads = 1, .head_dim = past->head_dim,
                                .tokens = past->tokens, .queries = 1, .dtype = past->dtype };
    past_make(ret_other, &random);
    memcpy(ret_other->k_rows, past->k_rows, bytes);
    memcpy(ret_other->v_rows, past->v_rows, bytes);
}

static void expect_same_cell(const struct sketches_cell *cell, const struct sketches_cell *wanted,
                             size_t dims)
{
    assert_int_equal(cell->count, wanted->count);
    for (uint64_t e = 0; e < cell->count; e++) {
        const struct sketches_tile *tile = cell->tiles[e / SKETCHES_TILE];
        const struct sketches_tile *other = wanted->tiles[e / SKETCHES_TILE];
        size_t i = (size_t)(e % SKETCHES_TILE);
        assert_int_equal(tile->positions[i], other->positions[i]);
        assert_memory_equal(&tile->scales[i], &other->scales[i], sizeof(float));
        assert_memory_equal(&tile->biases[i], &other->biases[i], sizeof(float));
        assert_memory_equal(&tile->squares[i], &other->squares[i], sizeof(float));
        if (i == SKETCHES_TILE - 1)
            assert_memory_equal(tile->codes, other->codes, SKETCHES_TILE * dims);
    }
}

static void expect_same(const struct vectors *vectors, const struct vectors *wanted)
{
    const struct sketches *sketches = &vectors->sketches, *other = &wanted->sketches;
    assert_int_equal(vectors->base.tokens, wanted->base.tokens);
    assert_int_equal(sketches->count, other->count);
    assert_int_equal(sketches->tiles, other->tiles);
    assert_memory_equal(sketches->mean, other->mean, WIDTH * sizeof(float));
    assert_memory_equal(sketches->basis, other->basis, (SKETCH + 1) * WIDTH * sizeof(float));
    assert_memory_equal(sketches->centroids, other->centroids,
                        (size_t)SKETCHES_CELLS * SKETCH * sizeof(float));
    for (size_t c = 0; c < SKETCHES_CELLS; c++)
        expect_same_cell(&sketches->cells[c], &other->cells[c], SKETCH);
}

/* What states must become that are those of `past` below `tokens`; made when it is first asked for
 * a number of tokens. */
struct wanted {
    uint64_t tokens;
    struct past past;
    struct vectors *vectors;
};

static void want(struct wanted *wanted, const struct past *past, uint64_t tokens)
{
    if (wanted->vectors != NULL && wanted->tokens == tokens) return;
    if (wanted->vectors != NULL) past_free(&wanted->past);
    vectors_free(wanted->vectors == NULL ? NULL : &wanted->vectors->base);
    wanted->tokens = tokens;
    wanted->vectors = start();
    follow_otherwise(past, tokens, &wanted->past);
    assert_int_equal(advance(wanted->vectors, &wanted->past, past->tokens), 0);
}

/* From `begun` tokens to `end`, every EVERY-th allocation fails, and each of the first. */
static void fail_each(uint64_t begun, uint64_t end)
{
    uint64_t random = 7;
    struct past past = { .query_heads = 1, .kv_heads = 1, .head_dim = WIDTH / 2, .tokens = end,
                         .queries = 1, .dtype = DTYPE_FP16 };
    struct wanted wanted = { 0 };
    long n = 0, failures = 0;
    past_make(&past, &random);
    for (bool more = true; more; n += n < 24 ? 1 : EVERY) {
        struct vectors *vectors = start();
        assert_int_equal(advance(vectors, &past, begun), 0);
        allocations_forget();
        allocations_fail_after(n);
        int rc = advance(vectors, &past, end);
        allocations_fail_after(-1);
        more = allocations_failed();
        assert_int_equal(rc, more ? MEMD_ENOMEM : 0);
        if (more) {
            want(&wanted, &past, vectors->base.tokens);
            assert_true(vectors->sketches.count <= vectors->base.tokens);
            assert_int_equal(advance(vectors, &wanted.past, end), 0);
            expect_same(vectors, wanted.vectors);
            failures++;
        }
        vectors_free(&vectors->base);
    }
    print_message("from %d tokens to %d: %ld allocations failed, one at a time\n", (int)begun,
                  (int)end, failures);
    assert_true(failures > 20);
    past_free(&wanted.past);
    vectors_free(&wanted.vectors->base);
    past_free(&past);
}

static void test_while_it_is_learned(void **state)
{
    (void)state;
    fail_each(SKETCHES_SAMPLE - 100, SKETCHES_SAMPLE + 100);
}

static void test_after_it_was_learned(void **state)
{
    (void)state;
    fail_each(SKETCHES_SAMPLE + 3, 3 * SKETCHES_SAMPLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_while_it_is_learned),
        cmocka_unit_test(test_after_it_was_learned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
