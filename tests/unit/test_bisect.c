/* SPDX-License-Identifier: Apache-2.0 */
/* test_bisect.c — balanced, a permutation, the same twice, and clusters where there are some. */
#include "index/bisect.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "tests/random.h"

enum { ROWS_MAX = 1024, DIM_MAX = 128, LEAF = 16 };

struct past {
    struct arena arena;
    uint64_t random;
    float rows[ROWS_MAX * DIM_MAX];
    uint16_t order[ROWS_MAX];
};

static struct past past;

static int setup(void **state)
{
    *state = &past;
    past.random = random_seed();
    arena_init(&past.arena, (size_t)1 << 20);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    arena_fini(&past.arena);
    return 0;
}

static void bisect(size_t n, size_t head_dim)
{
    memset(past.order, 0xff, sizeof past.order);
    assert_int_equal(bisect_rows(past.rows, n, head_dim, &past.arena, past.order), 0);
    arena_reset(&past.arena);
    uint8_t seen[ROWS_MAX] = { 0 };
    for (size_t i = 0; i < n; i++) {
        assert_true(past.order[i] < n);
        assert_int_equal(seen[past.order[i]]++, 0);
        if (i % LEAF != 0) assert_true(past.order[i - 1] < past.order[i]);
    }
}

/* Σ over clusters of the squared distances from their mean, divided by the same for all rows. */
static double relative_variance(size_t n, size_t head_dim, const uint16_t *order)
{
    double within = 0.0, overall = 0.0;
    for (size_t d = 0; d < head_dim; d++) {
        double all = 0.0, all_square = 0.0;
        for (size_t at = 0; at < n; at += LEAF) {
            double sum = 0.0, square = 0.0;
            for (size_t i = at; i < at + LEAF; i++) {
                double x = (double)past.rows[order[i] * head_dim + d];
                sum += x;
                square += x * x;
            }
            within += square - sum * sum / LEAF;
            all += sum;
            all_square += square;
        }
        overall += all_square - all * all / (double)n;
    }
    return within / overall;
}

static void test_permutation(void **state)
{
    (void)state;
    const size_t sizes[] = { 16, 32, 64, 256, 1024 }, dims[] = { 8, 24, 128 };
    for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < 3; j++) {
            for (size_t at = 0; at < sizes[i] * dims[j]; at++)
                past.rows[at] = random_float(&past.random);
            bisect(sizes[i], dims[j]);
            uint16_t first[ROWS_MAX];
            memcpy(first, past.order, sizeof first);
            bisect(sizes[i], dims[j]);
            assert_memory_equal(first, past.order, sizeof first);
        }
}

/* Which rows of 32 are of the second heap of 16. One of the two stands somewhat further in front:
 * else the ramp over the rows that the iteration begins with would not tell them apart. */
static void mix_heaps(uint8_t heap[32])
{
    int ahead = 0;
    while (abs(ahead) < 32) {
        memset(heap, 0, 32);
        ahead = 0;
        for (size_t left = 16; left > 0;) {
            size_t row = random_below(&past.random, 32);
            if (heap[row] == 0) left--;
            heap[row] = 1;
        }
        for (int i = 0; i < 32; i++) ahead += heap[i] != 0 ? i : -i;
    }
}

/* Two heaps of 16 that stand mixed come apart. */
static void test_two_heaps(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        uint8_t heap[32];
        mix_heaps(heap);
        for (size_t at = 0; at < (size_t)(32 * 64); at++)
            past.rows[at] = random_float(&past.random) * 0.5F
                + (at % 64 == 5 && heap[at / 64] != 0 ? 4.0F : 0.0F);
        bisect(32, 64);
        for (size_t i = 1; i < 32; i++)
            if (i != 16) assert_int_equal(heap[past.order[i]], heap[past.order[i - 1]]);
    }
}

/* 64 heaps of 16 in 4 dimensions of 32: far better than the order in which they came. */
static void test_many_heaps(void **state)
{
    (void)state;
    enum { D = 32 };
    float centres[64][D] = { { 0 } };
    for (size_t heap = 0; heap < 64; heap++)
        for (size_t d = 0; d < D; d++)
            centres[heap][d] = d < 4 ? 10.0F * random_float(&past.random) : 0.0F;
    for (size_t row = 0; row < ROWS_MAX; row++)
        for (size_t d = 0; d < D; d++)
            past.rows[row * D + d] = centres[row % 64][d] + 0.1F * random_float(&past.random);
    uint16_t came[ROWS_MAX];
    for (size_t i = 0; i < ROWS_MAX; i++) came[i] = (uint16_t)i;
    bisect(ROWS_MAX, D);
    double before = relative_variance(ROWS_MAX, D, came);
    double after = relative_variance(ROWS_MAX, D, past.order);
    if (!(before > 0.8 && after < 0.25)) fail_msg("variance %.3f → %.3f", before, after);
}

/* Nothing to tell rows apart: row number decides. An eighth huge: they stay together. */
static void test_degenerate(void **state)
{
    (void)state;
    for (size_t at = 0; at < (size_t)ROWS_MAX * 16; at++) past.rows[at] = 0.25F;
    bisect(ROWS_MAX, 16);
    for (size_t i = 0; i < ROWS_MAX; i++) assert_int_equal(past.order[i], i);
    memset(past.rows, 0, sizeof past.rows);
    bisect(ROWS_MAX, 16);
    for (size_t i = 0; i < ROWS_MAX; i++) assert_int_equal(past.order[i], i);
    for (size_t row = 5; row < ROWS_MAX; row += 8) past.rows[row * 16] = 1e15F;
    bisect(ROWS_MAX, 16);
    for (size_t i = 0; i < ROWS_MAX; i++) /* 128 rows fill 8 clusters */
        assert_int_equal(past.order[i] % 8 == 5, past.order[i - i % LEAF] % 8 == 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_two_heaps),
        cmocka_unit_test(test_many_heaps),
        cmocka_unit_test(test_degenerate),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
