/* SPDX-License-Identifier: Apache-2.0 */
/* subspace.c — in the order of execution: random signs, passes over the sample, then more random
 * signs, from which what lies along the rows before is taken away. */
#include "index/subspace.h"

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "index/vectors.h"

enum { BLOCK = 16 }; /* vectors of the sample at a time */

/* Signs of a fixed generator (splitmix64): the same in every build. rows (count, W) */
static void draw(float *rows, size_t count, size_t width, uint64_t seed)
{
    for (size_t i = 0; i < count * width; i++) {
        uint64_t z = (seed << 32) + i;
        z += 0x9e3779b97f4a7c15U;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
        rows[i] = (z ^ (z >> 31)) >> 63 == 0 ? 1.0F : -1.0F;
    }
}

static double dot(const float *a, const float *b, size_t width)
{
    double sum = 0.0;
    for (size_t i = 0; i < width; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Rows first … count-1 at length 1 and at right angles to all rows before them (Gram and Schmidt,
 * twice, since once leaves the error of the subtraction). A row of which nothing is left is zero:
 * the sample has no more directions. */
static void straighten(float *rows, size_t first, size_t count, size_t width)
{
    for (size_t r = first; r < count; r++) {
        float *row = rows + r * width;
        double before = sqrt(dot(row, row, width));
        for (size_t again = 0; again < 2; again++)
            for (size_t o = 0; o < r; o++) {
                const float *other = rows + o * width;
                float along = (float)dot(row, other, width);
                for (size_t i = 0; i < width; i++) row[i] -= along * other[i];
            }
        double length = sqrt(dot(row, row, width));
        float scale = length > 1e-6 * before ? (float)(1.0 / length) : 0.0F;
        for (size_t i = 0; i < width; i++) row[i] *= scale;
    }
}

/* sums (L, W) += products (n, L)ᵀ x (n, W), n ≤ BLOCK */
static void add_block(const float *products, const float *x, size_t n, size_t leading,
                      size_t width, float *sums)
{
    for (size_t r = 0; r < leading; r++) {
        float *sum = sums + r * width;
        for (size_t j = 0; j < n; j++) {
            float factor = products[j * leading + r];
            const float *vector = x + j * width;
            for (size_t i = 0; i < width; i++) sum[i] += factor * vector[i];
        }
    }
}

/* rows (L, W) = rows xᵀ x; sums (L, W), products (BLOCK, L) */
static void pass(const struct subspace_sample *sample, size_t leading, float *rows, float *sums,
                 float *products)
{
    size_t width = sample->width;
    memset(sums, 0, leading * width * sizeof *sums);
    for (size_t at = 0; at < sample->n; at += BLOCK) {
        size_t n = sample->n - at < BLOCK ? sample->n - at : BLOCK;
        const float *x = sample->x + at * width;
        vectors_products(x, n, rows, leading, width, products);
        add_block(products, x, n, leading, width, sums);
    }
    memcpy(rows, sums, leading * width * sizeof *rows);
}

int subspace_find(const struct subspace_sample *sample, size_t leading, size_t random,
                  float *ret_rows, struct error *err)
{
    size_t width = sample->width, all = leading + random;
    assert(width % 8 == 0 && leading > 0 && random > 0 && all <= width);
    CLEANUP(free_ptr) float *room = malloc((width + BLOCK) * leading * sizeof *room);
    if (room == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a basis");
    draw(ret_rows, all, width, 1);
    straighten(ret_rows, 0, leading, width);
    for (size_t i = 0; i < SUBSPACE_PASSES; i++) {
        pass(sample, leading, ret_rows, room, room + leading * width);
        straighten(ret_rows, 0, leading, width);
    }
    straighten(ret_rows, leading, all, width);
    float scale = sqrtf((float)(width - leading) / (float)random);
    for (size_t i = leading * width; i < all * width; i++) ret_rows[i] *= scale;
    return 0;
}
