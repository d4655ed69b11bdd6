/* SPDX-License-Identifier: Apache-2.0 */
/* bisect.c — the main direction by power iteration over a sample, the median by selection.
 *
 * A step of the iteration is u ← Σ (p_i - mean p) row_i with p_i = row_i · u: the factors sum to
 * zero, so the rows need not be centred first. A few steps from the difference of two far rows are
 * enough: what counts is a direction of large variance, not the eigenvector.
 */
#include "index/bisect.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "index/encode_backend.h"

enum { ROWS_MAX = 1024, LEAF = 16, SAMPLE = 64, STEPS = 2 };

struct scratch {
    const float *rows; /* (n, D) */
    size_t head_dim;
    float *direction;          /* (D) */
    float *dots;               /* (n) */
    uint64_t *keys;            /* (n) projection, row: in the order of the numbers */
    uint16_t sample[SAMPLE];
};

/* Floats in their order as unsigned numbers. */
static uint32_t ordered(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits >> 31) != 0 ? ~bits : bits | UINT32_C(0x80000000);
}

/* Subtract the mean and bring to length 1, so that nothing overflows on the way. */
static void balance(float *factors, size_t count)
{
    double sum = 0.0, square = 0.0;
    for (size_t i = 0; i < count; i++) sum += (double)factors[i];
    double mean = sum / (double)count;
    for (size_t i = 0; i < count; i++) {
        double away = (double)factors[i] - mean;
        square += away * away;
        factors[i] = (float)away;
    }
    float scale = square > 0.0 ? (float)(1.0 / sqrt(square)) : 0.0F;
    for (size_t i = 0; i < count; i++) factors[i] *= scale;
}

/* A direction in which the rows of `order` vary much; zero where all are equal. */
static void find_direction(struct scratch *scratch, const uint16_t *order, size_t count)
{
    size_t taken = count < SAMPLE ? count : SAMPLE;
    size_t gap = count / taken;
    for (size_t i = 0; i < taken; i++) /* not every gap-th: text has periods too */
        scratch->sample[i] = order[i * gap + i * 7 % gap];
    struct encode_rows rows = { scratch->rows, scratch->sample, taken, scratch->head_dim };
    float *factors = scratch->dots;
    for (size_t i = 0; i < taken; i++) factors[i] = (float)i;
    for (int step = 0; step <= STEPS; step++) {
        balance(factors, taken);
        encode_backend_get()->combine(&rows, factors, scratch->direction);
        if (step < STEPS) encode_backend_get()->project(&rows, scratch->direction, factors);
    }
}

/* Afterwards keys[0 … half-1] are the smaller ones. All keys differ, so a partition (Lomuto's,
 * without branches on the data) always gets shorter. */
static void select_half(uint64_t *keys, size_t count, size_t half)
{
    size_t low = 0, high = count; /* the border lies in low … high */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2, border = low;
        uint64_t pivot = keys[middle];
        keys[middle] = keys[high - 1];
        for (size_t i = low; i < high - 1; i++) {
            uint64_t key = keys[i];
            keys[i] = keys[border];
            keys[border] = key;
            border += key < pivot;
        }
        keys[high - 1] = keys[border];
        keys[border] = pivot;
        if (border == half || border + 1 == half) return;
        if (border < half) low = border + 1;
        else high = border;
    }
}

static void halve(struct scratch *scratch, uint16_t *order, size_t count)
{
    find_direction(scratch, order, count);
    struct encode_rows rows = { scratch->rows, order, count, scratch->head_dim };
    encode_backend_get()->project(&rows, scratch->direction, scratch->dots);
    for (size_t i = 0; i < count; i++)
        scratch->keys[i] = (uint64_t)ordered(scratch->dots[i]) << 16 | order[i];
    select_half(scratch->keys, count, count / 2);
    for (size_t i = 0; i < count; i++) order[i] = (uint16_t)(scratch->keys[i] & 0xffff);
}

/* order (16) ascending */
static void sort_leaf(uint16_t *order)
{
    for (size_t i = 1; i < LEAF; i++) {
        uint16_t row = order[i];
        size_t at = i;
        for (; at > 0 && order[at - 1] > row; at--) order[at] = order[at - 1];
        order[at] = row;
    }
}

int bisect_rows(const float *rows, size_t n, size_t head_dim, struct arena *arena,
                uint16_t *ret_order)
{
    assert(n >= LEAF && n <= ROWS_MAX && (n & (n - 1)) == 0);
    struct scratch *scratch = arena_alloc(arena, sizeof *scratch);
    float *direction = arena_alloc_aligned(arena, head_dim * sizeof *direction, 64);
    float *dots = arena_alloc_aligned(arena, n * sizeof *dots, 64);
    uint64_t *keys = arena_alloc_aligned(arena, n * sizeof *keys, 64);
    if (scratch == NULL || direction == NULL || dots == NULL || keys == NULL) return MEMD_ENOMEM;
    *scratch = (struct scratch){ .rows = rows, .head_dim = head_dim, .direction = direction,
                                 .dots = dots, .keys = keys };
    for (size_t i = 0; i < n; i++) ret_order[i] = (uint16_t)i;
    for (size_t count = n; count > LEAF; count /= 2)
        for (size_t at = 0; at < n; at += count) halve(scratch, ret_order + at, count);
    for (size_t at = 0; at < n; at += LEAF) sort_leaf(ret_order + at);
    return 0;
}
