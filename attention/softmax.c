/* SPDX-License-Identifier: Apache-2.0 */
/* softmax.c — the merge in fp32 vectors with its weights in double.
 *
 * The weights are formed relative to the larger of the two lse, so that nothing overflows, and
 * divided by their sum before they are rounded to fp32, so that they add up to one to the last bit
 * or two. The only special value is -inf (the empty set); it never meets another -inf in a
 * difference.
 */
#include "attention/softmax.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

void partial_clear(const struct partial *partial)
{
    memset(partial->o, 0, partial->rows * partial->head_dim * sizeof *partial->o);
    for (size_t row = 0; row < partial->rows; row++) partial->lse[row] = -INFINITY;
}

/* o (D), other (D) */
static void mix(float *o, float weight, const float *other, float other_weight, size_t head_dim)
{
    for (size_t d = 0; d < head_dim; d++) o[d] = weight * o[d] + other_weight * other[d];
}

void partial_merge(const struct partial *into, const struct partial *part)
{
    assert(into->rows == part->rows);
    assert(into->head_dim == part->head_dim);
    size_t head_dim = into->head_dim;
    for (size_t row = 0; row < into->rows; row++) {
        double a = into->lse[row], b = part->lse[row];
        if (b == -INFINITY) continue;
        float *o = into->o + row * head_dim;
        const float *other = part->o + row * head_dim;
        if (a == -INFINITY) {
            memcpy(o, other, head_dim * sizeof *o);
            into->lse[row] = part->lse[row];
            continue;
        }
        double top = fmax(a, b);
        double weight = exp(a - top), other_weight = exp(b - top);
        double sum = weight + other_weight;
        mix(o, (float)(weight / sum), other, (float)(other_weight / sum), head_dim);
        into->lse[row] = (float)(top + log(sum));
    }
}

void partial_finish(const float *max, const float *sum, const struct partial *partial)
{
    for (size_t row = 0; row < partial->rows; row++) {
        float *o = partial->o + row * partial->head_dim;
        bool empty = max[row] == -INFINITY;
        float scale = empty ? 0.0F : 1.0F / sum[row];
        for (size_t d = 0; d < partial->head_dim; d++) o[d] *= scale;
        partial->lse[row] = empty ? -INFINITY : (float)(max[row] + log((double)sum[row]));
    }
}
