/* SPDX-License-Identifier: Apache-2.0 */
/* choice.c — a heap and a running sum per head. The sum is kept in double: it is of as many terms
 * as there are tokens, and what was read is compared with it. */
#include "index/choice.h"

#include <assert.h>
#include <math.h>

size_t choice_bytes(size_t group, size_t k)
{
    return CHOICE_FLOATS * sizeof(float) + group * (sizeof(double) + sizeof(float)) +
           group * k * (sizeof(uint64_t) + sizeof(float));
}

struct choice choice_at(void *scratch, size_t group, size_t k)
{
    assert(k > 0 && group <= CHOICE_FLOATS);
    struct choice choice = { .ids = scratch, .k = k, .group = group };
    choice.sum = (double *)(void *)(choice.ids + group * k);
    choice.scores = (float *)(void *)(choice.sum + group);
    choice.max = choice.scores + CHOICE_FLOATS;
    choice.top_scores = choice.max + group;
    for (size_t m = 0; m < group; m++) {
        struct topk top = choice_top(&choice, m);
        topk_clear(&top);
        choice.max[m] = -INFINITY;
        choice.sum[m] = 0.0;
    }
    return choice;
}

struct topk choice_top(const struct choice *choice, size_t m)
{
    return (struct topk){ choice->ids + m * choice->k, choice->top_scores + m * choice->k,
                          choice->k };
}

void choice_weigh(const struct choice *choice, size_t m, const float *scores, size_t count)
{
    float max = choice->max[m];
    for (size_t i = 0; i < count; i++)
        if (scores[i] > max) max = scores[i];
    double sum = max == -INFINITY ? 0.0 : choice->sum[m] * exp((double)(choice->max[m] - max));
    for (size_t i = 0; i < count; i++) sum += (double)expf(scores[i] - max);
    choice->sum[m] = sum;
    choice->max[m] = max;
}

void choice_offer(const struct choice *choice, size_t m, const float *ranks, size_t count,
                  uint64_t position)
{
    struct topk top = choice_top(choice, m);
    for (size_t i = 0; i < count; i++) topk_offer(&top, ranks[i], position + i);
}

/* ln(e^a + e^b) */
static double join(double a, double b)
{
    double top = fmax(a, b);
    return top == -INFINITY ? top : top + log(exp(a - top) + exp(b - top));
}

float choice_share(const struct choice *choice, const struct pick *pick, size_t m,
                   struct choice_steady before)
{
    double steady = before.max == -INFINITY ? -INFINITY : (double)before.max + log(before.sum);
    double total = join(steady, (double)choice->max[m] + log(choice->sum[m]));
    if (pick->max[m] == -INFINITY) return 0.0F;
    double part = exp((double)pick->max[m] + log((double)pick->sum[m]) - total);
    return part < 1.0 ? (float)part : 1.0F;
}
