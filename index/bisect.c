/* SPDX-License-Identifier: Apache-2.0 */
/* bisect.c — the main direction by power iteration over a sample, the median by counting.
 *
 * A step of the iteration is u ← Σ (p_i - mean p) row_i with p_i = row_i · u: the factors sum to
 * zero, so the rows need not be centred first. Two steps over 32 rows from a ramp over the rows are
 * enough: what counts is a direction of large variance, not the eigenvector. Variance inside
 * clusters is 1.3 % above that of three steps over all rows (docs/decisions/0030).
 */
#include "index/bisect.h"

#include <assert.h>

#include "base/arena.h"
#include "base/error.h"
#include "index/encode_backend.h"

enum { ROWS_MAX = 1024, LEAF = 16, SAMPLE = 32, STEPS = 2 };

struct scratch {
    const struct encode_backend *backend;
    const float *rows; /* (n, D) */
    size_t head_dim;
    float *direction; /* (D) */
    float *dots;      /* (n) */
};

/* A direction in which the rows of `order` vary much; zero where all are equal. */
static void find_direction(const struct scratch *scratch, const uint16_t *order, size_t count)
{
    uint16_t sample[SAMPLE];
    size_t taken = count < SAMPLE ? count : SAMPLE, gap = count / taken;
    for (size_t i = 0; i < taken; i++) /* not every gap-th: text has periods too */
        sample[i] = order[i * gap + i * 7 % gap];
    struct encode_rows rows = { scratch->rows, sample, taken, scratch->head_dim };
    for (size_t i = 0; i < taken; i++)
        scratch->dots[i] = ((float)i + 0.5F) / (float)taken - 0.5F;
    scratch->backend->combine(&rows, scratch->dots, scratch->direction);
    for (int step = 0; step < STEPS; step++)
        scratch->backend->steer(&rows, scratch->dots, scratch->direction);
}

static void halve(const struct scratch *scratch, uint16_t *order, size_t count)
{
    find_direction(scratch, order, count);
    struct encode_rows rows = { scratch->rows, order, count, scratch->head_dim };
    scratch->backend->project(&rows, scratch->direction, scratch->dots);
    scratch->backend->split(scratch->dots, order, count);
}

/* Depth first: a half that fits into a cache is halved on while it is there. It keeps its order, so
 * that rows ascend. Parts of every size begin at multiples of it, so before the part of two leaves
 * at `begin` come those larger ones that begin there too, the largest first. */
static void bisect(const struct scratch *scratch, uint16_t *order, size_t n)
{
    for (size_t begin = 0; begin < n; begin += 2 * LEAF)
        for (size_t count = n; count > LEAF; count /= 2)
            if (begin % count == 0) halve(scratch, order + begin, count);
}

int bisect_rows(const float *rows, size_t n, size_t head_dim, struct arena *arena,
                uint16_t *ret_order)
{
    assert(n >= LEAF && n <= ROWS_MAX && (n & (n - 1)) == 0);
    struct scratch scratch = {
        .backend = encode_backend_get(), .rows = rows, .head_dim = head_dim,
        .direction = arena_alloc_aligned(arena, head_dim * sizeof(float), 64),
        .dots = arena_alloc_aligned(arena, n * sizeof(float), 64) };
    if (scratch.direction == NULL || scratch.dots == NULL) return MEMD_ENOMEM;
    for (size_t i = 0; i < n; i++) ret_order[i] = (uint16_t)i;
    bisect(&scratch, ret_order, n);
    return 0;
}
